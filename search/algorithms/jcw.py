"""JCW's multi-objective evolution with uniform non-dominated selection.

T. Zhao, X. S. Zhang, W. Zhu, J. Wang, S. Yang, J. Liu, J. Cheng: Joint Channel and Weight Pruning for Model
Acceleration on Mobile Devices, 2021, arXiv 2110.08013; the released code is the specification. One front would gather
where progress is easy. JCW therefore spreads targets T_i over the range of latencies, sorts the pool for each target by
(error, |T - T_i|), and takes survivors from all of these sortings alike.

Deviations from the released code, and why:
- Mutation moves a gene by one or two grid steps. Polynomial mutation with index 15, snapped to the grid, hardly ever
  moved one (0.13 genes a child instead of 1). A scheme, which has no order, changes to any other.
- The 1-D crowding distance covers all inner points (the released loop leaves out the second), and equal values do not
  divide by zero.
- Children are compared with each other and with every genome so far, not with the current population only.
- Where a stage does not fit, the targets take turns. The released code fills them from low to high latency, which cuts
  the high ones off.
- The number of targets is a parameter. Their range is that of the feasible latencies in the pool, instead of the
  latencies of the two ends of the space: with a bound on latency, no target lies where nothing may be.
- The first generation is spread over the range of sizes (`sampling.initial_genomes`).
- Where latency is known without evaluating a candidate, three quarters of the children come from an inner evolution on
  guessed losses (`assistance`): the same operators reach the same front with a tenth of the evaluations.
- Constraints: feasible before infeasible, infeasible by their violation. The released code has none.
- With more than two objectives, all but latency are sorted together with |T - T_i|.
- Everything is drawn from the seed; the released code has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from device_agent.contracts import ContractError
from search.algorithms.assistance import Assistance
from search.algorithms.base import SearcherState
from search.algorithms.evolution import EvolutionarySearcher, Population
from search.domain.objective import Metric
from search.domain.space import Genome, VariableKind
from search.pareto import BoolArray, FloatArray, IntArray, crowding_distance, non_domination_rank
from search.problem import SearchProblem

#: As in the released code.
DEFAULT_TARGETS = 4

#: SBX's distribution index (the released code's mu): 0.5 spreads children widely.
_SBX_INDEX = 0.5

#: The part of genes that a child takes from the crossover instead of from its parent.
_CROSSOVER_RATE = 0.5

#: The largest mutation, in grid steps.
_MAX_STEP = 2

#: The part of a generation that guesses propose; the rest comes from the operators alone.
_ASSISTED_PART = 0.75


class JcwSearcher(EvolutionarySearcher):
    """See `Searcher` for the contract."""

    METHOD = "jcw"

    def __init__(
        self,
        problem: SearchProblem,
        *,
        population: int,
        seed: int,
        num_targets: int = DEFAULT_TARGETS,
    ) -> None:
        """Raises `ContractError` where latency is no objective."""
        super().__init__(problem, population=population, seed=seed)
        if num_targets < 2:
            raise ContractError(f"num_targets {num_targets!r} must be at least 2: the ends of the latency range")
        space = problem.space
        self._latency_index = problem.column(Metric.LATENCY_MS, self.METHOD, "spreads its candidates over latency")
        self._assistance = Assistance(problem) if Metric.LATENCY_MS in problem.known_metrics else None
        self._num_targets = num_targets
        self._num_choices = np.array(space.num_choices, dtype=np.int64)
        self._ordered = np.array([v.kind is not VariableKind.SCHEME for v in space.variables])

    def _offspring(self, rng: np.random.Generator, parents: Population) -> IntArray:
        children = self._breed(rng, parents.genomes[random_pairs(rng, len(parents), (self._size + 1) // 2).ravel()])
        if self._assistance is None or not self._assistance.can_propose:
            return children
        proposed = self._assistance.propose(
            rng, parents.genomes, lambda chosen: self._breed(rng, chosen), round(_ASSISTED_PART * self._size)
        )
        return np.concatenate((proposed, children))

    def _breed(self, rng: np.random.Generator, parents: IntArray) -> IntArray:
        """Children (k, v) of `parents` (k, v), paired as they come."""
        even = len(parents) // 2 * 2
        mixed = crossover(rng, parents[0:even:2], parents[1:even:2], self._num_choices, self._ordered)
        return mutate(rng, mixed, self._num_choices, self._ordered)

    def tell(self, genomes: Sequence[Genome], objectives: FloatArray, violations: FloatArray) -> None:
        super().tell(genomes, objectives, violations)
        if self._assistance is not None:
            self._assistance.learn(genomes, objectives)

    def rescore(self, genomes: Sequence[Genome], objectives: FloatArray, violations: FloatArray) -> None:
        super().rescore(genomes, objectives, violations)
        if self._assistance is not None:
            self._assistance.forget()
            self._assistance.learn(genomes, objectives)

    def recall(self, genomes: Sequence[Genome], objectives: FloatArray) -> None:
        if self._assistance is not None:
            self._assistance.learn(genomes, objectives)

    def state(self) -> SearcherState:
        state = super().state()
        if self._assistance is not None:
            state["told"] = self._assistance.to_json()
        return state

    def restore(self, state: SearcherState) -> None:
        super().restore(state)
        if self._assistance is not None:
            try:
                self._assistance.restore(state["told"])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ContractError(f"the stored state of the searcher is damaged: {error!r}") from None

    def _survivors(self, rng: np.random.Generator, pool: Population, count: int) -> IntArray:
        targets = latency_targets(pool.objectives[:, self._latency_index], pool.violations, self._num_targets)
        return uniform_selection(pool.objectives, pool.violations, self._latency_index, targets, count)


def latency_targets(latencies: FloatArray, violations: FloatArray, num_targets: int) -> FloatArray:
    """`num_targets` latencies, evenly from the smallest to the largest feasible one; of all, where none is feasible."""
    defined = ~np.isnan(latencies) & ~np.isnan(violations)
    feasible = defined & (violations <= 0)
    used = latencies[feasible] if feasible.any() else latencies[defined]
    if used.size == 0:
        return np.zeros(num_targets)
    return np.linspace(used.min(), used.max(), num_targets)


def uniform_selection(
    objectives: FloatArray, violations: FloatArray, latency_index: int, targets: FloatArray, count: int
) -> IntArray:
    """Uniform non-dominated selection: indices of the `count` survivors of `objectives` (n, m), n >= count.

    For each of the `targets` (k,) the rows are ranked by the other objectives and the distance to the target. Stage by
    stage, the rows of that rank survive, for all targets; in the stage that does not fit, the targets take turns, each
    giving its loneliest row along latency. Ties are decided by position.
    """
    latencies = objectives[:, latency_index]
    others = np.delete(objectives, latency_index, axis=1)
    ranks = np.array(
        [non_domination_rank(np.column_stack((others, np.abs(latencies - target))), violations) for target in targets]
    )
    # A row joins in the first stage in which any target has it.
    stages = ranks.min(axis=0)
    chosen = np.zeros(len(objectives), dtype=np.bool_)
    for stage in range(int(stages.max()) + 1):
        joining = stages == stage
        if chosen.sum() + joining.sum() <= count:
            chosen |= joining
            continue
        queues = [_loneliest_first(latencies, joining & (row == stage)) for row in ranks]
        _take_turns(queues, chosen, count)
        break
    return np.flatnonzero(chosen)


def _loneliest_first(latencies: FloatArray, members: BoolArray) -> list[int]:
    rows = np.flatnonzero(members)
    order = np.argsort(-crowding_distance(latencies[rows, None]), kind="stable")
    return [int(row) for row in rows[order]]


def _take_turns(queues: list[list[int]], chosen: BoolArray, count: int) -> None:
    """Add rows to `chosen`, one from each queue in turn, until there are `count`."""
    missing = count - int(chosen.sum())
    while missing > 0:
        for queue in queues:
            while queue and chosen[queue[0]]:
                queue.pop(0)
            if queue and missing > 0:
                chosen[queue.pop(0)] = True
                missing -= 1


def random_pairs(rng: np.random.Generator, population: int, count: int) -> IntArray:
    """`count` pairs (count, 2) of different members, uniformly; of the same one where there is only one."""
    first = rng.integers(0, population, size=count)
    offset = rng.integers(1, max(2, population), size=count)
    return np.column_stack((first, (first + offset) % population))


def crossover(
    rng: np.random.Generator, first: IntArray, second: IntArray, num_choices: IntArray, ordered: BoolArray
) -> IntArray:
    """Simulated binary crossover of `first` and `second` (k, v) on choice indices: 2k children (2k, v).

    K. Deb, R. B. Agrawal: Simulated binary crossover for continuous search space, Complex Systems 9, 1995. Children are
    rounded to the grid and clipped. Of genes that are crossed, children exchange half; the others are their parents'
    (released code, emo_utils.py). Variables without an order are swapped only.
    """
    shape = first.shape
    u = rng.random(shape)
    power = 1.0 / (_SBX_INDEX + 1.0)
    beta = np.where(u <= 0.5, (2.0 * u) ** power, (0.5 / (1.0 - u)) ** power)
    middle, half = (first + second) / 2.0, (first - second) / 2.0
    mixed = ordered & (rng.random(shape) < _CROSSOVER_RATE)
    one = np.where(mixed, middle + beta * half, first)
    two = np.where(mixed, middle - beta * half, second)
    swapped = (mixed | ~ordered) & (rng.random(shape) < 0.5)
    children = np.concatenate((np.where(swapped, two, one), np.where(swapped, one, two)))
    snapped: IntArray = np.clip(np.rint(children), 0, num_choices - 1).astype(np.int64)
    return snapped


def mutate(rng: np.random.Generator, genomes: IntArray, num_choices: IntArray, ordered: BoolArray) -> IntArray:
    """Move each gene of `genomes` (k, v) with probability 1 / v: by one or two steps, or to any other choice.

    A gene that is picked always changes, if it has more than one choice: steps over the edge are not drawn.
    """
    mutated = genomes.copy()
    picked = rng.random(genomes.shape) < 1.0 / genomes.shape[1]
    for row, column in np.argwhere(picked & (num_choices > 1)):
        gene, count = int(genomes[row, column]), int(num_choices[column])
        reach = _MAX_STEP if ordered[column] else count
        options = [c for c in range(max(0, gene - reach), min(count, gene + reach + 1)) if c != gene]
        mutated[row, column] = options[int(rng.integers(len(options)))]
    return mutated
