"""The leases that this agent holds, and when each must be renewed.

A lease comes as a duration and is counted monotonically from the moment the answer arrived, so no clock of the board
or the server is compared with the other.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from enum import StrEnum

from device_agent.clock import Clock
from device_agent.contracts import Lease

#: Renewed four times in its life: 120 s give 30 s, and three renewals in a row may fail.
RENEWALS_PER_LEASE = 4


class LeaseEnd(StrEnum):
    """Why a held lease must not be worked on any more."""

    #: The server gave it to another attempt, or forgot it.
    LOST = "lost"
    #: Nobody wants the result.
    CANCELLED = "cancelled"
    #: Not renewed in time, by this agent's own count.
    EXPIRED = "expired"
    #: This agent stops at once.
    ABORTED = "aborted"


@dataclass(slots=True, kw_only=True)
class HeldLease:
    """One held lease. `end` forbids to begin with it; `interrupt` also stops the child that works on it.

    A lease that only expired by our own count is not interrupted: its measurement will be sound, and the server says
    whether it came too late.
    """

    lease: Lease
    duration_s: float
    expires_at: float
    renew_at: float
    end: LeaseEnd | None = None
    interrupt: threading.Event = field(default_factory=threading.Event)


class HeldLeases:
    """What both loops know about the held leases. Every method may be called from any thread.

    `changed` is set whenever there may be something to do earlier than before; the heartbeat thread waits on it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[str, HeldLease] = {}
        self._aborted = False
        self.changed = threading.Event()

    def add(self, lease: Lease) -> HeldLease:
        """Hold `lease` from now on. The server repeats what is held already, and so brings an expired one back."""
        now = self._clock.monotonic()
        with self._lock:
            known = self._held.get(lease.lease_id)
            if known is None or known.lease.attempt != lease.attempt or known.end is not None:
                known = HeldLease(lease=lease, duration_s=lease.duration_s, expires_at=now, renew_at=now)
                self._held[lease.lease_id] = known
            _extend(known, now, lease.duration_s)
            if self._aborted:
                _finish(known, LeaseEnd.ABORTED)
        self.changed.set()
        return known

    def discard(self, lease_id: str) -> None:
        """The lease is done with: reported, released or dropped."""
        with self._lock:
            self._held.pop(lease_id, None)

    def ids(self) -> tuple[str, ...]:
        """The ids of the held leases."""
        with self._lock:
            return tuple(self._held)

    def leases(self) -> tuple[Lease, ...]:
        """The held leases, in the order they came."""
        with self._lock:
            return tuple(held.lease for held in self._held.values())

    def due(self) -> tuple[Lease, ...]:
        """Leases to renew now, the most urgent first. Those that expired by our own count are ended instead."""
        now = self._clock.monotonic()
        with self._lock:
            for held in self._held.values():
                if held.end is None and now >= held.expires_at:
                    _finish(held, LeaseEnd.EXPIRED)
            live = [h for h in self._held.values() if h.end is None and now >= h.renew_at]
            return tuple(h.lease for h in sorted(live, key=lambda h: h.expires_at))

    def next_renewal_in_s(self) -> float | None:
        """Seconds until the next renewal is due (not negative); None while nothing is held."""
        now = self._clock.monotonic()
        with self._lock:
            moments = [h.renew_at for h in self._held.values() if h.end is None]
        return max(0.0, min(moments) - now) if moments else None

    def renewed(self, lease_id: str, duration_s: float) -> None:
        """The server lent it for another `duration_s`."""
        with self._lock:
            if (held := self._held.get(lease_id)) is not None:
                _extend(held, self._clock.monotonic(), duration_s)

    def postpone(self, lease_id: str, pause_s: float) -> None:
        """Renewing failed for now: try again after `pause_s`, or an eighth of the lease if that is sooner."""
        with self._lock:
            if (held := self._held.get(lease_id)) is not None:
                held.renew_at = self._clock.monotonic() + min(pause_s, held.duration_s / (2 * RENEWALS_PER_LEASE))

    def end(self, lease_id: str, end: LeaseEnd) -> None:
        """Whoever works on it must stop."""
        with self._lock:
            if (held := self._held.get(lease_id)) is not None:
                _finish(held, end)

    def abort(self) -> None:
        """End everything that is held, and whatever is added later."""
        with self._lock:
            self._aborted = True
            for held in self._held.values():
                _finish(held, LeaseEnd.ABORTED)


def _extend(held: HeldLease, now: float, duration_s: float) -> None:
    held.duration_s = duration_s
    held.expires_at = now + duration_s
    held.renew_at = now + duration_s / RENEWALS_PER_LEASE


def _finish(held: HeldLease, end: LeaseEnd) -> None:
    if held.end in (None, LeaseEnd.EXPIRED):
        held.end = end
    if end is not LeaseEnd.EXPIRED:
        held.interrupt.set()
