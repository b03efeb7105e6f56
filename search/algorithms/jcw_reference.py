"""JCW's operators as its authors released them, for comparison: quirks included.

T. Zhao et al., arXiv 2110.08013; the released code's nsga_ii.py and emo_utils.py are the specification. Against `jcw`:
- The first generation draws every gene uniformly.
- Polynomial mutation with index 15 is snapped to the grid, where it mostly ends where it began.
- The 1-D crowding distance leaves out the second point of each front.
- Four fixed latency targets, from the smallest to the unpruned network, filled from low to high in every stage.
- Children are compared with the current population and with earlier attempts at the same generation only, so that one
  may be proposed twice. What was evaluated before is not evaluated again, but counts as proposed.
- No constraints and no schemes.
- Genes step over choices; the released code's grid is even, and so is this one where the config's choices are.
Survivors are scored again with each generation where the estimator wants it, as the published supernet does.
What the released code cannot survive (a division by zero where all latencies of a front are equal) is left out.
"""

from __future__ import annotations

import numpy as np

from device_agent.contracts import ContractError
from search.algorithms.evolution import EvolutionarySearcher, Population
from search.algorithms.jcw import DEFAULT_TARGETS, crossover, random_pairs
from search.algorithms.sampling import draw_new, draw_uniform
from search.domain.objective import Metric
from search.domain.space import Genome, VariableKind
from search.pareto import FloatArray, IntArray, non_domination_rank
from search.problem import SearchProblem

#: Polynomial mutation's distribution index (the released code's mu).
_MUTATION_INDEX = 15.0
#: Attempts to breed children that are not in the population.
_ATTEMPTS = 16


class JcwReferenceSearcher(EvolutionarySearcher):
    """See `Searcher` for the contract, but for one point: genomes may be asked for again."""

    METHOD = "jcw_reference"

    def __init__(self, problem: SearchProblem, *, population: int, seed: int) -> None:
        """Raises `ContractError` where the published operators do not fit the problem."""
        super().__init__(problem, population=population, seed=seed)
        if problem.constraints:
            raise ContractError("JCW's published operators know no constraints: leave out reproduce_reference")
        if any(v.kind is VariableKind.SCHEME for v in problem.space.variables):
            raise ContractError("JCW's published operators know one scheme: give one, or leave out reproduce_reference")
        if len(problem.objectives) != 2:
            raise ContractError("JCW's published operators have two objectives: one loss and latency_ms")
        self._latency_index = problem.column(Metric.LATENCY_MS, "jcw", "spreads its candidates over latency")
        known = problem.require_known([Metric.LATENCY_MS], "jcw")
        ends = known(np.array([problem.space.smallest, problem.space.unpruned]))[Metric.LATENCY_MS]
        self._targets = np.linspace(ends[0], ends[1], DEFAULT_TARGETS)
        self._num_choices = np.array(problem.space.num_choices, dtype=np.int64)

    def ask(self) -> tuple[Genome, ...]:
        rng = self._rng(0)
        if self._population is None:
            return draw_new(rng, self._space, self._size, (), lambda: draw_uniform(rng, self._space))
        members = {tuple(int(g) for g in row) for row in self._population.genomes}
        found: list[Genome] = []
        for _ in range(_ATTEMPTS):
            children = [tuple(row) for row in self._offspring(rng, self._population).tolist()]
            new = [child for child in children if child not in members]
            found += new
            members.update(new)
            if len(found) >= self._size:
                break
        return tuple(found[: self._size])

    def _offspring(self, rng: np.random.Generator, parents: Population) -> IntArray:
        pairs = random_pairs(rng, len(parents), (self._size + 1) // 2)
        ordered = np.ones(len(self._num_choices), dtype=np.bool_)
        first, second = parents.genomes[pairs[:, 0]], parents.genomes[pairs[:, 1]]
        return polynomial_mutation(rng, crossover(rng, first, second, self._num_choices, ordered), self._num_choices)

    def _survivors(self, rng: np.random.Generator, pool: Population, count: int) -> IntArray:
        return released_selection(pool.objectives, self._latency_index, self._targets, count)


def polynomial_mutation(rng: np.random.Generator, genomes: IntArray, num_choices: IntArray) -> IntArray:
    """Bounded polynomial mutation of each gene of (k, v) with probability 1/v, snapped to the grid.

    K. Deb, M. Goyal: A combined genetic adaptive search (GeneAS) for engineering design, 1996, with both distances to
    the bounds.
    """
    extent = np.maximum(num_choices - 1, 1)
    place = genomes / extent
    u = rng.random(genomes.shape)
    power = _MUTATION_INDEX + 1.0
    low = (2 * u + (1 - 2 * u) * (1 - place) ** power) ** (1 / power) - 1
    high = 1 - (2 * (1 - u) + 2 * (u - 0.5) * place**power) ** (1 / power)
    picked = rng.random(genomes.shape) < 1.0 / genomes.shape[1]
    moved = np.where(picked, place + np.where(u < 0.5, low, high), place)
    snapped: IntArray = np.clip(np.rint(moved * extent), 0, num_choices - 1).astype(np.int64)
    return snapped


def released_selection(objectives: FloatArray, latency_index: int, targets: FloatArray, count: int) -> IntArray:
    """The survivors of `objectives` (n, 2): for every stage the targets in turn, low latencies first.

    A front that fits joins as a whole; the first that does not is cut by its 1-D crowding distance, and nothing more
    joins. Ties are decided by position.
    """
    latencies = objectives[:, latency_index]
    losses = objectives[:, 1 - latency_index]
    ranks = [non_domination_rank(np.column_stack((losses, np.abs(latencies - target)))) for target in targets]
    chosen: dict[int, None] = {}
    for stage in range(max(int(r.max()) for r in ranks) + 1):
        for row in ranks:
            front = np.flatnonzero(row == stage)
            new = [int(i) for i in front if int(i) not in chosen]
            if len(chosen) + len(new) > count:
                # Distances are those in the whole front, members of which were chosen before.
                lonely = front[np.argsort(-released_crowding(latencies[front]), kind="stable")]
                new = [int(i) for i in lonely if int(i) not in chosen][: count - len(chosen)]
            chosen |= dict.fromkeys(new)
            if len(chosen) == count:
                return np.array(sorted(chosen), dtype=np.int64)
    return np.array(sorted(chosen), dtype=np.int64)


def released_crowding(latencies: FloatArray) -> FloatArray:
    """The 1-D crowding distance of the released code: the loop over inner points begins at the third."""
    order = np.argsort(latencies, kind="stable")
    ordered = latencies[order]
    distance = np.zeros(len(latencies))
    extent = ordered[-1] - ordered[0] if len(ordered) else 0.0
    if extent > 0 and len(ordered) > 2:
        distance[order[2:-1]] = (ordered[3:] - ordered[1:-2]) / extent
    if len(ordered):
        distance[order[[0, -1]]] = np.inf
    return distance
