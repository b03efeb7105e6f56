"""Children that look good before they are evaluated: the operators run on guessed losses and known latencies.

Evaluating a candidate's accuracy takes seconds, its latency microseconds. So between two generations a small inner
evolution runs on a guess of every objective that costs something (`surrogate.AdditiveSurrogate`) and on the true value
of every one that does not. What comes out on its front is evaluated for good. This is surrogate-assisted evolution with
generation-based control (Y. Jin: Surrogate-assisted evolutionary computation, Swarm and Evolutionary Computation 1(2),
2011); a part of each generation still comes from the operators alone, so that a wrong guess cannot lead astray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from search.algorithms.base import SearcherState
from search.algorithms.sampling import genome_codes
from search.algorithms.surrogate import AdditiveSurrogate
from search.algorithms.told import MIN_TOLD, ToldFigures
from search.domain.space import Genome
from search.pareto import FloatArray, IntArray, non_domination_rank
from search.problem import SearchProblem

#: Generations of the inner evolution, and its children in each, relative to the number that is wanted.
_INNER_ROUNDS = 8
_INNER_CHILDREN = 2
#: Survivors of an inner generation, relative to the same number.
_INNER_POOL = 4

#: Children (k, v) of parents (n, v).
Breed = Callable[[IntArray], IntArray]


class Assistance:
    """Remembers every evaluated candidate and proposes new ones. The same calls give the same proposals."""

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem
        self._num_choices = problem.space.num_choices
        self._told = ToldFigures(problem.space.num_choices, len(problem.metrics))

    def learn(self, genomes: Sequence[Genome], objectives: FloatArray) -> None:
        """Note the objectives (n, m) of `genomes`; rows with a NaN teach nothing."""
        self._told.learn(genomes, objectives)

    def forget(self) -> None:
        """Drop all that was learnt: what follows is measured by another yardstick."""
        self._told.forget()

    @property
    def can_propose(self) -> bool:
        return len(self._told) >= MIN_TOLD

    def propose(self, rng: np.random.Generator, parents: IntArray, breed: Breed, count: int) -> IntArray:
        """At most `count` genomes (k, v) that were not told yet, from the front of the guesses."""
        guess = self._guesses()
        pool = np.unique(parents, axis=0)
        figures, excess = self._judged(pool, guess)
        for _ in range(_INNER_ROUNDS):
            places = rng.integers(0, len(pool), size=max(2, _INNER_CHILDREN * count))
            children = breed(pool[places])
            child_figures, child_excess = self._judged(children, guess)
            pool, first = np.unique(np.concatenate((pool, children)), axis=0, return_index=True)
            figures = np.concatenate((figures, child_figures))[first]
            excess = np.concatenate((excess, child_excess))[first]
            kept = _best(rng, figures, excess, _INNER_POOL * count)
            pool, figures, excess = pool[kept], figures[kept], excess[kept]
        new = np.array([code not in self._told for code in genome_codes(pool, self._num_choices)], dtype=bool)
        pool, figures, excess = pool[new], figures[new], excess[new]
        proposed: IntArray = pool[spread_over_fronts(figures, excess, count)]
        return proposed

    def to_json(self) -> SearcherState:
        return self._told.to_json()

    def restore(self, data: SearcherState) -> None:
        """Take over what `to_json` gave. Raises what `ToldFigures.restore` raises."""
        self._told.restore(data)

    def _guesses(self) -> dict[int, AdditiveSurrogate]:
        """A fitted guess for each objective that is not known for free."""
        genomes, values = self._told.genomes, self._told.rows
        guesses = {}
        for column, metric in enumerate(self._problem.metrics):
            if metric not in self._problem.known_metrics:
                guesses[column] = AdditiveSurrogate(self._problem.space)
                guesses[column].fit(genomes, values[:, column])
        return guesses

    def _judged(self, genomes: IntArray, guesses: dict[int, AdditiveSurrogate]) -> tuple[FloatArray, FloatArray]:
        """The objectives of `genomes`, known or guessed, and the violation of what is known to be bounded."""
        known = {} if self._problem.known is None else self._problem.known(genomes)
        columns = [
            guesses[column].predict(genomes) if column in guesses else known[metric]
            for column, metric in enumerate(self._problem.metrics)
        ]
        return np.column_stack(columns), self._problem.known_violations(genomes)


def _best(rng: np.random.Generator, figures: FloatArray, excess: FloatArray, count: int) -> IntArray:
    """Indices of the `count` rows of the best ranks; within the last one, any."""
    if len(figures) <= count:
        return np.arange(len(figures))
    ranks = non_domination_rank(figures, excess)
    return np.sort(np.lexsort((rng.random(len(ranks)), ranks))[:count])


def spread_over_fronts(figures: FloatArray, excess: FloatArray, count: int) -> IntArray:
    """At most `count` rows, front after front; of a front that is too long, evenly along its first objective."""
    chosen: list[int] = []
    ranks = non_domination_rank(figures, excess)
    for rank in range(int(ranks.max(initial=-1)) + 1):
        front = np.flatnonzero(ranks == rank)
        left = count - len(chosen)
        if len(front) > left:
            ordered = front[np.argsort(figures[front, 0], kind="stable")]
            front = ordered[np.unique(np.linspace(0, len(front) - 1, left).round().astype(np.int64))]
        chosen += [int(row) for row in front]
        if len(chosen) >= count:
            break
    return np.array(chosen, dtype=np.int64)
