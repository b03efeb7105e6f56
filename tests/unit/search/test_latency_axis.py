"""The axis of latencies: what is compared fills it, and what would stretch it is beyond."""

from __future__ import annotations

import pytest

from search.latency_axis import MICROSECONDS, MILLISECONDS, axis_reach_ms, latency_unit


@pytest.mark.parametrize(
    ("candidates", "baselines", "bounds", "reach"),
    [
        ([1.0, 3.0], [6.0, 8.0], [3.1], 8.0),  # both within twice the fastest
        ([1.0, 3.0], [6.0, 60.0], [3.1], 6.0),  # ten times slower
        ([1.0, 3.0], [30.0], [], 30.0),  # the only one is what candidates are compared with
        ([1.0, 70.0], [6.0, 60.0], [], 70.0),  # a candidate is never beyond
        ([1.0, 3.0], [], [4.0, 40.0], 4.0),  # an interval that ends beyond is cut
        ([], [], [5.0], 0.0),
    ],
)
def test_the_axis_has_the_candidates_and_what_is_near(
    candidates: list[float], baselines: list[float], bounds: list[float], reach: float
) -> None:
    assert axis_reach_ms(candidates, baselines, bounds) == reach


def test_the_unit_is_that_of_the_slowest() -> None:
    assert latency_unit([0.043, None, 0.0014]) == MICROSECONDS
    assert latency_unit([17.9, 0.9]) == latency_unit([None]) == MILLISECONDS
