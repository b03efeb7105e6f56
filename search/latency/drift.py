"""Bringing measurements of different moments to one speed of the machine, by the reference kernel in each of them.

A shared or unpinned machine runs faster and slower for seconds at a time, so that medians of one kernel from different
processes differ by more than their intervals say. The reference kernel, sampled in between, moves along with them.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import median

from device_agent.contracts import Statistics, drift_corrected_ns


def usual_references(statistics: Iterable[Statistics]) -> dict[str, float]:
    """For each reference kernel, by name, the median of its times in ns: the device's usual speed."""
    times: dict[str, list[float]] = defaultdict(list)
    for item in statistics:
        if item.reference_ns is not None and item.reference_name is not None:
            times[item.reference_name].append(item.reference_ns)
    return {name: median(values) for name, values in sorted(times.items())}


def at_usual_speed(statistics: Statistics, usual: Mapping[str, float]) -> Statistics:
    """The statistics with median and interval as they would be at the usual speed; as they are without a reference.

    The other figures stay what was observed.
    """
    usual_ns = None if statistics.reference_name is None else usual.get(statistics.reference_name)
    corrected_ns = drift_corrected_ns(statistics, usual_ns)
    factor = corrected_ns / statistics.median_ns
    return dataclasses.replace(
        statistics,
        median_ns=corrected_ns,
        ci95_low_ns=None if statistics.ci95_low_ns is None else statistics.ci95_low_ns * factor,
        ci95_high_ns=None if statistics.ci95_high_ns is None else statistics.ci95_high_ns * factor,
    )
