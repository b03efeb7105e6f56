"""Training networks: from scratch, and fine-tuning pruned ones with their zeros held.

Everything random in a run follows from one seed and the epoch's number, so that a run which was stopped goes on from
the last finished epoch exactly as if it had not been.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from device_agent.contracts import canonical_json
from search.data.batches import as_tensors, augment, network_input
from search.data.loading import LoadedData
from search.distillation import DistillationTeacher, distillation_loss
from search.domain.config import TrainingConfig
from search.errors import SearchError
from search.evaluation import EVALUATION_BATCH, evaluate, logits_of, recalibrate_batch_norm
from search.models.checkpoint import CheckpointError, read_tensors, write_tensors
from search.pruning.apply import PrunedModel

__all__ = ["EpochReport", "TrainingDiverged", "evaluate", "finetune", "train_from_scratch"]

_MOMENTUM = 0.9
_WARM_UP_FRACTION = 0.05
_CHECKPOINT_FORMAT = "1"
#: SGD from fresh weights, as is usual for small images: a large rate, and more decay than fine-tuning.
_FROM_SCRATCH = TrainingConfig(batch_size=128, learning_rate=0.1, weight_decay=5e-4, distillation=0.0)
#: A small data set gets smaller batches rather than few steps in an epoch.
_MIN_STEPS_FROM_SCRATCH = 40
_MIN_BATCH_FROM_SCRATCH = 16


class TrainingDiverged(SearchError):
    """The loss is no longer finite. The text names the step and the rate; a smaller `learning_rate` is the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReport:
    """Progress after an epoch: `epoch` epochs of `epochs` are done (the last may be a part of one)."""

    epoch: int
    epochs: float
    loss: float
    duration_s: float
    images_per_s: float


