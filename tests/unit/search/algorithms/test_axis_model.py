"""The polynomial over depth, width and resolution: its fit, its monotonicity, and its optimum by the KKT conditions."""

from __future__ import annotations

import numpy as np
import pytest

from search.algorithms.axis_model import PowerCost, fit_axis_model, fit_power_cost, solve_kkt

PAPER = PowerCost(scale=1.0, exponents=(1.0, 2.0, 2.0))


def synthetic(seed: int):
    """A non-separable accuracy: saturating in each dimension, with a loss that grows where all are small."""
    rng = np.random.default_rng(seed)
    sharp, share, mix = rng.uniform(1.5, 5.0, 3), rng.uniform(0.1, 0.3, 3), rng.uniform(0.02, 0.08)

    def accuracy(points: np.ndarray) -> np.ndarray:
        saturated = share * np.exp(-sharp * (points - 0.2))
        return 0.95 - saturated.sum(axis=1) - mix * np.prod(1.3 - points, axis=1)

    return accuracy


def axis_points(lows=(0.25, 0.3, 0.5)) -> np.ndarray:
    """Four points along each axis, and the origin."""
    points = [np.ones(3)]
    for axis, low in enumerate(lows):
        for value in np.linspace(1.0, low, 5)[1:]:
            point = np.ones(3)
            point[axis] = value
            points.append(point)
    return np.array(points)


def on_budget(budget: float, lows=(0.25, 0.3, 0.5)) -> np.ndarray:
    d, w = np.meshgrid(np.linspace(lows[0], 1, 76), np.linspace(lows[1], 1, 71))
    r = np.sqrt(budget / (d * w**2))
    points = np.column_stack((d.ravel(), w.ravel(), r.ravel()))
    return points[(points[:, 2] >= lows[2]) & (points[:, 2] <= 1)]


def test_axis_samples_are_interpolated_and_factors_do_not_fall() -> None:
    points = axis_points()
    for seed in range(5):
        values = synthetic(seed)(points)
        model = fit_axis_model(points, values)
        np.testing.assert_allclose(model(points), values, atol=4e-3)
        for coefficients in model.coefficients:
            assert (np.diff(coefficients, axis=1) >= 0).all()
            assert (coefficients >= 0).all()


def test_noise_does_not_make_it_fall() -> None:
    points = axis_points()
    rng = np.random.default_rng(0)
    for seed in range(5):
        values = synthetic(seed)(points) + 0.02 * rng.standard_normal(len(points))
        model = fit_axis_model(points, values)
        for x in rng.uniform(model.low, model.high, (50, 3)):
            assert (model.gradient(x) >= -1e-12).all()


def test_gradient_is_that_of_the_values() -> None:
    model = fit_axis_model(axis_points(), synthetic(3)(axis_points()))
    x = np.array([0.6, 0.7, 0.8])
    steps = 1e-6 * np.eye(3)
    numeric = [(model((x + s)[None]) - model((x - s)[None]))[0] / 2e-6 for s in steps]
    np.testing.assert_allclose(model.gradient(x), numeric, rtol=1e-6)


@pytest.mark.parametrize("budget", [0.5, 0.35, 0.25])
def test_regret_is_small_and_below_that_of_any_single_axis(budget: float) -> None:
    regrets, single = [], []
    for seed in range(30):
        accuracy = synthetic(seed)
        surface = on_budget(budget)
        best = accuracy(surface).max()
        model = fit_axis_model(axis_points(), accuracy(axis_points()))
        found = solve_kkt(model, PAPER, budget)
        assert found is not None
        assert found.cost_residual < 1e-6
        regrets.append(best - accuracy(np.array([found.point]))[0])
        alone = [(budget, 1, 1), (1, budget**0.5, 1), (1, 1, budget**0.5)]
        single.append(best - accuracy(np.array(alone)).max())
    assert np.mean(regrets) < 0.006
    assert np.mean(regrets) < 0.5 * np.mean(single)


def test_conditions_hold_at_interior_optima() -> None:
    interior = 0
    for seed in range(30):
        model = fit_axis_model(axis_points(), synthetic(seed)(axis_points()))
        for budget in (0.6, 0.35):
            found = solve_kkt(model, PAPER, budget)
            assert found is not None
            interior += found.at_bound == ("", "", "")
            assert max(found.residuals) < 1e-3
            # No point of a fine grid on the same budget is better.
            assert model(on_budget(budget)).max() <= found.value + 1e-9
    assert interior >= 10


def test_budgets_outside_of_the_samples_have_no_optimum() -> None:
    model = fit_axis_model(axis_points(), synthetic(0)(axis_points()))
    assert solve_kkt(model, PAPER, 0.001) is None
    assert solve_kkt(model, PAPER, 1.1) is None


def test_one_axis_and_rank_two() -> None:
    x = np.linspace(0.3, 1.0, 5)[:, None]
    model = fit_axis_model(x, np.sqrt(x[:, 0]))
    found = solve_kkt(model, PowerCost(scale=2.0, exponents=(2.0,)), 0.5)
    assert found is not None
    assert found.point[0] == pytest.approx(0.5, abs=1e-6)
    points = axis_points()
    values = synthetic(1)(points)
    error = [np.square(fit_axis_model(points, values, rank=r)(points) - values).sum() for r in (1, 2)]
    assert error[1] <= error[0] + 1e-9


def test_power_cost_finds_exponents() -> None:
    points = np.random.default_rng(0).uniform(0.3, 1.0, (40, 3))
    cost = fit_power_cost(points, 3.0 * points[:, 0] * points[:, 1] ** 1.7 * points[:, 2] ** 2)
    assert cost.scale == pytest.approx(3.0, rel=1e-6)
    np.testing.assert_allclose(cost.exponents, (1.0, 1.7, 2.0), rtol=1e-6)
