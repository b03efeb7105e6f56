"""One-shot estimates by a crew of processes, each kept as soon as it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from device_agent.contracts import canonical_json, content_id
from search.accuracy.estimator import OnCandidate, OnProgress, failed, nothing, untold
from search.accuracy.one_shot import OneShotEstimator
from search.compute import CPU, gpu
from search.data.batches import Normalisation
from search.data.dataset import ImageData
from search.domain.network import NetworkSpec
from search.domain.space import Decisions
from search.evaluation import AccuracyEstimate
from search.parallel.crew import Contact, Crew, Do, Lost, work_through

#: A candidate, and on how many of the held-out images it is judged.
OneShotPiece = tuple[Decisions, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OneShotWork:
    """What each process of the crew needs for one-shot estimates: see `OneShotEstimator`.

    `threads` is set for torch in each process; None leaves it as it is. Other numbers of threads may add up in another
    order, and differ in the last bits; so does a GPU, which each process takes for its own with `uses_gpu`.
    """

    model: nn.Module
    spec: NetworkSpec
    calibration: ImageData
    holdout: ImageData
    normalise: Normalisation
    batch_size: int
    threads: int | None = None
    uses_gpu: bool = False

    def __call__(self) -> Do:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        device = gpu() if self.uses_gpu else CPU
        estimators: dict[int, OneShotEstimator] = {}

        def estimate(piece: OneShotPiece, contact: Contact) -> AccuracyEstimate:
            decisions, images = piece
            if images not in estimators:
                estimators[images] = OneShotEstimator(
                    self.model,
                    self.spec,
                    self.calibration,
                    self.holdout.evenly(images),
                    self.normalise,
                    batch_size=self.batch_size,
                    device=device,
                )
            return estimators[images].estimate([decisions])[0]

        return estimate


class EstimateLog(Protocol):
    """Where finished estimates are kept, by the key that `estimate_key` gives."""

    def known(self, keys: Sequence[str]) -> Mapping[str, AccuracyEstimate]:
        """Those of `keys` that are finished."""
        ...

    def record(self, key: str, estimate: AccuracyEstimate) -> None: ...


def estimate_key(decisions: Decisions, images: int) -> str:
    """What an estimate depends on within one search."""
    return content_id("e", [canonical_json(decisions), images])


class CrewEstimator:
    """An `AccuracyEstimator` whose candidates are judged by a crew that was prepared with `OneShotWork`.

    Args:
        crew: It stays open.
        log: What it knows is not estimated again.
        images: How many held-out images are used.
    """

    def __init__(self, crew: Crew, log: EstimateLog, images: int) -> None:
        self._crew = crew
        self._log = log
        self._images = images

    def estimate(
        self, candidates: Sequence[Decisions], on_candidate: OnCandidate = nothing, on_progress: OnProgress = untold
    ) -> tuple[AccuracyEstimate, ...]:
        """See `AccuracyEstimator`. What the log knows counts as done in `on_progress`."""
        keys = [estimate_key(decisions, self._images) for decisions in candidates]
        found = dict(self._log.known(keys))
        by_key = dict(zip(keys, candidates, strict=True))
        missing = [key for key in by_key if key not in found]
        on_progress(len(found), len(by_key))

        def keep(index: int, result: AccuracyEstimate | Lost) -> None:
            if isinstance(result, Lost):
                result = failed(result.reason)
            self._log.record(missing[index], result)
            found[missing[index]] = result
            on_progress(len(found), len(by_key))

        pieces = [(by_key[key], self._images) for key in missing]
        work_through(self._crew, pieces, on_result=keep, check=on_candidate)
        return tuple(found[key] for key in keys)
