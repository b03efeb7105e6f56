"""Dominance, crowding and hypervolume on arrays of objectives.

Everywhere: objectives are minimised, shape (n, m), a row a point. A row with a NaN is no point: it dominates nothing,
is on no front, and comes last in every ranking. Infinite values are allowed and compare as numbers.

References:
    [Deb2002] K. Deb, A. Pratap, S. Agarwal, T. Meyarivan: A fast and elitist multiobjective genetic algorithm: NSGA-II.
        IEEE Transactions on Evolutionary Computation 6(2), 2002. doi:10.1109/4235.996017
    [While2012] L. While, L. Bradstreet, L. Barone: A fast way of calculating exact hypervolumes.
        IEEE Transactions on Evolutionary Computation 16(1), 2012. doi:10.1109/TEVC.2010.2077298
    [Teich2001] J. Teich: Pareto-front exploration with uncertain objectives. Evolutionary Multi-Criterion Optimization,
        LNCS 1993, 2001. doi:10.1007/3-540-44719-9_22
"""

from __future__ import annotations

import bisect

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


def non_dominated_mask(objectives: ArrayLike) -> BoolArray:
    """Which rows of `objectives` (n, m) no other row dominates, shape (n,).

    A row dominates another if it is nowhere larger and somewhere smaller; so equal rows do not dominate each other and
    all of them are marked. Rows with a NaN are never marked.
    """
    points = _points(objectives)
    mask = np.zeros(len(points), dtype=np.bool_)
    valid = np.flatnonzero(~np.isnan(points).any(axis=1))
    if valid.size:
        find = _non_dominated_2d if points.shape[1] == 2 else _non_dominated_any
        mask[valid] = find(points[valid])
    return mask


def undominated_beyond_noise(low: ArrayLike, high: ArrayLike) -> BoolArray:
    """Which rows no other row dominates beyond noise, shape (n,); the ends of the objectives' intervals are (n, m).

    A row dominates another beyond noise if its interval ends nowhere above where the other's begins, and somewhere
    below it: wherever inside of the intervals the true figures lie, it dominates ([Teich2001], for objectives that are
    known as intervals; inferred: 95 % intervals stand for his ranges). Where the intervals are points, this is
    dominance itself. Rows with a NaN are never marked and dominate nothing.
    """
    lower, upper = _intervals(low, high)
    no_higher = (upper[:, None] <= lower[None]).all(axis=2)
    somewhere_lower = (upper[:, None] < lower[None]).any(axis=2)
    is_dominated = (no_higher & somewhere_lower).any(axis=0)
    is_defined = ~np.isnan(lower).any(axis=1) & ~np.isnan(upper).any(axis=1)
    return np.asarray(~is_dominated & is_defined, dtype=np.bool_)


def tied_pairs(low: ArrayLike, high: ArrayLike) -> BoolArray:
    """Which pairs of rows noise does not tell apart, shape (n, n): their intervals overlap in every objective.

    Symmetric, False on the diagonal and for rows with a NaN. Not transitive: of three rows in a line, the outer two may
    be told apart. Intervals that share an end overlap.
    """
    lower, upper = _intervals(low, high)
    overlap = np.asarray(
        ((lower[:, None] <= upper[None]) & (lower[None] <= upper[:, None])).all(axis=2), dtype=np.bool_
    )
    np.fill_diagonal(overlap, False)
    return overlap


def non_domination_rank(objectives: ArrayLike, violations: ArrayLike | None = None) -> IntArray:
    """The front that each row is on, shape (n,): 0 for the non-dominated, 1 for those left without them, and so on.

    With `violations` (n,), feasibility comes first (constrained domination, [Deb2002] section VI): rows with violation
    0 are ranked by dominance; the others follow, a rank for each distinct violation in ascending order. Rows with a
    NaN share the last rank.
    """
    points = _points(objectives)
    excess = _violations(violations, len(points))
    ranks = np.zeros(len(points), dtype=np.int64)
    undefined = np.isnan(points).any(axis=1) | np.isnan(excess)
    feasible = ~undefined & (excess <= 0)
    find = _ranks_2d if points.shape[1] == 2 else _ranks_any
    ranks[feasible] = find(points[feasible])
    next_rank = int(ranks.max(initial=-1, where=feasible)) + 1
    infeasible = ~undefined & ~feasible
    levels, position = np.unique(excess[infeasible], return_inverse=True)
    ranks[infeasible] = next_rank + position
    ranks[undefined] = next_rank + len(levels)
    return ranks


def crowding_distance(objectives: ArrayLike) -> FloatArray:
    """How alone each row of one front is, shape (n,): the sum over objectives of the gap between its two neighbours.

    [Deb2002] section III-B: gaps are relative to the range of the objective, and the ends of every objective get
    infinity. An objective without a range (all equal, or infinite) adds nothing, neither to the inner points nor to the
    ends. Rows with a NaN get 0. Ties are ordered as given.
    """
    points = _points(objectives)
    distance = np.zeros(len(points))
    valid = np.flatnonzero(~np.isnan(points).any(axis=1))
    for column in points[valid].T:
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        extent = ordered[-1] - ordered[0] if ordered.size else 0.0
        if not np.isfinite(extent) or extent <= 0:
            continue
        gaps = np.zeros(ordered.size)
        gaps[1:-1] = (ordered[2:] - ordered[:-2]) / extent
        gaps[[0, -1]] = np.inf
        distance[valid[order]] += gaps
    return distance


