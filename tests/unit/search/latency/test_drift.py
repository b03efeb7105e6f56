"""Measurements of different moments, brought to one speed."""

from __future__ import annotations

import numpy as np
import pytest

from device_agent.contracts import Statistics
from search.latency.drift import at_usual_speed, response_to_reference, usual_references
from tests.samples import flat_statistics


def statistics(median_ns: float, reference_ns: float | None, name: str | None = "r") -> Statistics:
    return flat_statistics(
        median_ns,
        ci95_low_ns=0.9 * median_ns,
        ci95_high_ns=1.1 * median_ns,
        reference_ns=reference_ns,
        reference_name=name,
        reference_ratio=None if reference_ns is None else median_ns / reference_ns,
    )


def test_the_usual_speed_is_the_median_for_each_reference() -> None:
    items = [statistics(1.0, t) for t in (10.0, 12.0, 40.0)] + [statistics(1.0, 7.0, "other"), statistics(1.0, None)]
    assert usual_references(items) == {"other": 7.0, "r": 12.0}


def test_a_slow_moment_is_taken_out_of_median_and_interval() -> None:
    # The machine ran at half its usual speed: the reference took 20 instead of 10.
    corrected = at_usual_speed(statistics(300.0, 20.0), {"r": 10.0})
    assert corrected.median_ns == pytest.approx(150.0)
    assert corrected.ci95_low_ns == pytest.approx(135.0)
    assert corrected.ci95_high_ns == pytest.approx(165.0)
    assert corrected.min_ns == 300.0


@pytest.mark.parametrize(("item", "usual"), [(statistics(300.0, None), {"r": 10.0}), (statistics(300.0, 20.0), {})])
def test_without_a_reference_nothing_changes(item: Statistics, usual: dict[str, float]) -> None:
    assert at_usual_speed(item, usual) == item


def test_a_part_of_the_deviation_is_taken_out_where_kernels_follow_by_a_part() -> None:
    corrected = at_usual_speed(statistics(300.0, 20.0), {"r": 10.0}, response=0.5)
    assert corrected.median_ns == pytest.approx(300.0 / 2.0**0.5)
    assert corrected.ci95_high_ns == pytest.approx(330.0 / 2.0**0.5)
    assert at_usual_speed(statistics(300.0, 20.0), {"r": 10.0}, response=0.0) == statistics(300.0, 20.0)


@pytest.mark.parametrize("truth", [0.0, 0.4, 1.0])
def test_how_far_kernels_follow_is_seen_in_what_was_measured_several_times(truth: float) -> None:
    rng = np.random.default_rng(0)

    def measured(usually_ns: float) -> list[Statistics]:
        speeds = rng.normal(0.0, 0.04, size=3)
        return [
            statistics(usually_ns * float(np.exp(truth * speed + rng.normal(0.0, 0.01))), 10.0 * float(np.exp(speed)))
            for speed in speeds
        ]

    groups = [measured(usually_ns) for usually_ns in rng.uniform(1e3, 1e7, size=200)]
    assert response_to_reference(groups, {"r": 10.0}) == pytest.approx(truth, abs=0.05)


def test_without_repeats_kernels_are_taken_to_follow_the_reference() -> None:
    once = [[statistics(100.0, 12.0)], [statistics(200.0, 9.0)], []]
    assert response_to_reference(once, {"r": 10.0}) == 1.0
    unknown = [[statistics(100.0, 12.0, "other"), statistics(100.0, 9.0, "other")]]
    assert response_to_reference(unknown, {"r": 10.0}) == 1.0
    # Two measurements that do not follow are not enough to say so of a device.
    pair = [[statistics(100.0, 10.2), statistics(100.0, 9.8)]]
    assert 0.8 < response_to_reference(pair, {"r": 10.0}) < 1.0
