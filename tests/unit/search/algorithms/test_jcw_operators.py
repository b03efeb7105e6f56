"""JCW's operators on arrays that can be followed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.algorithms.jcw import crossover, latency_targets, mutate, random_pairs, uniform_selection

CHOICES = np.array([7, 7, 4, 2, 3, 1])
ORDERED = np.array([True, True, True, True, False, True])


def genomes(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, CHOICES, size=(count, len(CHOICES)))


def test_targets() -> None:
    latencies = np.array([1.0, 3.0, 7.0, 9.0, np.nan])
    assert latency_targets(latencies, np.zeros(5), 4).tolist() == pytest.approx([1, 11 / 3, 19 / 3, 9])
    assert latency_targets(latencies, np.array([0, 0, 0, 0.2, 0]), 4).tolist() == [1, 3, 5, 7]
    assert latency_targets(latencies, np.ones(5), 2).tolist() == [1, 9]


def test_selection_by_hand() -> None:
    # (loss, latency); targets 0 and 10
    points = np.array(
        [
            (9.0, 0.0),  # 0: nearest to target 0
            (5.0, 4.0),  # 1: front for target 0
            (1.0, 10.0),  # 2: the best loss: front for both
            (6.0, 5.0),  # 3: (6, 5) and (6, 5): dominated by 1 for target 0, by 2 for target 10
            (9.5, 1.0),  # 4: dominated by 0 and 1 for target 0, by 2 for target 10
        ]
    )
    targets = np.array([0.0, 10.0])
    assert uniform_selection(points, np.zeros(5), 1, targets, 3).tolist() == [0, 1, 2]
    # two of the first stage: target 0 gives an end of its latency range first, target 10 its only row
    assert uniform_selection(points, np.zeros(5), 1, targets, 2).tolist() == [0, 2]
    # an infeasible row waits for all feasible ones
    violations = np.array([0.0, 0, 0.1, 0, 0])
    assert 2 not in uniform_selection(points, violations, 1, targets, 4).tolist()


def test_targets_keep_the_middle_that_one_front_would_lose() -> None:
    # many fast points with good trade-offs, one slow point that a single (loss, latency) front ranks last
    fast = [(1.0 + i / 100, 1.0 - i / 100) for i in range(20)]
    points = np.array([*fast, (3.0, 5.0)])
    chosen = uniform_selection(points, np.zeros(21), 1, np.array([0.8, 5.0]), 8)
    assert 20 in chosen


@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 29), st.integers(2, 6))
def test_selection_returns_as_many_as_asked(seed: int, size: int, count: int, num_targets: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 6, size=(size, 2)).astype(float)
    violations = rng.choice([0.0, 0.0, 0.5], size=size)
    count = min(count, size)
    targets = latency_targets(points[:, 1], violations, num_targets)
    chosen = uniform_selection(points, violations, 1, targets, count)
    assert len(set(chosen.tolist())) == count
    if (violations[chosen] > 0).any():
        assert (violations[np.setdiff1d(np.arange(size), chosen)] > 0).all() or not (violations == 0).any()


def test_mutation_moves_about_one_gene_a_child_by_one_or_two_steps() -> None:
    rng = np.random.default_rng(0)
    before = genomes(rng, 4000)
    after = mutate(rng, before, CHOICES, ORDERED)
    assert (after >= 0).all()
    assert (after < CHOICES).all()
    steps = np.abs(after - before)
    assert steps[:, ORDERED].max() == 2
    # 5 of 6 genes can change, each with probability 1/6
    assert np.count_nonzero(steps) / len(before) == pytest.approx(5 / 6, rel=0.1)


def test_crossover_stays_on_the_grid_and_swaps_what_has_no_order() -> None:
    rng = np.random.default_rng(0)
    first, second = genomes(rng, 3000), genomes(rng, 3000)
    children = crossover(rng, first, second, CHOICES, ORDERED)
    assert children.shape == (6000, len(CHOICES))
    assert (children >= 0).all()
    assert (children < CHOICES).all()
    scheme = 4
    pairs = np.sort(np.stack((children[:3000, scheme], children[3000:, scheme])), axis=0)
    np.testing.assert_array_equal(pairs, np.sort(np.stack((first[:, scheme], second[:, scheme])), axis=0))


def test_equal_parents_have_equal_children() -> None:
    rng = np.random.default_rng(0)
    parents = genomes(rng, 50)
    np.testing.assert_array_equal(
        crossover(rng, parents, parents, CHOICES, ORDERED), np.concatenate((parents, parents))
    )


def test_pairs_are_of_different_members() -> None:
    rng = np.random.default_rng(0)
    pairs = random_pairs(rng, 5, 1000)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert set(pairs.ravel()) == set(range(5))
    assert random_pairs(rng, 1, 3).tolist() == [[0, 0]] * 3
