"""Any method, started from the exact front of estimated errors beside its own first candidates."""

from __future__ import annotations

from collections.abc import Sequence

from device_agent.contracts import ContractError
from search.algorithms.base import PopulationSearcher, SearcherState
from search.algorithms.exact_search import ExactSearcher
from search.domain.space import Genome
from search.pareto import FloatArray
from search.problem import SearchProblem

#: The part of the first generation that is the exact front's; the rest is the method's own, spread over the space.
SEEDED_PART = 0.5


class SeededSearcher:
    """Asks for half a generation of the exact front's points first, and leaves all else to `searcher`.

    See `Searcher` for the contract; methods take genomes that they did not ask for.

    Raises `ContractError` where the problem has no error estimates, or where `ExactSearcher` cannot work on it.
    """

    def __init__(self, searcher: PopulationSearcher, problem: SearchProblem, *, population: int, seed: int) -> None:
        if not problem.errors:
            raise ContractError(
                "seed_with 'exact' starts from estimated errors of layers, but this problem has none: give "
                "SearchProblem.errors, or leave seed_with out"
            )
        self._searcher = searcher
        self._population = population
        self._exact = ExactSearcher(problem, population=population, seed=seed)
        self._first: tuple[Genome, ...] | None = None

    def ask(self) -> tuple[Genome, ...]:
        if self._searcher.state()["generation"] > 0:
            return self._searcher.ask()
        if self._first is None:
            seeds = self._exact.ask()
            step = max(1, round(1 / SEEDED_PART))
            mixed = dict.fromkeys((*seeds[::step], *self._searcher.ask()))
            self._first = tuple(mixed)[: self._population]
        return self._first

    def tell(self, genomes: Sequence[Genome], objectives: FloatArray, violations: FloatArray) -> None:
        self._searcher.tell(genomes, objectives, violations)

    def survivors(self) -> tuple[Genome, ...]:
        return self._searcher.survivors()

    def rescore(self, genomes: Sequence[Genome], objectives: FloatArray, violations: FloatArray) -> None:
        self._searcher.rescore(genomes, objectives, violations)

    def state(self) -> SearcherState:
        return {**self._searcher.state(), "seed_with": ExactSearcher.METHOD}

    def restore(self, state: SearcherState) -> None:
        if state.get("seed_with") != ExactSearcher.METHOD:
            raise ContractError(
                f"the stored state has seed_with {state.get('seed_with')!r}, but this searcher has 'exact': continue "
                "with the config that the search began with"
            )
        self._searcher.restore(state)
