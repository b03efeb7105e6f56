"""Time as the agent's loops see it, so that tests can set it.

Durations are counted monotonically: a board may boot without a real-time clock.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock and a wait that an event can end. Safe to use from several threads."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment."""
        ...

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait until `event` is set, at most `timeout_s`; whether it is set."""
        ...


class SystemClock:
    """The machine's own monotonic clock."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        return event.wait(max(0.0, timeout_s))
