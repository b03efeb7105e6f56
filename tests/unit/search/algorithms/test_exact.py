"""The exact front against all genomes of small random problems."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from device_agent.contracts import ContractError
from search.algorithms.exact import ExactFront
from search.algorithms.factors import Factor, elimination_order, evaluate, minimise
from search.errors import InfeasibleBudget
from search.pareto import hypervolume, non_dominated_mask

NUM_CHOICES = (3, 2, 4, 3, 2)
SCOPES = ((0, 1), (1, 2, 3), (2,), (0, 3), (3, 4), ())


def tables(seed: int, scopes: tuple[tuple[int, ...], ...] = SCOPES) -> list[Factor]:
    rng = np.random.default_rng(seed)
    return [Factor(variables=s, values=rng.random([NUM_CHOICES[v] for v in s])) for s in scopes]


def every_genome() -> np.ndarray:
    return np.array(list(itertools.product(*map(range, NUM_CHOICES))))


@pytest.mark.parametrize("seed", range(10))
def test_elimination_finds_the_minimum(seed: int) -> None:
    factors = tables(seed)
    genomes = every_genome()
    values = evaluate(factors, genomes)
    best = minimise(factors, NUM_CHOICES, elimination_order(factors, NUM_CHOICES))
    assert best == tuple(genomes[values.argmin()])


def test_a_sum_is_that_of_its_tables() -> None:
    factors = [
        Factor(variables=(0, 1), values=np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])),
        Factor(variables=(1,), values=np.array([10.0, 20.0])),
    ]
    np.testing.assert_array_equal(evaluate(factors, np.array([[0, 0], [2, 1]])), [11.0, 26.0])


def test_variables_that_no_table_has_take_their_first_choice() -> None:
    factors = tables(0, ((0, 1),))
    assert minimise(factors, NUM_CHOICES, elimination_order(factors, NUM_CHOICES))[2:] == (0, 0, 0)


def test_tables_must_fit_their_variables() -> None:
    with pytest.raises(ValueError, match="ascending"):
        Factor(variables=(1, 0), values=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="one axis each"):
        Factor(variables=(0,), values=np.zeros((2, 2)))


def test_too_many_dependent_variables_are_refused() -> None:
    wide = tuple(range(12))
    ring = [Factor(variables=(a, b), values=np.zeros((8, 8))) for a, b in itertools.combinations(wide, 2)]
    with pytest.raises(ContractError, match="max_choices"):
        elimination_order(ring, (8,) * 12)


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
