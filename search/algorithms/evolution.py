"""The frame of the evolutionary methods: a population, new genomes from it, and who survives.

A method adds two functions: `_offspring` and `_survivors`. Genomes are never proposed twice, neither within a
generation nor over the whole search: in searches of a few hundred evaluations each counts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from device_agent.contracts import ContractError
from search.algorithms.base import SearcherState
from search.algorithms.history import History, check_survivors, check_told
from search.algorithms.sampling import draw_at_level, draw_new, genome_code, initial_genomes
from search.domain.space import Genome
from search.json_numbers import finite_or_none, number_or
from search.pareto import FloatArray, IntArray
from search.problem import SearchProblem

#: How often mating is repeated to replace children that are known already, before new genomes are drawn instead.
#: (JCW's reference allows 16 attempts as well.)
_MATING_ROUNDS = 16

#: Which of a generation's two random streams: proposing, or choosing survivors.
_ASKING, _TELLING = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """Genomes (n, v) as choice indices, with objectives (n, m) and violations (n,). NaN rows are undefined points."""

    genomes: IntArray
    objectives: FloatArray
    violations: FloatArray

    def __len__(self) -> int:
        return len(self.genomes)

    def take(self, indices: IntArray) -> Population:
        return Population(
            genomes=self.genomes[indices], objectives=self.objectives[indices], violations=self.violations[indices]
        )

    def joined(self, other: Population) -> Population:
        return Population(
            genomes=np.concatenate((self.genomes, other.genomes)),
            objectives=np.concatenate((self.objectives, other.objectives)),
            violations=np.concatenate((self.violations, other.violations)),
        )


class EvolutionarySearcher(ABC):
    """See `Searcher` for the contract. Subclasses hold no state of their own that `ask` or `tell` change."""

    METHOD: str

    def __init__(self, problem: SearchProblem, *, population: int, seed: int) -> None:
        space = problem.space
        self._problem = problem
        self._space = space
        self._size = population
        self._seed = seed
        self._history = History(method=self.METHOD, space=space, population=population, seed=seed)
        self._population: Population | None = None

    @abstractmethod
    def _offspring(self, rng: np.random.Generator, parents: Population) -> IntArray:
        """Children (k, v) of `parents`, k >= 1, inside the space, the first ones preferred; some may be known."""

    @abstractmethod
    def _survivors(self, rng: np.random.Generator, pool: Population, count: int) -> IntArray:
        """Which `count` of the `pool` live on: indices, distinct. The pool has more than `count`."""

    def ask(self) -> tuple[Genome, ...]:
        rng = self._rng(_ASKING)
        if self._population is None:
            return initial_genomes(rng, self._space, self._size)
        num_choices = self._space.num_choices
        seen = self._history.seen
        found: dict[str, Genome] = {}
        for _ in range(_MATING_ROUNDS):
            for child in self._offspring(rng, self._population).tolist():
                genome = tuple(child)
                code = genome_code(genome, num_choices)
                if code not in seen and len(found) < self._size:
                    found.setdefault(code, genome)
            if len(found) == self._size:
                break
        missing = self._size - len(found)
        drawn = draw_new(
            rng,
            self._space,
            missing,
            seen | dict.fromkeys(found),
            lambda: draw_at_level(rng, self._space, float(rng.random())),
        )
        return (*found.values(), *drawn)

    def tell(self, genomes: Sequence[Genome], objectives: FloatArray, violations: FloatArray) -> None:
        values, excess = check_told(self._problem, genomes, objectives, violations)
        told = Population(
            genomes=np.array(genomes, dtype=np.int64).reshape(len(genomes), len(self._space.num_choices)),
            objectives=values,
            violations=excess,
        )
        pool = told if self._population is None else self._population.joined(told)
        if len(pool) > self._size:
            pool = pool.take(np.sort(self._survivors(self._rng(_TELLING), pool, self._size)))
        self._population = pool if len(pool) else None
        self._history.advance(genomes)

    def survivors(self) -> tuple[Genome, ...]:
        if self._population is None:
            return ()
        return tuple(dict.fromkeys(tuple(int(gene) for gene in row) for row in self._population.genomes))

    def rescore(self, genomes: Sequence[Genome], objectives: FloatArray, violations: FloatArray) -> None:
        values, excess = check_told(self._problem, genomes, objectives, violations)
        rows = check_survivors(genomes, self.survivors())
        if self._population is not None:
            places = [rows[tuple(int(gene) for gene in row)] for row in self._population.genomes]
            self._population = Population(
                genomes=self._population.genomes, objectives=values[places], violations=excess[places]
            )

    def state(self) -> SearcherState:
        state = self._history.to_json()
        if self._population is not None:
            state["individuals"] = [
                {
                    "genome": [int(gene) for gene in genome],
                    "objectives": [finite_or_none(v) for v in values],
                    "violation": finite_or_none(excess),
                }
                for genome, values, excess in zip(
                    self._population.genomes, self._population.objectives, self._population.violations, strict=True
                )
            ]
        return state

    def restore(self, state: SearcherState) -> None:
        population = _population_of(state.get("individuals"), self._problem)
        self._history.restore(state)
        self._population = population

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, self._history.generation, stream])


def _population_of(individuals: Any, problem: SearchProblem) -> Population | None:
    if individuals is None:
        return None
    try:
        genomes = [tuple(int(gene) for gene in i["genome"]) for i in individuals]
        objectives = np.array([[number_or(v) for v in i["objectives"]] for i in individuals], dtype=np.float64)
        violations = np.array([number_or(i["violation"]) for i in individuals], dtype=np.float64)
        values, excess = check_told(problem, genomes, objectives, violations)
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(f"the stored state of the searcher is damaged: {error!r}") from None
    return Population(genomes=np.array(genomes, dtype=np.int64), objectives=values, violations=excess)
