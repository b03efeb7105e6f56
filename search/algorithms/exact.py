"""The whole front at once where both objectives are sums of tables: per-layer errors and measured latencies.

Every point of the lower convex hull of (error, latency) minimises error + multiplier * latency for some multiplier. So
the hull is found exactly, from its two ends inwards (Y. P. Aneja, K. P. K. Nair: Bicriteria transportation problem,
Management Science 25(1), 1979), each step one minimisation over the factor graph. Points of the front above the hull
are found by a mixed-integer programme with a budget, as in HALP (arXiv 2110.10811) and MDP (arXiv 2406.12079): one
choice for each table, tables agree on shared variables.

Where variables depend on each other so much that minimisations are not exact (`factors.Elimination`), the front says
how far from the best its points may be.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from search.algorithms.factors import Elimination, Factor, TableSum
from search.domain.space import Genome
from search.errors import InfeasibleBudget, SearchError
from search.pareto import FloatArray, IntArray, non_dominated_mask

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
    """

    def __init__(self, errors: Sequence[Factor], costs: Sequence[Factor], num_choices: Sequence[int]) -> None:
        self._errors = _merged(errors)
        self._costs = _merged(costs)
        self._sum_errors, self._sum_costs = TableSum(self._errors), TableSum(self._costs)
        self._num_choices = tuple(num_choices)
        scopes = tuple(dict.fromkeys(f.variables for f in (*self._errors, *self._costs)))
        self._elimination = _elimination(scopes, self._num_choices)
        #: By how much points of the hulls so far may be off, as a part of the front's range: 0 where they are exact.
        self.gap = 0.0
        shapes = [tuple(self._num_choices[v] for v in scope) for scope in scopes]
        ends = itertools.accumulate(math.prod(shape) for shape in shapes)
        #: Which cells are the table over each scope, and its shape.
        self._spans = [(slice(end - math.prod(s), end), s) for end, s in zip(ends, shapes, strict=True)]
        #: Errors and costs (2, cells) of all scopes, one table after the other; zeros where a scope has none.
        self._cells = np.stack([_all_cells(f, scopes, shapes) for f in (self._errors, self._costs)])

    def point(self, genome: Genome) -> ExactPoint:
        row = np.array([genome], dtype=np.int64)
        return ExactPoint(genome=genome, error=float(self._sum_errors(row)[0]), cost=float(self._sum_costs(row)[0]))

    def weighted(self, error_weight: float, cost_weight: float) -> ExactPoint:
        """The genome with the smallest `error_weight * error + cost_weight * cost`."""
        return self._weighted([(error_weight, cost_weight)])[0][0]

    def least_cost(self) -> float:
        """The smallest cost; where minimisations are not exact, a cost that no genome is below."""
        points, bounds = self._weighted([(0.0, 1.0)])
        return points[0].cost if self._elimination.is_exact else float(bounds[0])

    def hull(self, max_points: int) -> tuple[ExactPoint, ...]:
        """At most `max_points` corners of the lower convex hull, cheapest first; all, where there are fewer.

        The widest gaps are looked into first, all of a round together.
        """
        left, right = self._ends()
        found = [left, right]
        extent = (max(right.cost - left.cost, 0.0), max(left.error - right.error, 0.0))
        gaps = [(left, right)]
        while gaps and len(found) < max_points and min(extent) > 0:
            gaps.sort(key=lambda pair: -_area(pair, extent))
            looked_into, gaps = gaps[: max_points - len(found)], gaps[max_points - len(found) :]
            # The direction in which both ends are equally good; whatever is better lies between them.
            weights = [(high.cost - low.cost, low.error - high.error) for low, high in looked_into]
            middles, bounds = self._weighted(weights)
            for (low, high), (error_weight, cost_weight), middle, bound in zip(
                looked_into, weights, middles, bounds, strict=True
            ):
                if not self._elimination.is_exact:
                    value = error_weight * middle.error + cost_weight * middle.cost
                    unit = error_weight * extent[1] + cost_weight * extent[0]
                    self.gap = max(self.gap, (value - float(bound)) / unit)
                gain = (error_weight * low.error + cost_weight * low.cost) - (
                    error_weight * middle.error + cost_weight * middle.cost
                )
                if gain > _RELATIVE_TOLERANCE * extent[0] * extent[1]:
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
        least = self.least_cost()
        if least > max_cost:
            raise InfeasibleBudget(f"no candidate costs at most {max_cost:g}: the smallest cost is {least:.6g}")
        found = best_under(self._errors, [Bound(self._costs, max_cost)], self._num_choices, time_limit_s=time_limit_s)
        if found is None:
            raise SearchError(f"the exact search found nothing within {time_limit_s:g} s: allow more")
        return self.point(found)

    def _weighted(self, weights: Sequence[tuple[float, float]]) -> tuple[list[ExactPoint], FloatArray]:
        """The best for each pair of weights, and what no weighted sum is below."""
        pairs = np.array(weights, dtype=np.float64)
        cells = pairs[:, :1] * self._cells[0] + pairs[:, 1:] * self._cells[1]
        tables = [cells[:, span].reshape(-1, *shape) for span, shape in self._spans]
        genomes, bounds = self._elimination.minimise(tables)
        errors, costs = self._sum_errors(genomes).tolist(), self._sum_costs(genomes).tolist()
        points = [
            ExactPoint(genome=tuple(genome), error=error, cost=cost)
            for genome, error, cost in zip(genomes.tolist(), errors, costs, strict=True)
        ]
        return points, bounds

    def _ends(self) -> tuple[ExactPoint, ExactPoint]:
        """The cheapest point and the one with the smallest error, each the best of its equals as far as floats tell."""
        (cheap, good), _ = self._weighted([(0.0, 1.0), (1.0, 0.0)])
        error_range, cost_range = cheap.error - good.error, good.cost - cheap.cost
        if error_range > 0 and cost_range > 0:
            tiny = 1e-9
            weights = [(tiny / error_range, 1.0 / cost_range), (1.0 / error_range, tiny / cost_range)]
            (cheap, good), _ = self._weighted(weights)
        return cheap, good


