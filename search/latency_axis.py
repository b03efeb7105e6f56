"""The latencies of a search as its tables and pictures show them: one unit for all, and how far their axis reaches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: What is slower than so many times the candidates and the fastest baseline is marked at the end of the axis.
_MAX_STRETCH = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyUnit:
    """The unit of all latencies of one search, so that a column compares. `per_ms` of it make one millisecond."""

    name: str
    per_ms: float


MILLISECONDS = LatencyUnit(name="ms", per_ms=1.0)
MICROSECONDS = LatencyUnit(name="µs", per_ms=1e3)


def latency_unit(values_ms: Iterable[float | None]) -> LatencyUnit:
    """Microseconds where even the slowest is faster than 1 ms; what is not known does not count."""
    known = [value for value in values_ms if value is not None]
    return MICROSECONDS if known and max(known) < 1.0 else MILLISECONDS


def axis_reach_ms(
    candidates_ms: Iterable[float], baselines_ms: Iterable[float], bounds_ms: Iterable[float] = ()
) -> float:
    """How far an axis from 0 reaches that has every candidate and the fastest baseline on it.

    Slower baselines, and the far ends of intervals (`bounds_ms`), are on it up to twice as far. What is beyond would
    press all candidates together: a picture marks a baseline at its edge, with its value. 0 where nothing is known.
    """
    baselines = tuple(baselines_ms)
    reach = max([*candidates_ms, *sorted(baselines)[:1]], default=0.0)
    return max([reach, *(value for value in (*baselines, *bounds_ms) if value <= _MAX_STRETCH * reach)])
