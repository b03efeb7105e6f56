"""JCW's training of a chosen network: dense, then with ADMM, then with its zeros held.

T. Zhao et al., arXiv 2110.08013; stages, lengths and rates are those of the released res18-train.yaml and lib/Trainer.
Deviations, and why:
- All lengths are shortened by one factor. The number of ADMM's projections stays, as far as there are steps: at the
  published length they come once an epoch.
- Where few steps are left, ADMM's penalty is raised (`admm_penalty`); at the published one the weights would not move.
- Rates are for batches of 512 and are scaled with the batch size (P. Goyal et al., arXiv 1706.02677).
- The best epoch is that with the best accuracy on held-out training images. The released code takes the best on the
  validation set of ImageNet, which its results are reported on.
- Weights may be inherited from the unpruned network. The released code always starts from fresh ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from device_agent.contracts import PruningScheme
from search.compute import CPU
from search.data.loading import LoadedData
from search.domain.config import InitialWeights, TrainingConfig
from search.domain.network import NetworkSpec
from search.domain.space import Decisions
from search.models.zoo import initialise_weights
from search.pruning.apply import PrunedModel, apply_decisions, mask_of
from search.training.admm import PENALTY, Admm
from search.training.regulariser import Regulariser
from search.training.schedule import LearningRate
from search.training.sgd import SgdRun, SgdSettings, Watcher

#: The batch size that the published rates are for.
PUBLISHED_BATCH_SIZE = 512
REGULAR_EPOCHS = 120
ADMM_EPOCHS = 60
FT_EPOCHS = 60

#: The least sum of rate * penalty over the steps of ADMM. The published one is 7.5 on ImageNet. Far below, ADMM was as
#: good as none. small_cnn on the digits at half the channels and a density of 0.15, mean of three seeds on held-out
#: images: factor 0.05: 55.3 % without ADMM, 55.6 % with 0.0003, 71.9 % with 0.06, 39.7 % with 0.6; factor 0.2: 82.8 %
#: without, 83.0 % with 0.001, 92.9 % with 0.06, 97.4 % with 0.6.
MIN_PULL = 0.06

_WARM_UP_EPOCHS = 5
_REGULAR_RATE = 0.256
_WARM_UP_START = 0.001
_LATER_RATE = 0.005
_WEIGHT_DECAY = 1e-4
_LABEL_SMOOTHING = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class JcwPhases:
    """The settings of the three runs."""

    regular: SgdSettings
    admm: SgdSettings
    fine_tuning: SgdSettings


def jcw_phases(batch_size: int, factor: float) -> JcwPhases:
    """The published schedule (released res18-train.yaml), every length times `factor`.

    The cosine of the first stage begins after its warm-up (released utils/lr_scheduler.py); momentum is the plain one,
    not Nesterov's (released lib/Trainer/trainer.py). The released rate moves once in an epoch, this one with each step,
    as a shortened stage may be less than an epoch.
    """
    scale = batch_size / PUBLISHED_BATCH_SIZE
    common = SgdSettings(
        epochs=REGULAR_EPOCHS * factor,
        batch_size=batch_size,
        learning_rate=LearningRate(
            peak=_REGULAR_RATE * scale, warm_up=_WARM_UP_EPOCHS / REGULAR_EPOCHS, start=_WARM_UP_START * scale
        ),
        weight_decay=_WEIGHT_DECAY,
        is_nesterov=False,
        keeps_best_epoch=True,
    )
    return JcwPhases(
        regular=common,
        admm=replace(
            common,
            epochs=ADMM_EPOCHS * factor,
            learning_rate=LearningRate(peak=_LATER_RATE * scale, is_cosine=False),
            label_smoothing=_LABEL_SMOOTHING,
            keeps_best_epoch=False,
        ),
        fine_tuning=replace(
            common,
            epochs=FT_EPOCHS * factor,
            learning_rate=LearningRate(peak=_LATER_RATE * scale),
            weight_decay=0.0,
        ),
    )


def admm_penalty(learning_rate: float, num_steps: int) -> float:
    """The published penalty, or in a short run a larger one, so that the pull over all steps is at least `MIN_PULL`.

    A step moves weights by rate * penalty of their distance; the dual variable adds as much with each projection.
    """
    return max(PENALTY, MIN_PULL / (learning_rate * max(1, num_steps)))


def train_jcw(
    model: nn.Module,
    spec: NetworkSpec,
    decisions: Decisions,
    data: LoadedData,
    settings: TrainingConfig,
    generator: torch.Generator,
    *,
    watcher: Watcher | None = None,
    device: torch.device = CPU,
    on_admm: Callable[[float], None] | None = None,
) -> PrunedModel:
    """The network that `decisions` make of `model`, trained in JCW's three phases.

    The masks are those of the weights after ADMM; how many weights a layer keeps is as the decisions say. Without
    pruned weights there is no ADMM phase.

    Args:
        model: The unpruned network. It is not changed.
        spec: Its description.
        decisions: What is pruned.
        data: Images, normalisation and augmentation.
        settings: `batch_size`, `schedule_factor` and `initial_weights` are read.
        generator: Numbers are drawn from it, from which all randomness follows.
        watcher: As of one run. Each phase has a checkpoint of its own beside `checkpoint_path`.
        device: Where it is trained; what comes out is on the processor.
        on_admm: Told the part of the weights' norm that the masks cut off after ADMM.

    Raises what `search.training.finetuning.finetune` raises.
    """
    phases = jcw_phases(min(settings.batch_size, len(data.split.train)), settings.schedule_factor)
    thin = apply_decisions(model, spec, replace(decisions, pruning={}))
    seeds = [int(seed) for seed in torch.randint(0, 2**62, (4,), generator=generator)]
    if settings.initial_weights is InitialWeights.FRESH:
        initialise_weights(thin.model, torch.Generator().manual_seed(seeds[3]))

    def run(
        name: str, pruned: PrunedModel, phase: SgdSettings, seed: int, regulariser: Regulariser | None
    ) -> PrunedModel:
        named = None if watcher is None else watcher.for_phase(name)
        run = SgdRun(pruned, data, phase, seed, regulariser=regulariser, watcher=named, phase=name, device=device)
        return run.finish()

    trained = run("regular", thin, phases.regular, seeds[0], None)
    removed = spec.removed_ops(decisions.removed_blocks)
    pruning = {n: p for n, p in decisions.pruning.items() if p.scheme is not PruningScheme.DENSE and n not in removed}
    if pruning:
        steps = round(phases.admm.epochs * (len(data.split.train) // phases.admm.batch_size))
        penalty = admm_penalty(phases.admm.learning_rate.peak, steps)
        admm = Admm(pruning, period_steps=max(1, round(steps / ADMM_EPOCHS)), penalty=penalty)
        trained = run("admm", trained, phases.admm, seeds[1], admm)
        if on_admm is not None:
            on_admm(admm.relative_residual(trained.model))
    masks = {name: mask_of(trained.model.get_parameter(f"{name}.weight"), p) for name, p in pruning.items()}
    masked = replace(trained, masks=masks)
    masked.apply_masks()
    return run("fine-tuning", masked, phases.fine_tuning, seeds[2], None)
