"""Sentinels: how they are chosen, and what counts as a drift."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from device_agent.contracts import Statistics
from search.latency.sentinels import choose_sentinels, compare_with_history


def figure(median_ns: float, reference_ns: float = 10.0, *, own: float = 0.01) -> Statistics:
    """A median with an interval of +- 2 `own`, and a reference that was interleaved."""
    edges = dict.fromkeys(("min_ns", "p5_ns", "p10_ns", "p90_ns", "p95_ns"), median_ns)
    return Statistics(
        median_ns=median_ns,
        mean_ns=median_ns,
        mad_ns=0.0,
        num_samples=60,
        num_blocks=6,
        ci95_low_ns=median_ns * (1 - 2 * own),
        ci95_high_ns=median_ns * (1 + 2 * own),
        reference_ns=reference_ns,
        reference_ratio=median_ns / reference_ns,
        reference_name="reference",
        **edges,
    )


LATENCIES = {f"k{i}": 100.0 * 2**i for i in range(5)}
BEFORE = {kernel: [figure(ns)] for kernel, ns in LATENCIES.items()}
SERIES = [item for figures in BEFORE.values() for item in figures]


def findings(factors: dict[str, float], speed: float = 1.0, before: dict[str, list[Statistics]] | None = None):
    """The sentinels take `factors` times as long, on a machine on which everything takes `speed` times as long."""
    now = {k: [figure(LATENCIES[k] * f * speed, 10.0 * speed)] for k, f in factors.items()}
    return compare_with_history(now, before or BEFORE, SERIES)


class TestChoice:
    def test_spread_over_latencies_and_repeatable(self) -> None:
        latencies = {f"k{i:03}": float(1 + i) for i in range(100)}
        chosen = choose_sentinels(latencies, 5, "s_1")
        assert [int(latencies[k] - 1) // 20 for k in chosen] == [0, 1, 2, 3, 4]
        assert choose_sentinels(latencies, 5, "s_1") == chosen
        assert choose_sentinels(latencies, 5, "s_2") != chosen

    def test_no_more_than_there_are(self) -> None:
        assert choose_sentinels({"a": 2.0, "b": 1.0}, 5, "s") == ("b", "a")
        assert choose_sentinels({}, 5, "s") == ()


class TestDrift:
    def test_none_where_nothing_changed(self) -> None:
        assert findings(dict.fromkeys(LATENCIES, 1.02)).has_drifted is False

    def test_most_kernels_in_one_direction(self) -> None:
        found = findings({"k0": 1.2, "k1": 1.15, "k2": 1.3, "k3": 1.0, "k4": 1.0})
        assert (found.moved, found.has_drifted) == (3, True)

    @pytest.mark.parametrize(
        "factors",
        [
            {"k0": 1.5, "k1": 1.5, "k2": 1.0, "k3": 1.0, "k4": 1.0},
            # As many slower as faster: that is scatter.
            {"k0": 1.2, "k1": 0.8, "k2": 1.2, "k3": 0.8, "k4": 1.0},
        ],
    )
    def test_not_by_a_few(self, factors: dict[str, float]) -> None:
        assert findings(factors).has_drifted is False

    def test_another_speed_shows_in_the_reference_alone(self) -> None:
        found = findings(dict.fromkeys(LATENCIES, 1.0), speed=1.5)
        assert found.reference is not None
        assert found.reference.ratio == pytest.approx(1.5)
        assert found.moved == 0
        assert found.has_drifted

    def test_a_reference_that_always_moved_is_no_alarm(self) -> None:
        series = [figure(100.0, ns) for ns in (7.0, 9.0, 10.0, 12.0, 14.0)]
        now = {k: [figure(ns * 1.3, 13.0)] for k, ns in LATENCIES.items()}
        assert compare_with_history(now, BEFORE, series).has_drifted is False

    def test_kernels_that_always_scattered_are_no_alarm(self) -> None:
        scattered = {k: [figure(ns * f) for f in (0.85, 1.0, 1.18)] for k, ns in LATENCIES.items()}
        factors = dict.fromkeys(LATENCIES, 1.2)
        assert findings(factors).has_drifted is True
        assert findings(factors, before=scattered).has_drifted is False

    def test_too_little_decides_nothing(self) -> None:
        assert findings({"k0": 3.0, "k1": 3.0}).has_drifted is None
        assert compare_with_history({}, BEFORE, SERIES).has_drifted is None

    def test_rejected_figures_still_tell_the_reference(self) -> None:
        found = compare_with_history({}, BEFORE, SERIES, unusable=[figure(200.0, 20.0)])
        assert found.has_drifted is True
        without = replace(figure(200.0), reference_ns=None, reference_ratio=None, reference_name=None)
        assert compare_with_history({}, BEFORE, SERIES, unusable=[without]).reference is None

    def test_few_false_alarms(self) -> None:
        """Scatter between processes of 3 % and a machine whose speed scatters by 3 %: hardly ever an alarm."""
        rng = np.random.default_rng(0)

        def taken(ns: float) -> Statistics:
            speed = float(np.exp(0.03 * rng.standard_normal()))
            return figure(ns * float(np.exp(0.03 * rng.standard_normal())) * speed, 10.0 * speed)

        alarms = 0
        for _ in range(200):
            before = {k: [taken(ns) for _ in range(4)] for k, ns in LATENCIES.items()}
            now = {k: [taken(ns)] for k, ns in LATENCIES.items()}
            series = [item for figures in before.values() for item in figures]
            alarms += bool(compare_with_history(now, before, series).has_drifted)
        assert alarms <= 4
