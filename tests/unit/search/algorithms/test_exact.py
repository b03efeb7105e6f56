"""The exact front against all genomes of small random problems."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from search.algorithms.exact import ExactFront
from search.algorithms.factors import Elimination, Factor, TableSum, evaluate
from search.errors import InfeasibleBudget
from search.pareto import hypervolume, non_dominated_mask

NUM_CHOICES = (3, 2, 4, 3, 2)
SCOPES = ((0, 1), (1, 2, 3), (2,), (0, 3), (3, 4), ())


def test_sums_do_not_depend_on_how_many_are_asked_for() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 7, size=40)
    scopes = [(a, a + 1) for a in range(39)] + [(3, 7, 20), (), (5,)]
    factors = [Factor(variables=s, values=rng.random(tuple(counts[v] for v in s))) for s in scopes]
    genomes = rng.integers(0, counts, size=(50, 40))
    at_once = TableSum(factors)(genomes)
    assert at_once.tolist() == [float(TableSum(factors)(genomes[n : n + 1])[0]) for n in range(50)]
    by_hand = [sum(float(f.values[tuple(g[v] for v in f.variables)]) for f in factors) for g in genomes]
    assert at_once.tolist() == by_hand
    assert evaluate((), genomes).tolist() == [0.0] * 50


def tables(seed: int, scopes: tuple[tuple[int, ...], ...] = SCOPES) -> list[Factor]:
    rng = np.random.default_rng(seed)
    return [Factor(variables=s, values=rng.random([NUM_CHOICES[v] for v in s])) for s in scopes]


def minimum(factors: list[Factor]) -> tuple[tuple[int, ...], float]:
    elimination = Elimination([f.variables for f in factors], NUM_CHOICES)
    assert elimination.is_exact
    found, bounds = elimination.minimise([f.values[None] for f in factors])
    return tuple(found[0]), float(bounds[0])


def every_genome() -> np.ndarray:
    return np.array(list(itertools.product(*map(range, NUM_CHOICES))))


@pytest.mark.parametrize("seed", range(10))
def test_elimination_finds_the_minimum(seed: int) -> None:
    factors = tables(seed)
    genomes = every_genome()
    values = evaluate(factors, genomes)
    best, bound = minimum(factors)
    assert best == tuple(genomes[values.argmin()])
    assert bound == pytest.approx(values.min())


def test_a_sum_is_that_of_its_tables() -> None:
    factors = [
        Factor(variables=(0, 1), values=np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])),
        Factor(variables=(1,), values=np.array([10.0, 20.0])),
    ]
    np.testing.assert_array_equal(evaluate(factors, np.array([[0, 0], [2, 1]])), [11.0, 26.0])


def test_variables_that_no_table_has_take_their_first_choice() -> None:
    factors = tables(0, ((0, 1),))
    assert minimum(factors)[0][2:] == (0, 0, 0)


def test_tables_must_fit_their_variables() -> None:
    with pytest.raises(ValueError, match="ascending"):
        Factor(variables=(1, 0), values=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="one axis each"):
        Factor(variables=(0,), values=np.zeros((2, 2)))


def everything_coupled(seed: int, variables: int, choices: int) -> list[Factor]:
    """A table for each pair of variables: no order of elimination keeps tables small."""
    rng = np.random.default_rng(seed)
    pairs = itertools.combinations(range(variables), 2)
    return [Factor(variables=pair, values=rng.random((choices, choices))) for pair in pairs]


@pytest.mark.parametrize("seed", range(6))
def test_parts_bound_the_minimum_and_lead_close_to_it(seed: int) -> None:
    factors = everything_coupled(seed, 6, 4)
    genomes = np.array(list(itertools.product(range(4), repeat=6)))
    values = evaluate(factors, genomes)
    split = Elimination([f.variables for f in factors], (4,) * 6, max_cells=4**3, split_cells=4**3)
    assert not split.is_exact
    found, bounds = split.minimise([np.stack((f.values, 2.0 * f.values)) for f in factors])
    value = evaluate(factors, found)[0]
    assert bounds[0] <= values.min() <= value <= values.min() + 0.15 * np.ptp(values)
    np.testing.assert_allclose(bounds[1], 2.0 * bounds[0])
    np.testing.assert_array_equal(found[0], found[1])
    # No gene alone makes it better.
    for place, choice in itertools.product(range(6), range(4)):
        other = found[:1].copy()
        other[0, place] = choice
        assert evaluate(factors, other)[0] >= value


def test_variables_that_all_depend_on_each_other_are_solved_with_a_gap() -> None:
    errors, costs = everything_coupled(0, 12, 6), everything_coupled(1, 12, 6)
    front = ExactFront(errors, costs, (6,) * 12)
    hull = front.hull(12)
    assert 0.0 < front.gap < 0.5
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 6, (20_000, 12))
    points = np.column_stack((evaluate(errors, drawn), evaluate(costs, drawn)))
    ends = points.max(axis=0)
    assert hypervolume([(p.error, p.cost) for p in hull], ends) > 1.2 * hypervolume(points, ends)
    assert front.least_cost() <= hull[0].cost
    with pytest.raises(InfeasibleBudget, match="smallest cost"):
        front.best_within(front.least_cost() - 0.01, time_limit_s=10.0)
    exact = ExactFront(tables(0), tables(1), NUM_CHOICES)
    exact.hull(12)
    assert exact.gap == 0.0


@pytest.mark.parametrize("seed", range(6))
def test_the_hull_is_that_of_all_genomes(seed: int) -> None:
    errors, costs = tables(seed), tables(seed + 100)
    front = ExactFront(errors, costs, NUM_CHOICES)
    genomes = every_genome()
    points = np.column_stack((evaluate(errors, genomes), evaluate(costs, genomes)))
    hull = front.hull(100)
    for error_weight in np.linspace(0.02, 0.98, 97):
        best = (points @ [error_weight, 1 - error_weight]).min()
        found = min(error_weight * p.error + (1 - error_weight) * p.cost for p in hull)
        assert found == pytest.approx(best, abs=1e-12)
    assert [p.cost for p in hull] == sorted(p.cost for p in hull)
    for point in hull:
        assert front.point(point.genome) == point
    limited = front.hull(4)
    assert len(limited) <= 4
    assert (limited[0], limited[-1]) == (hull[0], hull[-1])


@pytest.mark.parametrize("seed", range(4))
def test_a_budget_is_met_by_the_best_genome(seed: int) -> None:
    errors, costs = tables(seed), tables(seed + 100)
    front = ExactFront(errors, costs, NUM_CHOICES)
    genomes = every_genome()
    error, cost = evaluate(errors, genomes), evaluate(costs, genomes)
    for budget in np.quantile(cost, [0.05, 0.3, 0.6]):
        found = front.best_within(float(budget), time_limit_s=60.0)
        assert found.cost <= budget + 1e-9
        assert found.error == pytest.approx(error[cost <= budget].min(), abs=1e-9)
    with pytest.raises(InfeasibleBudget, match=f"smallest cost is {cost.min():.6g}"):
        front.best_within(float(cost.min()) * 0.99, time_limit_s=60.0)


def test_hull_and_budgets_together_make_the_whole_front() -> None:
    errors, costs = tables(3), tables(103)
    front = ExactFront(errors, costs, NUM_CHOICES)
    genomes = every_genome()
    points = np.column_stack((evaluate(errors, genomes), evaluate(costs, genomes)))
    true_front = points[non_dominated_mask(points)]
    found = np.array(
        [(p.error, p.cost) for p in (front.best_within(float(c) + 1e-9, time_limit_s=60.0) for c in true_front[:, 1])]
    )
    reference = points.max(axis=0) + 1.0
    assert hypervolume(found, reference) == pytest.approx(hypervolume(true_front, reference))
