"""Accuracy of a candidate without training it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import nn

from device_agent.contracts import ContractError
from search.accuracy.estimator import OnCandidate, OnProgress, estimate_or_failure, nothing, untold
from search.compute import CPU
from search.data.batches import Normalisation, as_tensors
from search.data.dataset import ImageData
from search.domain.network import NetworkSpec
from search.domain.space import Decisions
from search.evaluation import EVALUATION_BATCH, AccuracyEstimate, evaluate, recalibrate_batch_norm
from search.pruning.apply import apply_decisions


class OneShotEstimator:
    """Prunes the trained network, adapts its batch norm, and tests it on held-out images.

    This is AACP's pruned structure accuracy estimator (arXiv 2102.00390) with EagleEye's adaptive batch norm (arXiv
    2007.02491). Unlike AACP's code it averages the statistics plainly over fixed images without augmentation, and never
    sees the test set.

    Args:
        model: The trained, unpruned network. It is not changed, and must not change while the estimator is used.
        spec: Its description.
        calibration: Images for batch norm.
        evaluation: Images for accuracy and loss; none of the test set, and none of `calibration`.
        normalise: As in training.
        batch_size: Images at a time, for both. Batches of calibration define the statistics and so the estimate.
        device: Where pruned networks run.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: NetworkSpec,
        calibration: ImageData,
        evaluation: ImageData,
        normalise: Normalisation,
        *,
        batch_size: int = EVALUATION_BATCH,
        device: torch.device = CPU,
    ) -> None:
        if batch_size < 1:
            raise ContractError(f"batch_size {batch_size!r} must be at least 1")
        normalise.check(calibration)
        normalise.check(evaluation)
        self._model = model
        self._spec = spec
        self._calibration, _ = as_tensors(calibration)
        self._evaluation = evaluation
        self._normalise = normalise
        self._batch_size = batch_size
        self._device = device

    def estimate(
        self, candidates: Sequence[Decisions], on_candidate: OnCandidate = nothing, on_progress: OnProgress = untold
    ) -> tuple[AccuracyEstimate, ...]:
        """Accuracy and loss of each candidate before any fine-tuning; decisions that do not fit are failures."""
        estimates: list[AccuracyEstimate] = []
        for decisions in candidates:
            on_candidate()
            on_progress(len(estimates), len(candidates))
            estimates.append(estimate_or_failure(functools.partial(self._estimate, decisions)))
        return tuple(estimates)

    def _estimate(self, decisions: Decisions) -> AccuracyEstimate:
        pruned = apply_decisions(self._model, self._spec, decisions)
        model = pruned.model.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        recalibrate_batch_norm(
            model,
            self._calibration,
            self._normalise,
            resolution=pruned.resolution,
            batch_size=self._batch_size,
        )
        return evaluate(
            model,
            self._evaluation,
            self._normalise,
            resolution=pruned.resolution,
            batch_size=self._batch_size,
        )