@functools.lru_cache(maxsize=8)
def _elimination(scopes: tuple[tuple[int, ...], ...], num_choices: tuple[int, ...]) -> Elimination:
    """One for all fronts over the same tables: a search makes several in each generation."""
    return Elimination(scopes, num_choices)


def _area(pair: tuple[ExactPoint, ExactPoint], extent: tuple[float, float]) -> float:
    low, high = pair
    return (high.cost - low.cost) / extent[0] * (low.error - high.error) / extent[1]


def _all_cells(
    factors: Sequence[Factor], scopes: Sequence[tuple[int, ...]], shapes: Sequence[tuple[int, ...]]
) -> FloatArray:
    """The tables of `factors` over each of `scopes`, flat and in a row."""
    values = {factor.variables: factor.values for factor in factors}
    parts = [values[s].ravel() if s in values else np.zeros(math.prod(n)) for s, n in zip(scopes, shapes, strict=True)]
    return np.concatenate([np.zeros(0), *parts])


def _merged(factors: Sequence[Factor]) -> tuple[Factor, ...]:
    """Tables over the same variables added up: fewer terms to add in every minimisation."""
    sums: dict[tuple[int, ...], FloatArray] = {}
    for factor in factors:
        known = sums.get(factor.variables)
        sums[factor.variables] = factor.values.copy() if known is None else known + factor.values
    return tuple(Factor(variables=variables, values=values) for variables, values in sums.items())


class Bound(NamedTuple):
    """The sum of `costs` must be at most `max`."""

    costs: Sequence[Factor]
    max: float


def best_under(
    errors: Sequence[Factor],
    bounds: Sequence[Bound],
    num_choices: Sequence[int],
    *,
    time_limit_s: float = math.inf,
    node_limit: int | None = None,
    relative_gap: float = 0.0,
) -> Genome | None:
    """min sum(error) with every bound kept: one cell of each table, cells agreeing on their variables (HiGHS).

    Only the choices of variables are integers; with them fixed, the cells follow. None where nothing keeps the bounds,
    or nothing was found within the limits. Limits on nodes, unlike those on time, give the same answer everywhere.
    """
    merged = [_merged(errors), *(_merged(bound.costs) for bound in bounds)]
    scopes: dict[tuple[int, ...], list[FloatArray]] = {}
    for which, factors in enumerate(merged):
        for factor in factors:
            tables = scopes.setdefault(factor.variables, [np.zeros(factor.values.shape)] * len(merged))
            tables[which] = tables[which] + factor.values
    constants = scopes.pop((), [np.zeros(())] * len(merged))
    starts = np.concatenate(([0], np.cumsum(num_choices)))
    num_columns = int(starts[-1]) + sum(tables[0].size for tables in scopes.values())
    objective = np.zeros(num_columns)
    cost_rows = np.zeros((len(bounds), num_columns))
    equations = len(num_choices) + sum(sum(tables[0].shape) for tables in scopes.values())
    entries: list[tuple[IntArray, IntArray, FloatArray]] = []
    right = np.zeros(equations)
    for variable in range(len(num_choices)):
        columns = np.arange(starts[variable], starts[variable + 1])
        entries.append((np.full(len(columns), variable), columns, np.ones(len(columns))))
        right[variable] = 1.0
    row, column = len(num_choices), int(starts[-1])
    for variables, tables in scopes.items():
        cells = np.arange(column, column + tables[0].size).reshape(tables[0].shape)
        objective[cells] = tables[0]
        for which in range(len(bounds)):
            cost_rows[which, cells] = tables[1 + which]
        for axis, variable in enumerate(variables):
            for choice in range(num_choices[variable]):
                columns = np.take(cells, choice, axis=axis).ravel()
                entries.append((np.full(len(columns), row), columns, np.ones(len(columns))))
                entries.append((np.array([row]), np.array([starts[variable] + choice]), np.array([-1.0])))
                row += 1
        column += tables[0].size
    rows, columns, values = (np.concatenate([entry[k] for entry in entries]) for k in range(3))
    limits = [bound.max - float(constants[1 + which]) for which, bound in enumerate(bounds)]
    # Rows of costs in units of their bounds: HiGHS judges feasibility by absolute tolerances.
    scales = np.abs(cost_rows).max(axis=1, initial=0.0)
    scales[scales <= 0] = 1.0
    integrality = np.zeros(num_columns)
    integrality[: starts[-1]] = 1
    options: dict[str, float] = {"mip_rel_gap": relative_gap}
    if math.isfinite(time_limit_s):
        options["time_limit"] = time_limit_s
    if node_limit is not None:
        options["node_limit"] = node_limit
    constraints = [LinearConstraint(csr_array((values, (rows, columns)), shape=(equations, num_columns)), right, right)]
    if bounds:
        constraints.append(LinearConstraint(csr_array(cost_rows / scales[:, None]), -np.inf, np.array(limits) / scales))
    solved = milp(objective, constraints=constraints, bounds=Bounds(0.0, 1.0), integrality=integrality, options=options)
    if solved.x is None:
        return None
    return tuple(int(np.argmax(solved.x[a:b])) for a, b in itertools.pairwise(starts))
