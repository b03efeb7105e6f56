"""Bringing genomes under the bounds on what is known of them, and back up to the bounds.

AACP (arXiv 2102.00390, released code) takes channels from random layers, one step at a time, until a vector fits its
budget, which leaves slack. Here many genomes are repaired together, and what was taken too much is given back.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from device_agent.contracts import ContractError
from search.algorithms.factors import Factor, evaluate
from search.domain.objective import Constraint, Metric
from search.domain.space import Genome, VariableKind
from search.errors import InfeasibleBudget
from search.pareto import BoolArray, FloatArray, IntArray
from search.problem import SearchProblem

#: Rounds of giving back; each ends at the first step, in random order, that would break a bound.
_REFILL_ROUNDS = 4
#: Sweeps over all variables when the smallest genome is looked for.
_MAX_SWEEPS = 4
#: Branch-and-bound nodes when bounds are judged together.
_MAX_NODES = 2000
_REMEDY = (
    "raise a bound, or allow smaller channel counts (space.channels.min_ratio) or densities (space.weights.densities)"
)


class Repair:
    """Repairs genomes of one problem. Only variables with an order are moved, by whole choices.

    Each genome may have a bound of its own on `metric`, beside the problem's constraints; infinity is none.

    Raises `InfeasibleBudget`, when made, where no genome meets the constraints and the smallest of `bounds`: the text
    names the smallest value found.
    """

    def __init__(self, problem: SearchProblem, metric: Metric, bounds: FloatArray) -> None:
        self._problem = problem
        self._metric = metric
        self._num_choices = np.array(problem.space.num_choices, dtype=np.int64)
        self._ordered = np.array([v.kind is not VariableKind.SCHEME for v in problem.space.variables])
        tightest = float(bounds.min())
        if math.isfinite(tightest):
            bound = Constraint(metric=metric, max=tightest)
            problem = replace(problem, constraints=(*problem.constraints, bound))
        self._smallest = np.array(least_violating(problem), dtype=np.int64)

    def is_feasible(self, genomes: IntArray, bounds: FloatArray) -> BoolArray:
        """Which of `genomes` (n, v) meet the constraints and their own bounds (n,)."""
        feasible: BoolArray = self._problem.known_violations(genomes) <= 0
        if self._problem.known is not None and np.isfinite(bounds).any():
            feasible &= self._problem.known(genomes)[self._metric] <= bounds
        return feasible

    def __call__(self, rng: np.random.Generator, genomes: IntArray, bounds: FloatArray) -> IntArray:
        """`genomes` (n, v), each within the constraints and its bound, and not much below them.

        Steps down are drawn uniformly over the variables, as in AACP. Latency need not fall with every step; what comes
        out is feasible all the same, as it was looked at.
        """
        return self._refilled(rng, self._cut(rng, genomes, bounds), bounds)

    def _cut(self, rng: np.random.Generator, genomes: IntArray, bounds: FloatArray) -> IntArray:
        """The first feasible genome of each one's random way down; the smallest one where the way has none."""
        cut = genomes.copy()
        broken = np.flatnonzero(~self.is_feasible(genomes, bounds))
        if not len(broken):
            return cut
        limits = bounds[broken]
        steps = _Steps(rng, np.where(self._ordered, genomes[broken], 0))
        ends = genomes[broken] - steps.taken(steps.totals)
        hopeless = ~self.is_feasible(ends, limits)
        too_few, enough = np.zeros_like(steps.totals), steps.totals.copy()
        while (too_few + 1 < enough).any():
            middle = np.where(enough - too_few > 1, (too_few + enough) // 2, enough)
            fits = self.is_feasible(genomes[broken] - steps.taken(middle), limits)
            enough, too_few = np.where(fits, middle, enough), np.where(fits, too_few, middle)
        cut[broken] = np.where(hopeless[:, None], self._smallest, genomes[broken] - steps.taken(enough))
        return cut

    def _refilled(self, rng: np.random.Generator, genomes: IntArray, bounds: FloatArray) -> IntArray:
        filled = genomes.copy()
        frozen = np.broadcast_to(~self._ordered, filled.shape).copy()
        for _ in range(_REFILL_ROUNDS):
            steps = _Steps(rng, np.where(frozen, 0, self._num_choices - 1 - filled))
            allowed, too_many = np.zeros_like(steps.totals), steps.totals + 1
            while (allowed + 1 < too_many).any():
                middle = np.where(too_many - allowed > 1, (allowed + too_many) // 2, allowed)
                fits = self.is_feasible(filled + steps.taken(middle), bounds)
                allowed, too_many = np.where(fits, middle, allowed), np.where(fits, too_many, middle)
            filled = filled + steps.taken(allowed)
            blocked = steps.variable(allowed)
            rows = np.flatnonzero(blocked >= 0)
            if not len(rows):
                break
            frozen[rows, blocked[rows]] = True
        return filled


class _Steps:
    """For each row, unit steps in random order: variables are drawn uniformly until their steps are used up.

    Each variable's steps are the events of a Poisson process of its own, so that the next event is of any variable with
    equal probability.
    """

    def __init__(self, rng: np.random.Generator, available: IntArray) -> None:
        rows, variables = available.shape
        most = int(available.max(initial=0))
        times = np.cumsum(rng.standard_exponential((rows, variables, max(most, 1))), axis=2)
        times[np.arange(max(most, 1)) >= available[:, :, None]] = np.inf
        flat = times.reshape(rows, -1)
        self._order = np.argsort(flat, axis=1, kind="stable") // max(most, 1)
        self._variables = variables
        #: Steps that each row has.
        self.totals: IntArray = available.sum(axis=1)

    def taken(self, counts: IntArray) -> IntArray:
        """How many steps of each variable are among the first `counts` (n,) of each row: (n, v)."""
        within = np.arange(self._order.shape[1]) < counts[:, None]
        taken = np.zeros((len(counts), self._variables), dtype=np.int64)
        np.add.at(taken, (np.nonzero(within)[0], self._order[within]), 1)
        return taken

    def variable(self, counts: IntArray) -> IntArray:
        """The variable of the step after the first `counts` of each row; -1 where there is none."""
        place = np.minimum(counts, self._order.shape[1] - 1)
        found: IntArray = np.where(counts < self.totals, self._order[np.arange(len(counts)), place], -1)
        return found


def least_violating(problem: SearchProblem) -> Genome:
    """A genome that meets all bounds on known figures: by coordinate descent from the smallest one, and where that
    fails and the figures are there as tables, by a mixed-integer programme.

    Raises `InfeasibleBudget` where none is found. The text names the bounds, and for each the smallest value reached
    with the others kept, or by itself where it cannot be met even alone.
    """
    space = problem.space
    best = np.array(space.smallest, dtype=np.int64)
    excess = float(problem.known_violations(best[None])[0])
    for _ in range(_MAX_SWEEPS):
        before = excess
        for position, count in enumerate(space.num_choices):
            if excess <= 0:
                return tuple(int(g) for g in best)
            trials = np.repeat(best[None], count, axis=0)
            trials[:, position] = np.arange(count)
            violations = problem.known_violations(trials)
            if violations.min() < excess:
                best, excess = trials[violations.argmin()], float(violations.min())
        if excess == before:
            break
    if excess <= 0:
        return tuple(int(g) for g in best)
    try:
        tables = [_bounded_tables(problem, constraint) for constraint in problem.known_constraints]
    except ContractError:
        # The figures are there, but not as sums of tables, such as the slowest of several devices.
        raise InfeasibleBudget(_why(problem, best)) from None
    return _solved(problem, tables)


def _bounded_tables(problem: SearchProblem, constraint: Constraint) -> tuple[Factor, ...]:
    if constraint.device is not None and problem.device_tables is not None:
        return problem.device_tables(constraint.device)
    if constraint.device is None and problem.tables is not None:
        return problem.tables(constraint.metric)
    raise ContractError(f"there are no tables of {constraint.metric}")


def _solved(problem: SearchProblem, tables: Sequence[tuple[Factor, ...]]) -> Genome:
    """What meets all of the known constraints, whose `tables` are in their order."""
    # Imported here: scipy's optimisers take a second to load.
    from search.algorithms.exact import Bound, ExactFront, best_under

    num_choices = problem.space.num_choices
    constraints = problem.known_constraints
    bounds = [Bound(costs, constraint.max) for costs, constraint in zip(tables, constraints, strict=True)]
    names = [f"{c.subject} <= {c.max:g}" for c in constraints]
    alone = [ExactFront((), costs, num_choices).least_cost() for costs in tables]
    impossible = [
        f"{name} (the smallest is {value:.6g})"
        for name, value, bound in zip(names, alone, bounds, strict=True)
        if value > bound.max
    ]
    if impossible:
        raise InfeasibleBudget(f"no candidate meets {' and '.join(impossible)}: {_REMEDY}")
    solve = functools.partial(best_under, num_choices=num_choices, node_limit=_MAX_NODES)
    found = solve((), bounds)
    if found is not None and problem.known_violations(np.array([found]))[0] <= 0:
        return found
    lines = []
    for place, (name, costs) in enumerate(zip(names, tables, strict=True)):
        least = solve(costs, [*bounds[:place], *bounds[place + 1 :]])
        if least is None:
            lines.append(f"{name} (the others exclude each other without it)")
        else:
            value = float(evaluate(costs, np.array([least]))[0])
            lines.append(f"{name} (the smallest with the others kept is {value:.6g})")
    raise InfeasibleBudget(f"each bound can be met, but not all together: {' and '.join(lines)}: {_REMEDY}")


def _why(problem: SearchProblem, best: IntArray) -> str:
    broken = [
        f"{c.subject} <= {c.max:g} (the smallest found is {float(values[0]):.6g})"
        for c, values in problem.known_bounded(best[None])
        if not math.isclose(c.violation(float(values[0])), 0.0)
    ]
    return f"no candidate meets {' and '.join(broken)}: {_REMEDY}"
