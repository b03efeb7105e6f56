"""What every estimate of accuracy offers to a search."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from device_agent.contracts import ContractError
from search.domain.space import Decisions
from search.errors import SearchError
from search.evaluation import AccuracyEstimate

#: Called before each candidate; what it raises ends the estimation. So a search can be stopped within one.
OnCandidate = Callable[[], None]

#: Called with how much of an estimation's work is done, and how much there is: candidates, or steps of training.
OnProgress = Callable[[int, int], None]


def nothing() -> None:
    """An `OnCandidate` that does nothing."""


def untold(done: int, total: int) -> None:
    """An `OnProgress` that does nothing."""


def estimate_or_failure(estimate: Callable[[], AccuracyEstimate]) -> AccuracyEstimate:
    """What `estimate` gives; where it raises, or gives no finite loss, the reason as the estimate's failure.

    One candidate that cannot be judged must not end a search. Errors that no candidate can cause (a full disk, an
    interruption) come through.
    """
    try:
        found = estimate()
    except (SearchError, ContractError, ArithmeticError, ValueError, RuntimeError) as error:
        return failed(f"{type(error).__name__}: {error}")
    if found.failure is None and not (math.isfinite(found.loss) and math.isfinite(found.accuracy)):
        return failed(
            f"the loss is {found.loss} and the accuracy {found.accuracy}: the network's outputs are no numbers"
        )
    return found


def failed(reason: str) -> AccuracyEstimate:
    """No estimate, for `reason`."""
    return AccuracyEstimate(accuracy=math.nan, loss=math.nan, failure=reason)


@runtime_checkable
class AccuracyEstimator(Protocol):
    """Scores the candidates of a generation together, as some estimators learn from all of them at once."""

    def estimate(
        self, candidates: Sequence[Decisions], on_candidate: OnCandidate = nothing, on_progress: OnProgress = untold
    ) -> tuple[AccuracyEstimate, ...]:
        """An estimate for each of `candidates`, in their order. Equal calls give equal estimates on one machine.

        What goes wrong with one candidate is the `failure` of its estimate (see `estimate_or_failure`).
        """
        ...


class GenerationEstimator(Protocol):
    """Scores that compare within one call only, as whatever gives them is made for that generation and discarded."""

    def estimate_generation(
        self,
        candidates: Sequence[Decisions],
        generation: int,
        on_candidate: OnCandidate = nothing,
        on_progress: OnProgress = untold,
    ) -> tuple[AccuracyEstimate, ...]:
        """An estimate for each of `candidates`, survivors of earlier generations included, in their order.

        Equal calls give equal estimates on one machine; failures are as in `AccuracyEstimator`.
        """
        ...
