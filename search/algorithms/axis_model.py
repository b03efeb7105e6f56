"""A network's accuracy over depth, width and resolution as a polynomial of low rank, and its optimum within a budget.

Wang et al. (arXiv 2010.04879) fit a polynomial of accuracy over (depth, width, resolution) whose weight tensor has a
low-rank substitute, and maximise it under a budget by the Karush-Kuhn-Tucker conditions. What could be read of the
paper does not give degree, rank and priors. inferred: cubic factors of rank 1, that never fall, and the box of what was
sampled as the region in which the polynomial is trusted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, nnls

from search.pareto import FloatArray

MAX_DEGREE = 3
#: inferred: small enough to leave axis samples interpolated, large enough to decide between equal fits.
_RIDGE = 1e-6
_MAX_SWEEPS = 400
_STARTS = 4
#: Points of each axis at which the continuous optimum is looked for before it is polished.
_GRID = 41


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AxisModel:
    """F(x) = sum over q of the product over axes a of H_aq(x_a): each H a polynomial on [low_a, high_a] that does not
    fall and is not negative, by its Bernstein coefficients.

    `coefficients[a]` has shape (rank, degree_a + 1); `low` and `high` (axes,) are the ends of what was sampled.
    """

    coefficients: tuple[FloatArray, ...]
    low: FloatArray
    high: FloatArray

    def __call__(self, points: FloatArray) -> FloatArray:
        """The values (n,) at `points` (n, axes); those outside of what was sampled have the value at its edge.

        inferred: the sampled box is the region in which the polynomial is trusted, so it is never extrapolated.
        """
        points = np.clip(points, self.low, self.high)
        values: FloatArray = np.ones((len(points), len(self.coefficients[0])))
        for axis, coefficients in enumerate(self.coefficients):
            values = values * (self._basis(points[:, axis], axis) @ coefficients.T)
        total: FloatArray = values.sum(axis=1)
        return total

    def gradient(self, point: FloatArray) -> FloatArray:
        """The partial derivatives (axes,) at `point` (axes,), which is inside of what was sampled."""
        values, slopes = [], []
        for axis, coefficients in enumerate(self.coefficients):
            x = point[axis : axis + 1]
            values.append((self._basis(x, axis) @ coefficients.T)[0])
            degree = coefficients.shape[1] - 1
            width = self.high[axis] - self.low[axis]
            if degree == 0 or width == 0:
                slopes.append(np.zeros(len(coefficients)))
            else:
                # The derivative of a Bernstein polynomial has the differences of its coefficients.
                lower = _bernstein(self._place(x, axis), degree - 1)
                slopes.append((lower @ np.diff(coefficients, axis=1).T)[0] * degree / width)
        return np.array(
            [
                float(np.sum(slopes[a] * np.prod([values[b] for b in range(len(values)) if b != a], axis=0)))
                for a in range(len(values))
            ]
        )

    def _place(self, x: FloatArray, axis: int) -> FloatArray:
        width = self.high[axis] - self.low[axis]
        return np.zeros_like(x) if width == 0 else (x - self.low[axis]) / width

    def _basis(self, x: FloatArray, axis: int) -> FloatArray:
        return _bernstein(self._place(x, axis), self.coefficients[axis].shape[1] - 1)


def fit_axis_model(points: FloatArray, values: FloatArray, *, rank: int = 1, seed: int = 0) -> AxisModel:
    """The model with the least squared error and a small ridge, by alternating least squares from several starts.

    Each factor is linear in its own coefficients. Non-negative increments of Bernstein coefficients are enough for a
    factor that neither falls nor is negative, so that each step is a non-negative least squares problem.

    Args:
        points: (n, axes), at least one. Axes with one sampled value get a constant factor.
        values: (n,), not negative.
        rank: Terms of the sum.
        seed: Of the starts after the first.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    degrees = [min(MAX_DEGREE, len(np.unique(points[:, a])) - 1) for a in range(points.shape[1])]
    empty = AxisModel(coefficients=tuple(np.ones((rank, d + 1)) for d in degrees), low=low, high=high)
    #: Step functions of the increments: column j is the sum of the Bernstein polynomials from j on.
    bases = [np.cumsum(empty._basis(points[:, a], a)[:, ::-1], axis=1)[:, ::-1] for a in range(points.shape[1])]
    generator = np.random.default_rng([seed, rank])
    best: tuple[float, list[FloatArray]] | None = None
    for start in range(1 if rank == 1 else _STARTS):
        found = _alternate(bases, values, rank, generator if start or rank > 1 else None)
        if best is None or found[0] < best[0]:
            best = found
    assert best is not None
    return AxisModel(coefficients=tuple(np.cumsum(c, axis=1) for c in best[1]), low=low, high=high)


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerCost:
    """scale * product of x_a ** exponents_a. The paper's cost is d w^2 r^2."""

    scale: float
    exponents: tuple[float, ...]

    def log(self, points: FloatArray) -> FloatArray:
        """The logarithm (n,) at `points` (n, axes)."""
        logs: FloatArray = math.log(self.scale) + np.log(points) @ np.array(self.exponents)
        return logs


