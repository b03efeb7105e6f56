"""Statistics on numbers that can be worked out by hand, and their properties on any numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.contracts import Block, Clock
from device_agent.contracts.statistics import (
    block_medians,
    is_narrow,
    median_absolute_deviation,
    median_interval,
    modified_z_scores,
    percentile,
    relative_half_width,
    summarize,
)

times = st.lists(st.floats(1.0, 1e9), min_size=1, max_size=60)


def block(*cpu_ns: float, reference_ns: tuple[float, ...] = ()) -> Block:
    return Block(thread_cpu_ns=cpu_ns, wall_ns=tuple(2 * t for t in cpu_ns), reference_ns=reference_ns)


@given(times, st.floats(0, 100))
def test_percentile_is_numpys(samples: list[float], percent: float) -> None:
    assert percentile(samples, percent) == pytest.approx(float(np.percentile(samples, percent)), rel=1e-9)


def test_percentile_refuses_what_is_undefined() -> None:
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)
    with pytest.raises(ValueError, match="101"):
        percentile([1.0], 101)


def test_median_absolute_deviation() -> None:
    assert median_absolute_deviation([1, 2, 3, 4, 100]) == 1
    assert median_absolute_deviation([1, 2, 3], centre=0) == 2


def test_modified_z_scores_single_out_the_outlier() -> None:
    scores = modified_z_scores([10, 11, 12, 13, 100])
    assert scores[2] == 0
    assert [abs(s) > 3.5 for s in scores] == [False, False, False, False, True]
    assert modified_z_scores([5, 5, 5, 9]) == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("n", "rank"),
    # The largest k with 1 - 2 P(Binomial(n, 1/2) < k) >= 0.95, as in tables of the sign test.
    [(5, None), (6, 1), (8, 1), (9, 2), (12, 3), (15, 4), (20, 6), (40, 14)],
)
def test_median_interval_takes_the_ranks_of_the_sign_test(n: int, rank: int | None) -> None:
    values = list(range(1, n + 1))
    expected = None if rank is None else (rank, n + 1 - rank)
    assert median_interval(values) == expected


@given(st.integers(6, 40))
def test_median_interval_covers_as_promised(n: int) -> None:
    low, high = median_interval(list(range(n))) or (0, 0)
    rank = low + 1
    assert high == n - rank
    assert 1 - 2 * sum(math.comb(n, i) for i in range(int(rank))) / 2**n >= 0.95


def test_six_blocks_cover_the_median_in_97_of_100_experiments() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        low, high = median_interval(generator.exponential(size=6).tolist()) or (0.0, 0.0)
        covered += low <= math.log(2) <= high
    assert 0.955 < covered / 2000 < 0.982


def test_relative_half_width() -> None:
    assert relative_half_width((90.0, 110.0), 100.0) == pytest.approx(0.1)
    assert relative_half_width(None, 100.0) is None


def test_narrowness_has_a_floor_for_tiny_kernels() -> None:
    assert is_narrow((99.0, 101.0), 100.0, 0.02)
    assert is_narrow((95.0, 105.0), 100.0, 0.02)  # 5 ns are nothing that a clock can tell
    assert not is_narrow((95_000.0, 105_000.0), 100_000.0, 0.02)
    assert not is_narrow(None, 100.0, 0.02)


def test_the_headline_is_the_median_of_block_medians() -> None:
    blocks = [block(10, 11, 500), block(12, 12, 12), block(900, 900, 900)]
    assert block_medians(blocks, Clock.THREAD_CPU) == (11, 12, 900)
    assert summarize(blocks, Clock.THREAD_CPU).median_ns == 12
    assert summarize(blocks, Clock.WALL).median_ns == 24


def test_summary_of_all_samples() -> None:
    blocks = [block(*(10 * b + s for s in range(5)), reference_ns=(2.0, 5.0, 9.0)) for b in range(6)]
    summary = summarize(blocks, Clock.THREAD_CPU, "reference")
    assert (summary.num_samples, summary.num_blocks) == (30, 6)
    assert (summary.min_ns, summary.mean_ns, summary.median_ns) == (0, 27, 27)
    assert (summary.ci95_low_ns, summary.ci95_high_ns) == (2, 52)
    assert (summary.reference_ns, summary.reference_ratio) == (5, pytest.approx(5.4))
    assert summary.reference_name == "reference"


def test_spread_of_samples_and_of_units() -> None:
    summary = summarize([block(*([m] * 10)) for m in (90.0, 100.0, 110.0)], Clock.THREAD_CPU)
    assert summary.stdev_ns == pytest.approx((200 / 3) ** 0.5)
    assert summary.unit_cv == pytest.approx((200 / 3) ** 0.5 / 100)
    assert summarize([block(1.0, *([2.0] * 8), 1000.0)], Clock.THREAD_CPU).trimmed_mean_ns == 2
    assert summarize([block(1.0)], Clock.THREAD_CPU).unit_cv is None


def test_what_is_undefined_is_none() -> None:
    summary = summarize([block(1.0, 2.0)], Clock.THREAD_CPU, "reference")
    assert summary.ci95_low_ns is None
    assert summary.reference_ns is None
    assert summary.reference_ratio is None
    assert summary.reference_name is None
    with pytest.raises(ValueError, match="no samples"):
        summarize([], Clock.WALL)


@given(st.lists(st.lists(st.floats(1.0, 1e9), min_size=1, max_size=9), min_size=1, max_size=12))
def test_summaries_are_ordered(rows: list[list[float]]) -> None:
    summary = summarize([block(*row) for row in rows], Clock.THREAD_CPU)
    assert summary.min_ns <= summary.p5_ns <= summary.p10_ns <= summary.p90_ns <= summary.p95_ns
    if summary.ci95_low_ns is not None and summary.ci95_high_ns is not None:
        assert summary.ci95_low_ns <= summary.median_ns <= summary.ci95_high_ns
