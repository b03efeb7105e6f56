"""Bringing measurements of different moments to one speed of the machine, by the reference kernel in each of them.

A shared or unpinned machine runs faster and slower for seconds at a time, so that medians of one kernel from different
processes differ by more than their intervals say. The reference kernel, sampled in between, moves along with them.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median

from device_agent.contracts import Statistics, drift_corrected_ns

#: Before anything was measured twice kernels are taken to follow the reference kernel, as they do a clock. So many
#: squares of its logarithm's deviations must say otherwise: those of 20 measurements that are 2 % off.
_PRIOR_SQUARES = 20 * 0.02**2


def usual_references(statistics: Iterable[Statistics]) -> dict[str, float]:
    """For each reference kernel, by name, the median of its times in ns: the device's usual speed."""
    times: dict[str, list[float]] = defaultdict(list)
    for item in statistics:
        if item.reference_ns is not None and item.reference_name is not None:
            times[item.reference_name].append(item.reference_ns)
    return {name: median(values) for name, values in sorted(times.items())}


def at_usual_speed(statistics: Statistics, usual: Mapping[str, float], response: float = 1.0) -> Statistics:
    """The statistics with median and interval as they would be at the usual speed; as they are without a reference.

    `response` is the part of the reference kernel's deviation that others follow, of its logarithm
    (`response_to_reference`). The other figures stay what was observed.
    """
    usual_ns = None if statistics.reference_name is None else usual.get(statistics.reference_name)
    factor = (drift_corrected_ns(statistics, usual_ns) / statistics.median_ns) ** response
    return dataclasses.replace(
        statistics,
        median_ns=statistics.median_ns * factor,
        ci95_low_ns=None if statistics.ci95_low_ns is None else statistics.ci95_low_ns * factor,
        ci95_high_ns=None if statistics.ci95_high_ns is None else statistics.ci95_high_ns * factor,
    )


def response_to_reference(repeated: Iterable[Sequence[Statistics]], usual: Mapping[str, float]) -> float:
    """By how much of the reference kernel's deviation measurements of the same thing deviate, from 0 to 1.

    A lower clock slows all code alike (1). A neighbour on the same physical core or in the shared cache does not: the
    reference kernel, small and busy without a pause, suffers more than most. Each of `repeated` are measurements of one
    kernel or network. Least squares on logarithms, each from the mean of its group, drawn to 1 where there are few.
    """
    products, squares = _PRIOR_SQUARES, _PRIOR_SQUARES
    for measured in repeated:
        known = [s for s in measured if s.reference_name in usual]
        if len(known) < 2:
            continue
        # What a correction by all of the deviation would take off.
        taken = [math.log(s.median_ns / drift_corrected_ns(s, usual[str(s.reference_name)])) for s in known]
        took = [math.log(s.median_ns) for s in known]
        centre, mean = fmean(taken), fmean(took)
        products += sum((x - centre) * (y - mean) for x, y in zip(taken, took, strict=True))
        squares += sum((x - centre) ** 2 for x in taken)
    return min(max(products / squares, 0.0), 1.0)