def hypervolume(objectives: ArrayLike, reference_point: ArrayLike) -> float:
    """The volume that the rows of `objectives` (n, m) dominate up to `reference_point` (m,); exact.

    Rows that are not better than the reference point in every objective add nothing, and so do rows with a NaN. A sweep
    for one or two objectives, the exclusive volumes of [While2012] for more (exponential in m: meant for m <= 5).
    Infinite where a row that counts has minus infinity.
    """
    points = _points(objectives)
    reference = np.asarray(reference_point, dtype=np.float64)
    if reference.shape != (points.shape[1],):
        raise ValueError(f"a reference point of shape {reference.shape} does not fit {points.shape[1]} objectives")
    if not np.isfinite(reference).all():
        raise ValueError(f"the reference point {reference.tolist()} must be finite")
    inside = (points < reference).all(axis=1)  # False where there is a NaN
    points = points[inside]
    points = np.unique(points[non_dominated_mask(points)], axis=0)
    if len(points) == 0:
        return 0.0
    if np.isneginf(points).any():
        return float("inf")
    return _exclusive_sum(points, reference)


def _points(objectives: ArrayLike) -> FloatArray:
    points = np.asarray(objectives, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] == 0:
        raise ValueError(f"objectives must have shape (n, m) with m >= 1, not {points.shape}")
    return points


def _intervals(low: ArrayLike, high: ArrayLike) -> tuple[FloatArray, FloatArray]:
    lower, upper = _points(low), _points(high)
    if lower.shape != upper.shape:
        raise ValueError(f"ends of shapes {lower.shape} and {upper.shape} are not those of the same intervals")
    if (lower > upper).any():
        raise ValueError("an interval ends below its beginning")
    return lower, upper


def _violations(violations: ArrayLike | None, count: int) -> FloatArray:
    if violations is None:
        return np.zeros(count)
    excess = np.asarray(violations, dtype=np.float64)
    if excess.shape != (count,):
        raise ValueError(f"violations must have shape ({count},), not {excess.shape}")
    return excess


def _non_dominated_any(points: FloatArray) -> BoolArray:
    """The mask for any number of objectives: each row, in lexicographic order, against the front so far.

    A row never dominates one that comes earlier in that order, so the front only grows.
    """
    mask = np.zeros(len(points), dtype=np.bool_)
    front = np.empty_like(points)
    size = 0
    for index in np.lexsort(points.T[::-1]):
        point = points[index]
        no_larger = (front[:size] <= point).all(axis=1)
        if (no_larger & (front[:size] < point).any(axis=1)).any():
            continue
        mask[index] = True
        front[size] = point
        size += 1
    return mask


def _non_dominated_2d(points: FloatArray) -> BoolArray:
    """The mask for two objectives in O(n log n): sorted by the first, a row must beat all before it in the second."""
    order = np.lexsort((points[:, 1], points[:, 0]))
    first, second = points[order, 0], points[order, 1]
    best_before = np.concatenate(([np.inf], np.minimum.accumulate(second)[:-1]))
    on_front = second < best_before
    if len(points) and second[0] == np.inf:
        on_front[0] = True  # nothing comes before it, so nothing dominates it
    # Rows equal to the one before them share its fate: neither dominates the other.
    equal = np.concatenate(([False], (first[1:] == first[:-1]) & (second[1:] == second[:-1])))
    start = np.maximum.accumulate(np.where(equal, 0, np.arange(len(points))))
    mask = np.zeros(len(points), dtype=np.bool_)
    mask[order] = on_front[start]
    return mask


def _ranks_any(points: FloatArray) -> IntArray:
    """The ranks for any number of objectives: one front after the other is taken away."""
    ranks = np.zeros(len(points), dtype=np.int64)
    remaining = np.arange(len(points))
    next_rank = 0
    while remaining.size:
        front = _non_dominated_any(points[remaining])
        ranks[remaining[front]] = next_rank
        remaining = remaining[~front]
        next_rank += 1
    return ranks


def _ranks_2d(points: FloatArray) -> IntArray:
    """The ranks for two objectives in O(n log n), in the manner of the sweep of _non_dominated_2d over all fronts.

    In lexicographic order, a front dominates a row if the second objective of its last row is no larger. These last
    values ascend from front to front, so that the row's front is found by bisection.
    """
    order = np.lexsort((points[:, 1], points[:, 0]))
    ordered = points[order].tolist()
    last: list[float] = []
    found: list[int] = []
    for index, row in enumerate(ordered):
        # Rows equal to the one before them share its fate: neither dominates the other.
        if index and row == ordered[index - 1]:
            found.append(found[-1])
            continue
        rank = bisect.bisect_right(last, row[1])
        last[rank : rank + 1] = [row[1]]
        found.append(rank)
    ranks = np.zeros(len(points), dtype=np.int64)
    ranks[order] = found
    return ranks


def _exclusive_sum(points: FloatArray, reference: FloatArray) -> float:
    """The hypervolume of distinct, mutually non-dominated points below `reference`."""
    dimensions = points.shape[1]
    if dimensions == 1:
        return float(reference[0] - points.min())
    points = points[np.argsort(points[:, -1], kind="stable")[::-1]]
    if dimensions == 2:
        # Descending in the second objective is ascending in the first: each point adds a box up to the next one.
        right = np.append(points[1:, 0], reference[0])
        return float(np.sum((right - points[:, 0]) * (reference[1] - points[:, 1])))
    total = 0.0
    for index, point in enumerate(points):
        # [While2012] eq. 1: the box of a point, less what the later ones dominate of it.
        total += float(np.prod(reference - point))
        limited = np.maximum(points[index + 1 :], point)
        if len(limited):
            limited = np.unique(limited[non_dominated_mask(limited)], axis=0)
            total -= _exclusive_sum(limited, reference)
    return total
