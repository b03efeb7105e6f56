"""What all searchers remember: the generation, the genomes told so far, and whom a stored state belongs to."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from device_agent.contracts import ContractError
from search.algorithms.base import SearcherState
from search.algorithms.sampling import genome_code
from search.domain.space import Genome, SearchSpace, space_id
from search.pareto import FloatArray
from search.problem import SearchProblem


class History:
    """The part of a searcher's state that does not depend on the method."""

    def __init__(self, *, method: str, space: SearchSpace, population: int, seed: int) -> None:
        if population < 2:
            raise ContractError(f"a population of {population!r} is too small: at least 2")
        if seed < 0:
            raise ContractError(f"the seed {seed!r} must not be negative")
        self._owner = {"method": method, "space_id": space_id(space), "population": population, "seed": seed}
        self._num_choices = space.num_choices
        self.generation = 0
        #: Codes of all genomes told so far, in order.
        self.seen: dict[str, None] = {}

    def advance(self, genomes: Sequence[Genome]) -> None:
        """Note that `genomes` were told, and that a generation has passed."""
        self.seen |= dict.fromkeys(genome_code(g, self._num_choices) for g in genomes)
        self.generation += 1

    def to_json(self) -> SearcherState:
        return {**self._owner, "generation": self.generation, "seen": list(self.seen)}

    def restore(self, state: SearcherState) -> None:
        for key, value in self._owner.items():
            if state.get(key) != value:
                raise ContractError(
                    f"the stored state has {key} {state.get(key)!r}, but this searcher has {value!r}: continue a "
                    "search with the method, seed, population and space that it began with"
                )
        try:
            generation, seen = int(state["generation"]), dict.fromkeys(str(code) for code in state["seen"])
        except (KeyError, TypeError, ValueError) as error:
            raise ContractError(f"the stored state of the searcher is damaged: {error!r}") from None
        self.generation, self.seen = generation, seen


def check_told(
    problem: SearchProblem, genomes: Sequence[Genome], objectives: FloatArray, violations: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Checked copies of the objectives (n, m) and violations (n,) of `genomes`.

    A row of which any figure is not finite becomes NaN as a whole, violation included: it is no point.

    Raises `ContractError` on genomes outside the space, and `ValueError` on shapes that do not fit.
    """
    num_choices = problem.space.num_choices
    for genome in genomes:
        if len(genome) != len(num_choices) or min(genome, default=0) < 0 or any(map(operator.ge, genome, num_choices)):
            raise ContractError(f"the genome {tuple(genome)} is not in the space of {num_choices} choices")
    values = np.array(objectives, dtype=np.float64)
    excess = np.array(violations, dtype=np.float64)
    if values.ndim != 2 or len(values) != len(genomes) or excess.shape != (len(genomes),):
        raise ValueError(
            f"objectives of shape {values.shape} and violations of shape {excess.shape} do not fit "
            f"{len(genomes)} genomes"
        )
    if values.shape[1] != len(problem.metrics):
        raise ValueError(f"{values.shape[1]} objectives were told, but the problem has {len(problem.metrics)}")
    undefined = ~np.isfinite(values).all(axis=1) | ~np.isfinite(excess)
    values[undefined] = np.nan
    excess[undefined] = np.nan
    return values, excess


def check_survivors(genomes: Sequence[Genome], survivors: Sequence[Genome]) -> dict[Genome, int]:
    """The row of each genome. Raises `ValueError` where `genomes` are not just the `survivors`."""
    rows = {tuple(int(gene) for gene in genome): row for row, genome in enumerate(genomes)}
    if len(rows) != len(genomes) or rows.keys() != set(survivors):
        raise ValueError(f"{len(genomes)} genomes were scored again, but they are not the {len(survivors)} survivors")
    return rows
