"""What every search method offers, and how one is made by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from search.domain.space import Genome
from search.pareto import FloatArray

#: JSON-compatible: strings, finite numbers, None, lists and objects with string keys.
SearcherState = dict[str, Any]


class Searcher(Protocol):
    """Proposes genomes and learns from their objectives. Owned by one thread.

    Everything is determined by the constructor's arguments and the calls of `tell`: randomness is derived from the seed
    and the number of the generation, so `ask` changes nothing and gives the same genomes until the next `tell`.
    A searcher restored from `state()`, also after a trip through JSON, continues exactly as the original would.
    """

    def ask(self) -> tuple[Genome, ...]:
        """The next generation to evaluate: genomes of the space, distinct and never told before.

        At most as many as the population; fewer, and at last none, when the space is used up.
        """
        ...

    def tell(self, genomes: Sequence[Genome], objectives: FloatArray, violations: FloatArray) -> None:
        """Learn the figures of `genomes` and go on to the next generation.

        `objectives` is (n, m), minimised; a row with a value that is not finite ranks behind all others. `violations`
        is (n,), the sum of relative excesses over the constraints, 0 where feasible: feasible genomes always rank
        before infeasible ones. The genomes may be others than those asked for, for example known good ones.

        Raises `ContractError` on genomes outside the space, and `ValueError` on shapes that do not fit.
        """
        ...

    def state(self) -> SearcherState:
        """All that has been learnt, as JSON-compatible data."""
        ...

    def restore(self, state: SearcherState) -> None:
        """Take over a state. Raises `ContractError` where it belongs to another method, seed, size or space."""
        ...


@runtime_checkable
class PopulationSearcher(Searcher, Protocol):
    """A searcher whose next proposals depend on the figures of a few survivors, which may be told anew.

    Estimators that learn from a generation give scores that compare within it only. So before each `tell` the survivors
    are scored again together with the new genomes.
    """

    def survivors(self) -> tuple[Genome, ...]:
        """The genomes that proposals depend on, distinct; none before the first `tell`."""
        ...

    def rescore(self, genomes: Sequence[Genome], objectives: FloatArray, violations: FloatArray) -> None:
        """Replace the figures of `genomes`, which are those of `survivors`, in their order. Shapes as in `tell`.

        Called after `ask` and before the `tell` of the same generation, or between generations. Figures of all other
        genomes are forgotten.
        """
        ...


@runtime_checkable
class RecallingSearcher(PopulationSearcher, Protocol):
    """A population searcher that learns from all that it was told, not from its survivors alone."""

    def recall(self, genomes: Sequence[Genome], objectives: FloatArray) -> None:
        """Learn figures again that `rescore` forgot, because they still compare. Shapes as in `tell`."""
        ...


@runtime_checkable
class ReportingSearcher(Searcher, Protocol):
    """A searcher that has more to tell than its front."""

    def report(self) -> tuple[str, ...]:
        """Lines for the user, when the search has ended."""
        ...
