"""Has a device drifted? A few kernels of a series, its sentinels, are measured again and compared with earlier figures.

Two things are looked at. The reference kernel tells whether the machine as a whole runs at another speed, which the
drift correction takes out of figures. The sentinels, after that correction, tell whether kernels changed against it,
which nothing takes out: then the series' table no longer describes the device.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from device_agent.contracts import Statistics
from search.latency.drift import at_usual_speed, usual_references
from search.latency.table import median_std_ns
from search.normal import SIGMA_PER_MAD

#: Fewer sentinels, or earlier figures of the reference, decide nothing.
MIN_FIGURES = 3

#: Changes that matter to nobody, relative: of the reference as in the verdict `reference_drifted`, of kernels half.
_REFERENCE_TOLERANCE = 0.10
_KERNEL_TOLERANCE = 0.05

#: A change must stand out of the spread by so many standard deviations.
_SIGMAS = 3.0
#: What a kernel differs by between two processes at least, relative: where its memory lies and which tile was tuned.
_BETWEEN_PROCESSES = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What something takes now, as a ratio to before; `differs` where it is outside of 1 / `limit` to `limit`."""

    ratio: float
    limit: float

    @property
    def differs(self) -> bool:
        return abs(math.log(self.ratio)) > math.log(self.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftFindings:
    """`reference` is None where too little is known of it; `kernels` has those that were compared, by identity."""

    reference: Change | None
    kernels: Mapping[str, Change]

    @property
    def moved(self) -> int:
        """How many kernels differ in the one direction in which more of them do."""
        slower = sum(change.differs and change.ratio > 1 for change in self.kernels.values())
        faster = sum(change.differs and change.ratio < 1 for change in self.kernels.values())
        return max(slower, faster)

    @property
    def has_drifted(self) -> bool | None:
        """Whether the reference differs, or most of the kernels do in one direction; None where that is not known."""
        if self.reference is not None and self.reference.differs:
            return True
        if len(self.kernels) < MIN_FIGURES:
            return None
        return 2 * self.moved > len(self.kernels)


def choose_sentinels(latencies_ns: Mapping[str, float], count: int, seed: str) -> tuple[str, ...]:
    """Up to `count` of the kernels, spread over their latencies: one from each of `count` parts of equal size.

    Equal latencies and seed choose the same.
    """
    ordered = sorted(latencies_ns, key=lambda kernel: (latencies_ns[kernel], kernel))
    count = min(count, len(ordered))
    chance = random.Random(seed)
    ends = [len(ordered) * part // count for part in range(count + 1)] if count else []
    return tuple(chance.choice(ordered[low:high]) for low, high in pairwise(ends))


def compare_with_history(
    now: Mapping[str, Sequence[Statistics]],
    before: Mapping[str, Sequence[Statistics]],
    series: Sequence[Statistics],
    unusable: Sequence[Statistics] = (),
) -> DriftFindings:
    """What changed. `now` and `before` have figures of each sentinel, `series` those of all its kernels before.

    Figures that are `unusable` for a latency, such as those of a device that lowered its clock, still tell what the
    reference kernel took.
    """
    usual = usual_references(series)
    recent = [item for figures in now.values() for item in figures]
    kernels = {}
    for kernel, figures in now.items():
        earlier = before.get(kernel)
        if figures and earlier:
            kernels[kernel] = _kernel_change(
                [at_usual_speed(item, usual) for item in figures], [at_usual_speed(item, usual) for item in earlier]
            )
    return DriftFindings(reference=_reference_change([*recent, *unusable], series), kernels=kernels)


def _kernel_change(now: Sequence[Statistics], before: Sequence[Statistics]) -> Change:
    newer, older = median(item.median_ns for item in now), median(item.median_ns for item in before)
    own = max(median_std_ns(item) / item.median_ns for item in (*now, *before))
    between = _spread([item.median_ns for item in before]) if len(before) >= MIN_FIGURES else 0.0
    # Both sides have the spread between processes.
    sigma = math.sqrt(2.0) * math.hypot(own, max(between, _BETWEEN_PROCESSES))
    return Change(ratio=newer / older, limit=math.exp(max(math.log1p(_KERNEL_TOLERANCE), _SIGMAS * sigma)))


def _reference_change(now: Sequence[Statistics], before: Sequence[Statistics]) -> Change | None:
    """The reference kernel of one name, that of most of the new figures. Those of one check share their moment, so that
    their number makes none of them surer.
    """
    newer, older = _references(now), _references(before)
    name = max(sorted(newer), key=lambda known: len(newer[known]), default=None)
    if name is None or len(older.get(name, ())) < MIN_FIGURES:
        return None
    limit = max(math.log1p(_REFERENCE_TOLERANCE), _SIGMAS * _spread(older[name]))
    return Change(ratio=median(newer[name]) / median(older[name]), limit=math.exp(limit))


def _references(figures: Sequence[Statistics]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for item in figures:
        if item.reference_ns is not None and item.reference_name is not None:
            found.setdefault(item.reference_name, []).append(item.reference_ns)
    return found


def _spread(times_ns: Sequence[float]) -> float:
    """The robust relative standard deviation of times."""
    logs = [math.log(time) for time in times_ns]
    centre = median(logs)
    return SIGMA_PER_MAD * median(abs(log - centre) for log in logs)
