"""The recipes that need no method of pruning: training from scratch, and fine-tuning with zeros held."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from search.compute import CPU
from search.data.loading import LoadedData
from search.distillation import DistillationTeacher
from search.domain.config import TrainingConfig
from search.pruning.apply import PrunedModel
from search.training.regulariser import Regulariser
from search.training.schedule import LearningRate
from search.training.sgd import SgdRun, SgdSettings, Watcher

_WARM_UP_FRACTION = 0.05
#: SGD from fresh weights, as is usual for small images: a large rate, and more decay than fine-tuning.
_FROM_SCRATCH = TrainingConfig(batch_size=128, learning_rate=0.1, weight_decay=5e-4, distillation=0.0)
#: A small data set gets smaller batches rather than few steps in an epoch.
_MIN_STEPS_FROM_SCRATCH = 40
_MIN_BATCH_FROM_SCRATCH = 16


def train_from_scratch(
    model: nn.Module,
    data: LoadedData,
    epochs: float,
    generator: torch.Generator,
    *,
    watcher: Watcher | None = None,
) -> nn.Module:
    """A trained copy of `model`, from the weights that it has. The arguments are those of `finetune`.

    The recipe is fixed: a rate of 0.1 for batches of 128, and in proportion less for the smaller batches that a small
    data set gets.
    """
    most = len(data.split.train) // _MIN_STEPS_FROM_SCRATCH
    batch_size = min(_FROM_SCRATCH.batch_size, max(_MIN_BATCH_FROM_SCRATCH, most))
    rate = _FROM_SCRATCH.learning_rate * batch_size / _FROM_SCRATCH.batch_size
    settings = replace(_FROM_SCRATCH, epochs=epochs, batch_size=batch_size, learning_rate=rate)
    dense = PrunedModel(model=model, masks={}, kept={})
    return finetune(dense, data, settings, generator, watcher=watcher).model


def finetune(
    pruned: PrunedModel,
    data: LoadedData,
    settings: TrainingConfig,
    generator: torch.Generator,
    *,
    teacher: DistillationTeacher | None = None,
    regulariser: Regulariser | None = None,
    watcher: Watcher | None = None,
    device: torch.device = CPU,
) -> PrunedModel:
    """Train a copy of a pruned network on `data.split.train`, its zeros held.

    SGD with Nesterov momentum 0.9, a short linear warm-up and a cosine down to zero; batch norm and biases do not
    decay. With 0 epochs only the statistics of batch norm are adapted.

    Args:
        pruned: The network and its masks. It is not changed.
        data: Images, normalisation and augmentation.
        settings: Epochs (fractions are allowed), rates and sizes.
        generator: One number is drawn from it, from which all randomness of the run follows.
        teacher: The unpruned network, for `settings.distillation`. Without it the labels alone are learnt.
        regulariser: Takes part in every step. It must be a new one.
        watcher: Who hears of the run, and where its state is kept. If a checkpoint is there, the run goes on from it.
        device: Where it is trained, with the teacher there as well; what comes out is on the processor.

    Raises:
        TrainingDiverged: The loss is no longer finite.
        CheckpointError: The checkpoint belongs to another run.
    """
    seed = int(torch.randint(0, 2**62, (), generator=generator))
    run = SgdRun(
        pruned,
        data,
        sgd_settings(settings),
        seed,
        teacher=teacher,
        regulariser=regulariser,
        watcher=watcher,
        device=device,
    )
    return run.finish()


def sgd_settings(settings: TrainingConfig) -> SgdSettings:
    """The run that a config's masked fine-tuning means."""
    return SgdSettings(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=LearningRate(peak=settings.learning_rate, warm_up=_WARM_UP_FRACTION),
        weight_decay=settings.weight_decay,
        distillation=settings.distillation,
    )
