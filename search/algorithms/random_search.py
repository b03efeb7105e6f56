"""Random search: the baseline that every method must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search.algorithms.base import SearcherState
from search.algorithms.history import History, check_told
from search.algorithms.sampling import draw_new, draw_uniform
from search.domain.space import Genome
from search.pareto import FloatArray
from search.problem import SearchProblem


class RandomSearcher:
    """Every gene uniformly, without repeating a genome. See `Searcher` for the contract."""

    METHOD = "random"

    def __init__(self, problem: SearchProblem, *, population: int, seed: int) -> None:
        space = problem.space
        self._problem = problem
        self._space = space
        self._population = population
        self._seed = seed
        self._history = History(method=self.METHOD, space=space, population=population, seed=seed)

    def ask(self) -> tuple[Genome, ...]:
        rng = np.random.default_rng([self._seed, self._history.generation])
        return draw_new(rng, self._space, self._population, self._history.seen, lambda: draw_uniform(rng, self._space))

    def tell(self, genomes: Sequence[Genome], objectives: FloatArray, violations: FloatArray) -> None:
        check_told(self._problem, genomes, objectives, violations)
        self._history.advance(genomes)

    def state(self) -> SearcherState:
        return self._history.to_json()

    def restore(self, state: SearcherState) -> None:
        self._history.restore(state)
