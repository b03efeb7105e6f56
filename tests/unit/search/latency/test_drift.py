"""Measurements of different moments, brought to one speed."""

from __future__ import annotations

import pytest

from device_agent.contracts import Statistics
from search.latency.drift import at_usual_speed, usual_references
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
