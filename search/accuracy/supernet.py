"""JCW's estimate of accuracy: candidates of a generation share the weights of one network, trained for them alone.

T. Zhao et al., arXiv 2110.08013; the released code's lib/ModelEvaluation/ps_evaluator.py is the specification. For each
generation: fresh weights; channel numbers are trained (CNS phase), each step on one candidate drawn uniformly; then
with each candidate's zeros as well (WP phase), chosen anew in every step by the live weights; then every candidate is
judged with batch norm adapted to it, and the weights are thrown away. So scores compare within a generation only.

Deviations from the released code, and why:
- Lengths are shortened by one factor; the rate is for batches of 256 and is scaled with the batch size.
- Batch norm is adapted on fixed images without augmentation, so that equal networks get equal statistics.
- Statistics of batch norm are not kept during training: they are replaced before each evaluation, so they have no
  effect on scores in the released code either.
- Blocks may be removed and resolutions differ as well: a form without a block goes through its shortcut.
- A ResNet's widths need not be tied by hand: every group that was proved on the network is sliced.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from device_agent.contracts import PruningScheme
from search.accuracy.estimator import OnCandidate, OnProgress, estimate_or_failure, nothing, untold
from search.accuracy.slicing import SlicedNetwork, live_mask
from search.data.batches import as_tensors, augment, network_input
from search.data.dataset import ImageData
from search.data.loading import LoadedData
from search.domain.network import NetworkSpec
from search.domain.space import Decisions
from search.errors import SearchError
from search.evaluation import AccuracyEstimate, evaluate, logits_of, recalibrate_batch_norm
from search.lowering import lower
from search.models.zoo import initialise_weights
from search.pruning.apply import PrunedModel
from search.pruning.channels import remove_channels
from search.pruning.depth import remove_blocks
from search.tasks.base import task_of
from search.training.schedule import LearningRate

CNS_EPOCHS = 10
WP_EPOCHS = 20
#: The batch size that the published rate is for.
PUBLISHED_BATCH_SIZE = 256

_RATE = 0.1
_MOMENTUM = 0.9
_WEIGHT_DECAY = 4e-5


class SupernetEstimator:
    """Trains and discards one network with shared weights for each generation. See `GenerationEstimator`.

    Args:
        model: The unpruned network, for its structure; its weights are not used.
        spec: Its description.
        data: Training and calibration images.
        evaluation: Images for accuracy and loss; none of the test set, and none that is trained on.
        seed: All randomness follows from it and the generation's number.
        schedule_factor: Part of the published 10 and 20 epochs, in (0, 1].
        batch_size: Images at a time, in training and evaluation.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: NetworkSpec,
        data: LoadedData,
        evaluation: ImageData,
        *,
        seed: int,
        schedule_factor: float,
        batch_size: int,
    ) -> None:
        self._spec = spec
        self._data = data
        self._evaluation = evaluation
        self._seed = seed
        self._factor = schedule_factor
        self._images, self._labels = as_tensors(data.split.train)
        self._calibration, _ = as_tensors(data.split.calibration)
        self._batch_size = min(batch_size, len(self._images))
        self._network = SlicedNetwork(model, spec)
        self._network.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def estimate_generation(
        self,
        candidates: Sequence[Decisions],
        generation: int,
        on_candidate: OnCandidate = nothing,
        on_progress: OnProgress = untold,
    ) -> tuple[AccuracyEstimate, ...]:
        """Accuracy and loss of each candidate; `on_candidate` is also called between steps of training, and
        `on_progress` counts these.

        Raises `SearchError` where the training diverges, `ContractError` where decisions do not fit the network.
        """
        for decisions in candidates:
            lower(self._spec, decisions)
        if not candidates:
            return ()
        initialise_weights(self._network.model, _generator(self._seed, generation, 1))
        num_steps = [self._num_steps(epochs) for epochs in (CNS_EPOCHS, WP_EPOCHS)]
        done = itertools.count(1)

        def on_step() -> None:
            on_candidate()
            on_progress(next(done), sum(num_steps))

        for phase, count in enumerate(num_steps):
            self._train(candidates, generation, on_step, phase=phase, num_steps=count)
        estimates = []
        for decisions in candidates:
            on_candidate()
            estimates.append(estimate_or_failure(lambda decisions=decisions: self._judged(decisions)))  # type: ignore[misc]
        return tuple(estimates)

    def _num_steps(self, epochs: float) -> int:
        """Of a phase whose published length is `epochs`."""
        return max(1, round(epochs * self._factor * (len(self._images) // self._batch_size)))

    def _train(
        self,
        candidates: Sequence[Decisions],
        generation: int,
        on_step: Callable[[], None],
        *,
        phase: int,
        num_steps: int,
    ) -> None:
        """One phase: fresh SGD, a cosine to zero, one candidate a step; with masks in phase 1."""
        steps_per_epoch = len(self._images) // self._batch_size
        rate = LearningRate(peak=_RATE * self._batch_size / PUBLISHED_BATCH_SIZE)
        optimizer = _sgd(self._network.model)
        drawn = np.random.default_rng([self._seed, generation, 2 + phase]).integers(len(candidates), size=num_steps)
        order = torch.empty(0)
        for step in range(num_steps):
            epoch, index = divmod(step, steps_per_epoch)
            generator = _generator(self._seed, generation, 4 + phase, epoch, 1 + index)
            if index == 0:
                order = torch.randperm(len(self._images), generator=generator)
            chosen = order[index * self._batch_size : (index + 1) * self._batch_size]
            images = augment(self._images[chosen], self._data.augmentation, generator)
            for group in optimizer.param_groups:
                group["lr"] = rate.at(step, num_steps)
            # Dropout draws from the generator that all of torch shares.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(0, 2**62, (), generator=generator)))
                loss = self._loss(candidates[int(drawn[step])], images, self._labels[chosen], with_masks=phase == 1)
            value = loss.item()
            if not math.isfinite(value):
                raise SearchError(
                    f"the supernet of generation {generation} diverged: its loss is {value} at step {step} of "
                    f"{num_steps}. Use smaller batches (accuracy.batch_size), which are trained at a smaller rate"
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            on_step()

    def _loss(self, decisions: Decisions, images: Tensor, labels: Tensor, *, with_masks: bool) -> Tensor:
        self._network.select(decisions, with_masks=with_masks)
        x = network_input(images, self._data.normalise, decisions.resolution)
        return task_of(self._data.split.train).training_loss(logits_of(self._network.form, x), labels)

    def _judged(self, decisions: Decisions) -> AccuracyEstimate:
        """Accuracy and loss with the batch norm of this candidate."""
        pruned = self.extracted(decisions)
        model = pruned.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        recalibrate_batch_norm(
            model,
            self._calibration,
            self._data.normalise,
            resolution=pruned.resolution,
            batch_size=self._batch_size,
        )
        return evaluate(
            model,
            self._evaluation,
            self._data.normalise,
            resolution=pruned.resolution,
            batch_size=self._batch_size,
        )

    def extracted(self, decisions: Decisions) -> PrunedModel:
        """The candidate as a network of its own, with the shared weights as they are now."""
        kept = self._network.kept(decisions)
        removed = self._spec.removed_ops(decisions.removed_blocks)
        model = remove_blocks(remove_channels(self._network.model, self._spec, kept), decisions.removed_blocks)
        masks = {
            name: live_mask(model.get_parameter(f"{name}.weight").detach(), pruning)
            for name, pruning in decisions.pruning.items()
            if pruning.scheme is not PruningScheme.DENSE and name not in removed
        }
        pruned = PrunedModel(model=model.eval(), masks=masks, kept=kept, resolution=decisions.resolution)
        pruned.apply_masks()
        return pruned


def _sgd(model: nn.Module) -> torch.optim.SGD:
    """Released code (ps_evaluator.py): plain momentum 0.9, weight decay 4e-5 but for biases and batch norm."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": _WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=_RATE, momentum=_MOMENTUM)


def _generator(*parts: int) -> torch.Generator:
    """Randomness that follows from `parts` alone. The last must not be 0, which SeedSequence cannot tell from none."""
    state = np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
