"""Dominance, crowding and hypervolume: by hand, on closed forms, and against slow twins."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from search.pareto import (
    crowding_distance,
    hypervolume,
    non_dominated_mask,
    non_domination_rank,
    tied_pairs,
    undominated_beyond_noise,
)

INF = np.inf
NAN = np.nan


def objective_arrays(max_rows: int = 12, max_columns: int = 4, *, special: bool = True) -> st.SearchStrategy[Any]:
    """Small integer grids, so that ties and duplicates are common; infinities and NaN when `special`."""
    values = [float(v) for v in range(5)] + ([INF, -INF, NAN] if special else [])
    return st.tuples(st.integers(0, max_rows), st.integers(1, max_columns)).flatmap(
        lambda shape: arrays(np.float64, shape, elements=st.sampled_from(values))
    )


def slow_dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def test_mask_by_hand() -> None:
    points = [
        (1, 5),  # front
        (2, 3),  # front
        (2, 4),  # worse than (2, 3)
        (4, 1),  # front
        (4, 1),  # equal to it: neither dominates
        (5, 5),  # worse than all
    ]
    assert non_dominated_mask(points).tolist() == [True, True, False, True, True, False]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_nan_row_is_on_no_front_wherever_it_stands(order: tuple[int, ...]) -> None:
    points = np.array([(NAN, 0.0), (1.0, 2.0), (2.0, 1.0)])[list(order)]
    assert non_dominated_mask(points).tolist() == [not np.isnan(p).any() for p in points]
    rank = non_domination_rank(points)
    assert [r for r, p in zip(rank, points, strict=True) if np.isnan(p).any()] == [1]


def test_infinity_in_the_second_objective() -> None:
    assert non_dominated_mask([(0, INF), (1, INF), (2, 0)]).tolist() == [True, False, True]
    assert non_dominated_mask([(0, INF), (0, INF)]).tolist() == [True, True]


def test_empty() -> None:
    empty = np.empty((0, 2))
    assert non_dominated_mask(empty).shape == (0,)
    assert non_domination_rank(empty).shape == (0,)
    assert crowding_distance(empty).shape == (0,)
    assert hypervolume(empty, (1, 1)) == 0.0


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((2, 0)), np.zeros((1, 2, 3))])
def test_wrong_shape_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="shape"):
        non_dominated_mask(bad)


@settings(deadline=None)
@given(objective_arrays())
def test_mask_equals_the_definition(points: np.ndarray) -> None:
    expected = [
        not np.isnan(p).any() and not any(slow_dominates(q, p) for q in points if not np.isnan(q).any()) for p in points
    ]
    assert non_dominated_mask(points).tolist() == expected


def test_rank_by_hand() -> None:
    points = [(1, 4), (2, 2), (4, 1), (2, 5), (3, 3), (5, 5)]
    assert non_domination_rank(points).tolist() == [0, 0, 0, 1, 1, 2]


def test_rank_puts_feasible_rows_first() -> None:
    points = [(9, 9), (1, 1), (1, 1), (0, 0), (NAN, 0)]
    violations = [0, 0.5, 0.2, 0.5, 0]
    assert non_domination_rank(points, violations).tolist() == [0, 2, 1, 2, 3]


@settings(deadline=None)
@given(objective_arrays(special=False), st.data())
def test_rank_agrees_with_constrained_dominance(points: np.ndarray, data: st.DataObject) -> None:
    violations = np.array([data.draw(st.sampled_from([0.0, 0.0, 0.5, 1.0])) for _ in points])
    ranks = non_domination_rank(points, violations)
    for i, j in itertools.permutations(range(len(points)), 2):
        if violations[i] < violations[j]:
            assert ranks[i] < ranks[j]
        if violations[i] == violations[j] == 0 and slow_dominates(points[i], points[j]):
            assert ranks[i] < ranks[j]
    if len(points):
        assert sorted(set(ranks)) == list(range(ranks.max() + 1))


@settings(deadline=None)
@given(objective_arrays())
def test_ranks_are_fronts_taken_away_one_after_the_other(points: np.ndarray) -> None:
    ranks = non_domination_rank(points)
    left = np.flatnonzero(~np.isnan(points).any(axis=1))
    rank = 0
    while left.size:
        front = non_dominated_mask(points[left])
        assert (ranks[left[front]] == rank).all()
        left, rank = left[~front], rank + 1
    assert (ranks[np.isnan(points).any(axis=1)] == rank).all()


def test_crowding_by_hand() -> None:
    # ranges 4 and 8: the second point has gaps (2 - 0) / 4 and (8 - 2) / 8, the third (4 - 1) / 4 and (4 - 0) / 8
    points = [(0, 8), (1, 4), (2, 2), (4, 0)]
    assert crowding_distance(points).tolist() == [INF, 2 / 4 + 6 / 8, 3 / 4 + 4 / 8, INF]


def test_crowding_without_a_range_or_with_nan() -> None:
    assert crowding_distance([(1, 1), (1, 1), (1, 1), (1, 1)]).tolist() == [0, 0, 0, 0]
    assert crowding_distance([(0, 2), (NAN, 1), (2, 0)]).tolist() == [INF, 0, INF]


def test_hypervolume_by_hand() -> None:
    # boxes up to (5, 5): 4 x 1, then 3 x 2 more, then 1 x 1 more
    assert hypervolume([(1, 4), (2, 2), (4, 1), (4, 4), (6, 0)], (5, 5)) == 4 + 6 + 1


def test_hypervolume_of_a_cube_with_a_corner_cut() -> None:
    # the corner points of [0, 2]^3 that leave only the unit cube at the origin undominated
    assert hypervolume([(1, 0, 0), (0, 1, 0), (0, 0, 1)], (2, 2, 2)) == 7


@pytest.mark.parametrize("dimensions", [2, 3, 4])
def test_hypervolume_of_a_simplex_grid_closed_form(dimensions: int) -> None:
    # points i with sum(i) = k in [0, k + 1]^m dominate every unit cell whose corner has sum >= k
    k = 4
    points = [p for p in itertools.product(range(k + 1), repeat=dimensions) if sum(p) == k]
    cells = sum(1 for p in itertools.product(range(k + 1), repeat=dimensions) if sum(p) >= k)
    assert hypervolume(points, [k + 1] * dimensions) == cells


def test_hypervolume_refuses_a_reference_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        hypervolume([(1, 1)], (2, 2, 2))
    with pytest.raises(ValueError, match="finite"):
        hypervolume([(1, 1)], (2, INF))


def test_hypervolume_ignores_nan_and_is_infinite_with_minus_infinity() -> None:
    assert hypervolume([(NAN, 0), (1, 1)], (2, 2)) == 1
    assert hypervolume([(-INF, 1)], (2, 2)) == INF


@settings(deadline=None, max_examples=60)
@given(objective_arrays(8, 4, special=False))
def test_hypervolume_counts_grid_cells(points: np.ndarray) -> None:
    # integer points below 4: count unit cells whose lower corner some point is not above
    dimensions = points.shape[1]
    cells = 0
    for corner in itertools.product(range(4), repeat=dimensions):
        cells += any(all(x <= c for x, c in zip(p, corner, strict=True)) for p in points)
    assert hypervolume(points, [4] * dimensions) == cells


@settings(deadline=None, max_examples=60)
@given(objective_arrays(8, 3, special=False))
def test_hypervolume_depends_on_the_front_only(points: np.ndarray) -> None:
    reference = [6.0] * points.shape[1]
    assert hypervolume(points[non_dominated_mask(points)], reference) == hypervolume(points, reference)


def test_noise_takes_off_only_what_is_worse_beyond_both_intervals() -> None:
    #            clear  slower, accuracy overlaps  slower and worse  faster, worse  undefined
    low = [[1.0, 0.10], [2.0, 0.14], [2.0, 0.30], [0.5, 0.30], [NAN, 0.0]]
    high = [[1.1, 0.15], [2.1, 0.19], [2.1, 0.40], [0.6, 0.40], [9.0, 0.0]]
    assert undominated_beyond_noise(low, high).tolist() == [True, True, False, True, False]
    # Of the third, the ends in the first objective touch: still nowhere above, and below in the other.
    assert not undominated_beyond_noise([[1.0, 1.0], [2.0, 5.0]], [[2.0, 1.0], [3.0, 6.0]])[1]


@given(objective_arrays())
def test_noise_of_width_zero_is_dominance_itself(points: np.ndarray) -> None:
    np.testing.assert_array_equal(undominated_beyond_noise(points, points), non_dominated_mask(points))


@given(objective_arrays(special=False), st.floats(0.0, 3.0), st.floats(0.0, 3.0))
def test_more_noise_takes_fewer_off(points: np.ndarray, small: float, more: float) -> None:
    narrow = undominated_beyond_noise(points - small, points + small)
    wide = undominated_beyond_noise(points - small - more, points + small + more)
    assert (wide >= narrow).all()
    assert (narrow >= non_dominated_mask(points)).all()


def test_ties_are_pairs_that_overlap_in_every_objective() -> None:
    low = [[1.0, 0.1], [1.4, 0.1], [1.8, 0.1], [1.0, 0.9], [NAN, NAN]]
    high = [[1.5, 0.2], [1.9, 0.2], [2.3, 0.2], [1.5, 1.0], [NAN, NAN]]
    ties = tied_pairs(low, high)
    np.testing.assert_array_equal(ties, ties.T)
    assert list(zip(*np.nonzero(np.triu(ties)), strict=True)) == [(0, 1), (1, 2)]


@pytest.mark.parametrize(
    ("low", "high", "match"), [([[1.0]], [[1.0, 2.0]], "shapes"), ([[2.0, 1.0]], [[1.0, 2.0]], "below its beginning")]
)
def test_intervals_that_are_none(low: list[list[float]], high: list[list[float]], match: str) -> None:
    for function in (undominated_beyond_noise, tied_pairs):
        with pytest.raises(ValueError, match=match):
            function(low, high)
