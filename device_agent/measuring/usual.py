"""What the reference kernel usually takes on this device, as seen since the agent started."""

from __future__ import annotations

from collections import deque
from statistics import median

from device_agent.contracts.measurement import Statistics

#: Before so many measurements nothing is usual: the first ones may have met a machine at another speed.
MIN_SEEN = 6
#: So many are remembered: a device that was given another frequency is known at its new speed after half of them.
REMEMBERED = 40


class UsualReferences:
    """Times of reference kernels in earlier measurements, by name. Not safe to use from two threads."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[float]] = {}

    def add(self, statistics: Statistics) -> None:
        """Take a measurement into account."""
        if statistics.reference_name is not None and statistics.reference_ns:
            seen = self._seen.setdefault(statistics.reference_name, deque(maxlen=REMEMBERED))
            seen.append(statistics.reference_ns)

    def medians(self) -> dict[str, float]:
        """What is usual, in ns: the medians of references that were seen often enough."""
        return {name: median(seen) for name, seen in self._seen.items() if len(seen) >= MIN_SEEN}
