"""NSGA-II by pymoo: the baseline that everybody knows.

K. Deb, A. Pratap, S. Agarwal, T. Meyarivan: A fast and elitist multiobjective genetic algorithm: NSGA-II, IEEE
Transactions on Evolutionary Computation 6(2), 2002, doi:10.1109/4235.996017. Selection, crossover, mutation and
survival are pymoo's (J. Blank, K. Deb, IEEE Access 8, 2020, doi:10.1109/ACCESS.2020.2990567). pymoo's algorithm object
can only be stored as a pickle, so it is not used: each generation applies the operators to the population as arrays,
with a generator derived from the seed. The first generation is the same as JCW's (`sampling.initial_genomes`), and
known genomes are not proposed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import binary_tournament
from pymoo.core.population import Population as PymooPopulation
from pymoo.core.problem import Problem
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.selection.tournament import TournamentSelection
from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

from search.algorithms.evolution import EvolutionarySearcher, Population
from search.pareto import IntArray
from search.problem import SearchProblem

#: pymoo's own recommendation for integer variables ("Discrete Variables" in its guide): a small index, so that steps
#: survive rounding.
_DISTRIBUTION_INDEX = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """What pymoo's tournament reads from the algorithm object."""

    tournament_type: str
    random_state: np.random.Generator


class Nsga2Searcher(EvolutionarySearcher):
    """See `Searcher` for the contract."""

    METHOD = "nsga2"

    def __init__(self, problem: SearchProblem, *, population: int, seed: int) -> None:
        super().__init__(problem, population=population, seed=seed)
        self._upper = np.array(problem.space.num_choices, dtype=np.int64) - 1
        self._selection = TournamentSelection(func_comp=binary_tournament)
        self._crossover = SBX(prob=1.0, eta=_DISTRIBUTION_INDEX, vtype=float, repair=RoundingRepair())
        self._mutation = PM(prob=1.0, eta=_DISTRIBUTION_INDEX, vtype=float, repair=RoundingRepair())

    def _offspring(self, rng: np.random.Generator, parents: Population) -> IntArray:
        problem = self._pymoo_problem(parents)
        # Survival of all ranks them, and sets the crowding that the tournament reads.
        population = self._survive(problem, self._as_pymoo(parents), len(parents), rng)
        mates = self._selection(
            problem,
            population,
            (self._size + 1) // 2,
            n_parents=2,
            algorithm=_Settings(tournament_type="comp_by_dom_and_crowding", random_state=rng),
            random_state=rng,
        )
        children = self._crossover(problem, mates, random_state=rng)
        children = self._mutation(problem, children, random_state=rng)
        genomes: IntArray = np.clip(np.rint(children.get("X").astype(np.float64)), 0, self._upper).astype(np.int64)
        return genomes

    def _survivors(self, rng: np.random.Generator, pool: Population, count: int) -> IntArray:
        survivors = self._survive(self._pymoo_problem(pool), self._as_pymoo(pool), count, rng)
        return np.array([int(i) for i in survivors.get("position")], dtype=np.int64)

    def _pymoo_problem(self, population: Population) -> Any:
        """A problem without data: pymoo's operators read numbers and bounds from it and nothing else."""
        return Problem(
            n_var=len(self._upper),
            n_obj=population.objectives.shape[1],
            n_ieq_constr=1,
            xl=np.zeros(len(self._upper)),
            xu=self._upper.astype(np.float64),
        )

    @staticmethod
    def _as_pymoo(population: Population) -> Any:
        """The population with undefined rows as infeasible ones, worse than every other."""
        undefined = np.isnan(population.violations)
        worst = np.nanmax(population.violations, initial=0.0) + 1.0
        return PymooPopulation.new(
            X=population.genomes.astype(np.float64),
            F=np.where(undefined[:, None], 0.0, population.objectives),
            G=np.where(undefined, worst, population.violations)[:, None],
            position=np.arange(len(population)),
        )

    @staticmethod
    def _survive(problem: Any, population: Any, count: int, rng: np.random.Generator) -> Any:
        return RankAndCrowding().do(problem, population, n_survive=count, random_state=rng)