def fit_power_cost(points: FloatArray, costs: FloatArray) -> PowerCost:
    """The power law through `costs` (n,) at `points` (n, axes), by least squares of logarithms; exponents are kept
    positive, as more of a dimension never makes a network cheaper.
    """
    columns = np.column_stack((np.log(points), np.ones(len(points)), -np.ones(len(points))))
    offset = np.log(costs).max()
    # Logarithms of parts of one fall with the exponents, so that all unknowns but the constant are non-negative.
    solution, _ = nnls(columns, np.log(costs) - offset)
    exponents = np.maximum(solution[:-2], 1e-3)
    scale = math.exp(offset + solution[-2] - solution[-1])
    return PowerCost(scale=scale, exponents=tuple(float(e) for e in exponents))


@dataclass(frozen=True, slots=True, kw_only=True)
class KktPoint:
    """The optimum of a model within a budget, and how well it meets the Karush-Kuhn-Tucker conditions.

    `residuals` has one number for each axis, relative to the multiplier: for interior axes |x F_x / e - lambda|, for
    those at a bound how far the inequality fails. `cost_residual` is |C(x) / budget - 1|.
    """

    budget: float
    point: tuple[float, ...]
    value: float
    multiplier: float
    at_bound: tuple[str, ...]
    residuals: tuple[float, ...]
    cost_residual: float


