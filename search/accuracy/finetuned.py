"""Accuracy of a candidate after a short fine-tuning, with weights inherited from the nearest one that was tuned before.

Wang et al. (arXiv 2010.04879) collect accuracies by iterative pruning and fine-tuning: each network of a chain starts
from the weights of the one before. inferred: the length of the fine-tuning, equal for all points so that they compare.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import nn

from device_agent.contracts import canonical_json, content_id
from search.accuracy.estimator import OnCandidate, OnProgress, estimate_or_failure, nothing, untold
from search.data.dataset import ImageData
from search.data.loading import LoadedData
from search.domain.config import TrainingConfig
from search.domain.network import NetworkSpec
from search.domain.space import Decisions
from search.evaluation import EVALUATION_BATCH, AccuracyEstimate, evaluate
from search.models.checkpoint import load_checkpoint, write_tensors
from search.pruning.apply import apply_decisions
from search.pruning.embedding import embed
from search.training.finetuning import finetune
from search.training.sgd import Watcher


@dataclass(slots=True, eq=False, kw_only=True)
class FinetunedEstimator:
    """Fine-tunes each candidate for `settings.epochs` and tests it on held-out images.

    Tuned weights are kept in `folder`, with what they gave: candidates that are asked for again are read back, so a
    search that was stopped within a generation goes on as if it had not been. If the folder is lost, `known` (all
    candidates of earlier generations, in the order in which they were asked for) is tuned again first.

    Args:
        model: The trained, unpruned network.
        spec: Its description.
        data: Training images, normalisation and augmentation.
        evaluation: Images for accuracy and loss; none of the test set.
        settings: Length and rates of each fine-tuning.
        seed: All fine-tunings see the same images in the same order.
        folder: Of this search alone.
        on_tuned: Is called when what a fine-tuning gave is in `folder`.
    """

    model: nn.Module
    spec: NetworkSpec
    data: LoadedData
    evaluation: ImageData
    settings: TrainingConfig
    seed: int
    folder: Path
    on_tuned: Callable[[], None] = nothing
    known: Sequence[Decisions] = ()
    batch_size: int = EVALUATION_BATCH
    _tuned: list[Decisions] = field(default_factory=list)

    def estimate(
        self, candidates: Sequence[Decisions], on_candidate: OnCandidate = nothing, on_progress: OnProgress = untold
    ) -> tuple[AccuracyEstimate, ...]:
        """Accuracy and loss of each candidate after its fine-tuning."""
        for decisions in self.known[len(self._tuned) :]:
            self._one(decisions, on_candidate)
        estimates: list[AccuracyEstimate] = []
        for decisions in candidates:
            on_progress(len(estimates), len(candidates))
            estimates.append(self._one(decisions, on_candidate))
        return tuple(estimates)

    def _one(self, decisions: Decisions, on_candidate: OnCandidate) -> AccuracyEstimate:
        on_candidate()
        found = estimate_or_failure(lambda: self._estimate(decisions, on_candidate))
        self._tuned.append(decisions)
        return found

    def _estimate(self, decisions: Decisions, on_step: OnCandidate) -> AccuracyEstimate:
        path = self._path(decisions)
        if path.exists():
            return _read_estimate(path)
        pruned = apply_decisions(self._ancestor(decisions), self.spec, decisions)
        tuned = finetune(
            pruned,
            self.data,
            self.settings,
            torch.Generator().manual_seed(self.seed),
            watcher=Watcher(on_step=on_step),
        )
        estimate = evaluate(
            tuned.model,
            self.evaluation,
            self.data.normalise,
            resolution=tuned.resolution,
            batch_size=self.batch_size,
        )
        embedded = embed(tuned, self.model, self.spec)
        tensors = {name: tensor.contiguous().clone() for name, tensor in embedded.state_dict().items()}
        write_tensors(path, tensors, {"estimate": json.dumps([estimate.accuracy, estimate.loss])})
        self.on_tuned()
        return estimate

    def _ancestor(self, decisions: Decisions) -> nn.Module:
        """The nearest network that has all that `decisions` keep; the unpruned one where none was tuned."""
        best: tuple[float, Decisions] | None = None
        for other in self._tuned:
            if _contains(other, decisions, self.spec) and self._path(other).exists():
                distance = _size(other, self.spec) - _size(decisions, self.spec)
                if best is None or distance < best[0]:
                    best = (distance, other)
        if best is None:
            return self.model
        ancestor = copy.deepcopy(self.model)
        load_checkpoint(ancestor, self._path(best[1]))
        return ancestor

    def _path(self, decisions: Decisions) -> Path:
        key = content_id("f", [canonical_json(decisions), canonical_json(self.settings), self.seed])
        return self.folder / f"{key}.safetensors"


def _read_estimate(path: Path) -> AccuracyEstimate:
    with safe_open(path, "pt") as file:
        accuracy, loss = json.loads((file.metadata() or {})["estimate"])
    return AccuracyEstimate(accuracy=float(accuracy), loss=float(loss))


def _contains(larger: Decisions, smaller: Decisions, spec: NetworkSpec) -> bool:
    """Whether `smaller` can be had by pruning `larger` further, without weights that went to zero coming back."""
    counts = all(
        smaller.channels.get(group.name, group.channels) <= larger.channels.get(group.name, group.channels)
        for group in spec.groups
    )
    zeros = all(
        p.density >= 1.0 or (name in smaller.pruning and smaller.pruning[name] == p)
        for name, p in larger.pruning.items()
    )
    sides = larger.resolution is None or (smaller.resolution is not None and smaller.resolution <= larger.resolution)
    return counts and zeros and sides and set(larger.removed_blocks) <= set(smaller.removed_blocks)


def _size(decisions: Decisions, spec: NetworkSpec) -> float:
    """How much is left, each dimension as a part: what decides which ancestor is nearest."""
    channels = [decisions.channels.get(g.name, g.channels) / g.channels for g in spec.groups]
    blocks = 1.0 - len(decisions.removed_blocks) / max(1, len(spec.blocks))
    side = 1.0 if decisions.resolution is None else decisions.resolution / spec.plan.input_shape[1]
    return float(np.mean(channels) if channels else 1.0) + blocks + side
