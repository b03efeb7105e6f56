"""What every estimate of accuracy offers to a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from search.domain.space import Decisions
from search.evaluation import AccuracyEstimate

#: Called before each candidate; what it raises ends the estimation. So a search can be stopped within one.
OnCandidate = Callable[[], None]


def nothing() -> None:
    """An `OnCandidate` that does nothing."""


class AccuracyEstimator(Protocol):
    """Scores the candidates of a generation together, as some estimators learn from all of them at once."""

    def estimate(
        self, candidates: Sequence[Decisions], on_candidate: OnCandidate = nothing
    ) -> tuple[AccuracyEstimate, ...]:
        """An estimate for each of `candidates`, in their order. Equal calls give equal estimates on one machine."""
        ...
