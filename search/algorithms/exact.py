"""The whole front at once where both objectives are sums of tables: per-layer errors and measured latencies.

Every point of the lower convex hull of (error, latency) minimises error + multiplier * latency for some multiplier. So
the hull is found exactly, from its two ends inwards (Y. P. Aneja, K. P. K. Nair: Bicriteria transportation problem,
Management Science 25(1), 1979), each step one minimisation over the factor graph. Points of the front above the hull
are found by a mixed-integer programme with a budget, as in HALP (arXiv 2110.10811) and MDP (arXiv 2406.12079): one
choice for each table, tables agree on shared variables.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, lil_array

from search.algorithms.factors import EliminationOrder, Factor, elimination_order, evaluate, minimise
from search.domain.space import Genome
from search.errors import InfeasibleBudget, SearchError
from search.pareto import FloatArray, non_dominated_mask

#: Two points closer than this, relative to the range of the front, are one.
_RELATIVE_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactPoint:
    genome: Genome
    error: float
    cost: float


class ExactFront:
    """The front of two sums of tables over the same variables.

    Args:
        errors: What is minimised beside the cost.
        costs: The latency, or another figure that a genome alone decides.
        num_choices: Choices of each variable.

    Raises `ContractError` where the variables depend on each other too much.
    """

    def __init__(self, errors: Sequence[Factor], costs: Sequence[Factor], num_choices: Sequence[int]) -> None:
        self._errors = _merged(errors)
        self._costs = _merged(costs)
        self._num_choices = tuple(num_choices)
        self._order: EliminationOrder = elimination_order([*self._errors, *self._costs], self._num_choices)

    def point(self, genome: Genome) -> ExactPoint:
        row = np.array([genome], dtype=np.int64)
        return ExactPoint(
            genome=genome, error=float(evaluate(self._errors, row)[0]), cost=float(evaluate(self._costs, row)[0])
        )

    def weighted(self, error_weight: float, cost_weight: float) -> ExactPoint:
        """The genome with the smallest `error_weight * error + cost_weight * cost`."""
        scaled = [
            Factor(variables=f.variables, values=weight * f.values)
            for weight, factors in ((error_weight, self._errors), (cost_weight, self._costs))
            for f in factors
        ]
        return self.point(minimise(scaled, self._num_choices, self._order))

    def hull(self, max_points: int) -> tuple[ExactPoint, ...]:
        """At most `max_points` corners of the lower convex hull, cheapest first; all, where there are fewer.

        The widest gaps are looked into first.
        """
        left, right = self._ends()
        found = [left, right]
        extent = (max(right.cost - left.cost, 0.0), max(left.error - right.error, 0.0))
        gaps = [(left, right)]
        while gaps and len(found) < max_points and min(extent) > 0:
            gaps.sort(key=lambda pair: _area(pair, extent))
            low, high = gaps.pop()
            # The direction in which both are equally good; whatever is better lies between them.
            error_weight, cost_weight = high.cost - low.cost, low.error - high.error
            middle = self.weighted(error_weight, cost_weight)
            gain = (error_weight * low.error + cost_weight * low.cost) - (
                error_weight * middle.error + cost_weight * middle.cost
            )
            if gain <= _RELATIVE_TOLERANCE * extent[0] * extent[1]:
                continue
            found.append(middle)
            gaps += [(low, middle), (middle, high)]
        points = sorted({p.genome: p for p in found}.values(), key=lambda p: (p.cost, p.error))
        mask = non_dominated_mask([(p.error, p.cost) for p in points])
        return tuple(p for p, on_front in zip(points, mask, strict=True) if on_front)

    def best_within(self, max_cost: float, *, time_limit_s: float) -> ExactPoint:
        """The smallest error at a cost of at most `max_cost`, by a mixed-integer programme (HiGHS).

        With `time_limit_s` used up, the best found so far.

        Raises:
            InfeasibleBudget: No genome is that cheap. The text names the smallest cost.
            SearchError: Nothing was found in time.
        """
        cheapest = self._ends()[0]
        if cheapest.cost > max_cost:
            raise InfeasibleBudget(f"no candidate costs at most {max_cost:g}: the smallest cost is {cheapest.cost:.6g}")
        return self.point(_solve(self._errors, self._costs, self._num_choices, max_cost, time_limit_s))

    def _ends(self) -> tuple[ExactPoint, ExactPoint]:
        """The cheapest point and the one with the smallest error, each the best of its equals as far as floats tell."""
        cheap, good = self.weighted(0.0, 1.0), self.weighted(1.0, 0.0)
        error_range, cost_range = cheap.error - good.error, good.cost - cheap.cost
        if error_range > 0 and cost_range > 0:
            tiny = 1e-9
            cheap = self.weighted(tiny / error_range, 1.0 / cost_range)
            good = self.weighted(1.0 / error_range, tiny / cost_range)
        return cheap, good


def _area(pair: tuple[ExactPoint, ExactPoint], extent: tuple[float, float]) -> float:
    low, high = pair
    return (high.cost - low.cost) / extent[0] * (low.error - high.error) / extent[1]


def _merged(factors: Sequence[Factor]) -> tuple[Factor, ...]:
    """Tables over the same variables added up: fewer terms to add in every minimisation."""
    sums: dict[tuple[int, ...], FloatArray] = {}
    for factor in factors:
        known = sums.get(factor.variables)
        sums[factor.variables] = factor.values.copy() if known is None else known + factor.values
    return tuple(Factor(variables=variables, values=values) for variables, values in sums.items())


def _solve(
    errors: Sequence[Factor],
    costs: Sequence[Factor],
    num_choices: Sequence[int],
    max_cost: float,
    time_limit_s: float,
) -> Genome:
    """min sum(error) subject to sum(cost) <= max_cost, one cell of each table, cells agreeing on their variables.

    Only the choices of variables are integers; with them fixed, the cells follow.
    """
    scopes = {f.variables: [np.zeros(f.values.shape)] * 2 for f in (*errors, *costs)}
    for which, factors in enumerate((errors, costs)):
        for factor in factors:
            tables = list(scopes[factor.variables])
            tables[which] = tables[which] + factor.values
            scopes[factor.variables] = tables
    _, constant_cost = scopes.pop((), (np.zeros(()), np.zeros(())))
    starts = np.concatenate(([0], np.cumsum(num_choices)))
    num_columns = int(starts[-1]) + sum(tables[0].size for tables in scopes.values())
    objective = np.zeros(num_columns)
    cost_row = np.zeros(num_columns)
    rows = len(num_choices) + sum(sum(tables[0].shape) for tables in scopes.values())
    matrix = lil_array((rows + 1, num_columns))
    bound = np.zeros(rows + 1)
    for variable in range(len(num_choices)):
        matrix[variable, starts[variable] : starts[variable + 1]] = 1.0
        bound[variable] = 1.0
    row, column = len(num_choices), int(starts[-1])
    for variables, (error, cost) in scopes.items():
        cells = np.arange(column, column + error.size).reshape(error.shape)
        objective[cells] = error
        cost_row[cells] = cost
        for axis, variable in enumerate(variables):
            for choice in range(num_choices[variable]):
                matrix[row, np.take(cells, choice, axis=axis).ravel()] = 1.0
                matrix[row, starts[variable] + choice] = -1.0
                row += 1
        column += error.size
    matrix[rows, :] = cost_row
    lower, upper = bound.copy(), bound.copy()
    lower[rows], upper[rows] = -np.inf, max_cost - float(constant_cost)
    integrality = np.zeros(num_columns)
    integrality[: starts[-1]] = 1
    solved = milp(
        objective,
        constraints=LinearConstraint(csr_array(matrix), lower, upper),
        bounds=Bounds(0.0, 1.0),
        integrality=integrality,
        options={"time_limit": time_limit_s, "mip_rel_gap": 0.0},
    )
    if solved.x is None:
        raise SearchError(f"the exact search found nothing within {time_limit_s:g} s: {solved.message}")
    return tuple(int(np.argmax(solved.x[a:b])) for a, b in itertools.pairwise(starts))