def train_from_scratch(
    model: nn.Module,
    data: LoadedData,
    epochs: float,
    generator: torch.Generator,
    *,
    on_epoch: Callable[[EpochReport], None] | None = None,
    checkpoint_path: Path | None = None,
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
    trained = finetune(dense, data, settings, generator, on_epoch=on_epoch, checkpoint_path=checkpoint_path)
    return trained.model


def finetune(
    pruned: PrunedModel,
    data: LoadedData,
    settings: TrainingConfig,
    generator: torch.Generator,
    *,
    teacher: DistillationTeacher | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    checkpoint_path: Path | None = None,
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
        on_epoch: Called after every epoch.
        checkpoint_path: Where the state is kept after every epoch. If the file is there, the run goes on from it.

    Raises:
        TrainingDiverged: The loss is no longer finite.
        CheckpointError: The checkpoint belongs to another run.
    """
    seed = int(torch.randint(0, 2**62, (), generator=generator))
    run = _Run(pruned, data, settings, teacher, seed, checkpoint_path)
    run.restore()
    while not run.is_finished:
        report = run.train_epoch()
        run.save()
        if on_epoch is not None:
            on_epoch(report)
    return run.result()


class _Run:
    """One training run, at an epoch boundary between calls."""

    def __init__(
        self,
        pruned: PrunedModel,
        data: LoadedData,
        settings: TrainingConfig,
        teacher: DistillationTeacher | None,
        seed: int,
        checkpoint_path: Path | None,
    ) -> None:
        if teacher is not None and teacher.data is not data:
            raise ValueError(
                "the teacher was made for other data: make a DistillationTeacher with the data of this run"
            )
        model = copy.deepcopy(pruned.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._pruned = replace(pruned, model=model)
        self._data = data
        self._settings = settings
        self._teacher = teacher if settings.distillation > 0 else None
        self._seed = seed
        self._checkpoint_path = checkpoint_path
        self._images, self._labels = as_tensors(data.split.train)
        self._batch_size = min(settings.batch_size, len(self._images))
        self._steps_per_epoch = len(self._images) // self._batch_size
        self._num_steps = round(settings.epochs * self._steps_per_epoch)
        self._epoch = 0
        self._optimizer = _sgd(model, settings)

    @property
    def is_finished(self) -> bool:
        return self._epoch * self._steps_per_epoch >= self._num_steps

    def train_epoch(self) -> EpochReport:
        started = time.perf_counter()
        generator = _epoch_generator(self._seed, self._epoch)
        order = torch.randperm(len(self._images), generator=generator)
        first = self._epoch * self._steps_per_epoch
        steps = min(self._steps_per_epoch, self._num_steps - first)
        self._pruned.model.train()
        loss = 0.0
        for index in range(steps):
            chosen = order[index * self._batch_size : (index + 1) * self._batch_size]
            images = augment(self._images[chosen], self._data.augmentation, generator)
            loss += self._step(images, self._labels[chosen], first + index)
        self._pruned.model.eval()
        self._epoch += 1
        duration_s = time.perf_counter() - started
        return EpochReport(
            epoch=self._epoch,
            epochs=self._settings.epochs,
            loss=loss / steps,
            duration_s=duration_s,
            images_per_s=steps * self._batch_size / max(duration_s, 1e-9),
        )

    def result(self) -> PrunedModel:
        model = self._pruned.model
        if self._num_steps == 0:
            calibration, _ = as_tensors(self._data.split.calibration)
            recalibrate_batch_norm(
                model,
                calibration,
                self._data.normalise,
                resolution=self._pruned.resolution,
                batch_size=EVALUATION_BATCH,
            )
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return replace(self._pruned, model=model.eval())

    def save(self) -> None:
        if self._checkpoint_path is None:
            return
        model, optimizer = self._pruned.model, self._optimizer
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for name, parameter in model.named_parameters():
            tensors[f"momentum.{name}"] = optimizer.state[parameter]["momentum_buffer"]
        metadata = {"format": _CHECKPOINT_FORMAT, "run": self._fingerprint(), "epoch": str(self._epoch)}
        stored = {
            name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        write_tensors(self._checkpoint_path, stored, metadata)

    def restore(self) -> None:
        path = self._checkpoint_path
        if path is None or not path.exists():
            return
        tensors = read_tensors(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != _CHECKPOINT_FORMAT or metadata.get("run") != self._fingerprint():
            raise CheckpointError(
                f"{path} belongs to another training run (other network, data, settings or seed): remove it, or give "
                "this run another checkpoint path"
            )
        model = self._pruned.model
        model.load_state_dict({name: tensors[f"model.{name}"] for name in model.state_dict()})
        for name, parameter in model.named_parameters():
            buffer = tensors[f"momentum.{name}"].clone(memory_format=torch.preserve_format)
            self._optimizer.state[parameter]["momentum_buffer"] = buffer.to(
                memory_format=torch.channels_last if buffer.ndim == 4 else torch.contiguous_format
            )
        self._epoch = int(metadata["epoch"])

    def _step(self, images: Tensor, labels: Tensor, step: int) -> float:
        settings = self._settings
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, self._num_steps)
        logits = logits_of(self._pruned.model, network_input(images, self._data.normalise, self._pruned.resolution))
        loss = F.cross_entropy(logits, labels)
        if self._teacher is not None:
            target = self._teacher.logits(images, (self._seed, self._batch_size, step))
            loss = (1 - settings.distillation) * loss + settings.distillation * distillation_loss(logits, target)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"the training loss is {value} at step {step} of {self._num_steps} with learning_rate "
                f"{settings.learning_rate}: choose a smaller one"
            )
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._pruned.apply_masks()
        return value

    def _fingerprint(self) -> str:
        """What must be equal for a checkpoint to belong to this run."""
        digest = hashlib.sha256()
        shapes = {name: list(tensor.shape) for name, tensor in self._pruned.model.state_dict().items()}
        settings = canonical_json(self._settings)
        run = [settings, self._seed, len(self._images), self._teacher is not None, self._pruned.resolution, shapes]
        digest.update(json.dumps(run, sort_keys=True).encode())
        for name, mask in sorted(self._pruned.masks.items()):
            digest.update(name.encode() + np.packbits(mask.numpy()).tobytes())
        return digest.hexdigest()


def _sgd(model: nn.Module, settings: TrainingConfig) -> torch.optim.SGD:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=_MOMENTUM, nesterov=True)


def _schedule(step: int, num_steps: int) -> float:
    """The part of the learning rate at `step`: linear warm-up, then half a cosine down to zero."""
    warm_up = max(1, round(_WARM_UP_FRACTION * num_steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, num_steps - warm_up)))


def _epoch_generator(seed: int, epoch: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