def solve_kkt(model: AxisModel, cost: PowerCost, budget: float) -> KktPoint | None:
    """max F(x) subject to C(x) = budget inside the sampled box; None where the box has no point of that cost.

    In u = ln x the cost is linear, so the conditions are x F_x / e_x = lambda for interior axes, e being the exponents
    of the cost; at an upper bound the left side is at least lambda, at a lower bound at most (Wang et al.; for their
    cost d w^2 r^2: d F_d = w F_w / 2 = r F_r / 2).
    """
    exponents = np.array(cost.exponents)
    low, high = np.log(model.low), np.log(model.high)
    target = math.log(budget) - math.log(cost.scale)
    if not exponents @ low - 1e-12 <= target <= exponents @ high + 1e-12:
        return None
    start = _best_on_grid(model, exponents, low, high, target)
    found = minimize(
        lambda u: -float(model(np.exp(u)[None])[0]),
        start,
        jac=lambda u: -np.exp(u) * model.gradient(np.exp(u)),
        bounds=list(zip(low, high, strict=True)),
        constraints=[{"type": "eq", "fun": lambda u: float(exponents @ u) - target, "jac": lambda u: exponents}],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    u = start
    feasible = abs(exponents @ found.x - target) <= 1e-8
    if feasible and float(model(np.exp(found.x)[None])[0]) >= float(model(np.exp(start)[None])[0]):
        u = np.clip(found.x, low, high)
    return _conditions(model, cost, budget, u, low, high)


def _conditions(
    model: AxisModel, cost: PowerCost, budget: float, u: FloatArray, low: FloatArray, high: FloatArray
) -> KktPoint:
    x = np.exp(u)
    rates = x * model.gradient(x) / np.array(cost.exponents)
    width = 1e-6
    at_bound = [
        "fixed" if top - bottom <= width else "upper" if top - v <= width else "lower" if v - bottom <= width else ""
        for v, bottom, top in zip(u, low, high, strict=True)
    ]
    inner = [rate for rate, bound in zip(rates, at_bound, strict=True) if not bound]
    if inner:
        multiplier = float(np.mean(inner))
    else:
        # Any multiplier between the rates at lower and upper bounds will do: the middle one.
        floor = [r for r, b in zip(rates, at_bound, strict=True) if b == "lower"]
        ceiling = [r for r, b in zip(rates, at_bound, strict=True) if b == "upper"]
        multiplier = float(np.mean([*([max(floor)] if floor else []), *([min(ceiling)] if ceiling else [])] or [0.0]))
    scale = max(abs(multiplier), float(np.abs(rates).max()), 1e-12)
    return KktPoint(
        budget=budget,
        point=tuple(float(v) for v in x),
        value=float(model(x[None])[0]),
        multiplier=multiplier,
        at_bound=tuple(at_bound),
        residuals=tuple(
            _gap(float(rate) - multiplier, bound) / scale for rate, bound in zip(rates, at_bound, strict=True)
        ),
        cost_residual=abs(math.exp(float(cost.log(x[None])[0])) / budget - 1.0),
    )


def _gap(difference: float, bound: str) -> float:
    """How far an axis at `bound`, whose rate is above the multiplier by `difference`, fails its condition."""
    if bound == "fixed":
        return 0.0
    if bound == "upper":
        return max(0.0, -difference)
    return max(0.0, difference) if bound == "lower" else abs(difference)


def _best_on_grid(
    model: AxisModel, exponents: FloatArray, low: FloatArray, high: FloatArray, target: float
) -> FloatArray:
    """The best of a grid on the surface of the budget: each axis in turn follows from the others."""
    found: list[FloatArray] = []
    axes = range(len(low))
    for free in axes:
        others = [a for a in axes if a != free]
        lines = [np.linspace(low[a], high[a], _GRID if high[a] > low[a] else 1) for a in others]
        grid = np.array(list(itertools.product(*lines)), dtype=np.float64).reshape(-1 if others else 1, len(others))
        points = np.zeros((len(grid), len(low)))
        points[:, others] = grid
        points[:, free] = (target - grid @ exponents[others]) / exponents[free]
        inside = (points[:, free] >= low[free] - 1e-12) & (points[:, free] <= high[free] + 1e-12)
        found.append(np.clip(points[inside], low, high))
    points = np.concatenate(found)
    if not len(points):
        # The surface meets the box between grid lines only: on the way from its lowest corner to its highest.
        share = (target - float(exponents @ low)) / max(float(exponents @ (high - low)), 1e-300)
        points = (low + min(1.0, max(0.0, share)) * (high - low))[None]
    best: FloatArray = points[int(np.argmax(model(np.exp(points))))]
    return best


def _alternate(
    bases: Sequence[FloatArray], values: FloatArray, rank: int, generator: np.random.Generator | None
) -> tuple[float, list[FloatArray]]:
    """Increments (rank, columns) of each axis, and the loss."""
    increments: list[FloatArray] = []
    for basis in bases:
        first = np.zeros((rank, basis.shape[1]))
        first[:, 0] = 1.0
        if generator is not None:
            first += generator.random(first.shape)
        increments.append(first)
    loss = math.inf
    root = math.sqrt(_RIDGE)
    for _ in range(_MAX_SWEEPS):
        for axis, basis in enumerate(bases):
            others = np.ones((len(values), rank))
            for other, factor in enumerate(increments):
                if other != axis:
                    others = others * (bases[other] @ factor.T)
            # (n, rank * columns): every increment of every term of this axis.
            columns = (others[:, :, None] * basis[:, None, :]).reshape(len(values), -1)
            size = columns.shape[1]
            solution, _ = nnls(np.vstack((columns, root * np.eye(size))), np.concatenate((values, np.zeros(size))))
            increments[axis] = solution.reshape(rank, -1)
            # The size of a product is anyone's: all of it goes to the axis that is solved for last.
            if axis < len(bases) - 1:
                norms = np.maximum(increments[axis].sum(axis=1, keepdims=True), 1e-12)
                increments[axis] = increments[axis] / norms
        error = values - _predicted(bases, increments)
        before, loss = loss, float(error @ error)
        if before - loss <= 1e-14 * max(1.0, before) and math.isfinite(before):
            break
    return loss, increments


def _predicted(bases: Sequence[FloatArray], increments: Sequence[FloatArray]) -> FloatArray:
    product: FloatArray = np.ones((len(bases[0]), len(increments[0])))
    for basis, factor in zip(bases, increments, strict=True):
        product = product * (basis @ factor.T)
    total: FloatArray = product.sum(axis=1)
    return total


def _bernstein(t: FloatArray, degree: int) -> FloatArray:
    """The Bernstein polynomials (n, degree + 1) at `t` (n,)."""
    k = np.arange(degree + 1)
    binomials = np.array([math.comb(degree, int(i)) for i in k])
    basis: FloatArray = binomials * t[:, None] ** k * (1.0 - t[:, None]) ** (degree - k)
    return basis
