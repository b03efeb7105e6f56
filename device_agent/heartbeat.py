"""The heartbeat thread: says that this device lives, and renews the leases it holds.

It runs in the agent's process, which never times anything: a task is measured in a child process on a core of its own.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

from device_agent import __version__
from device_agent.client import ServerClient
from device_agent.clock import Clock
from device_agent.contracts import Conditions, DeviceProfile, HeartbeatRequest, Lease, RuntimeInfo
from device_agent.errors import LeaseLost, RequestRefused, TryAgainLater
from device_agent.held import HeldLeases, LeaseEnd
from device_agent.log import log_event
from device_agent.retry import Backoff, BackoffPolicy

logger = logging.getLogger(__name__)

#: Each heartbeat comes after 80 to 100 % of the interval, so that devices started together drift apart.
_EARLIEST = 0.8
#: A server that asks for more than one heartbeat a second has a wrong setting.
MIN_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What a device says of itself in every heartbeat."""

    profile: DeviceProfile
    runtimes: tuple[RuntimeInfo, ...]


class Heartbeat:
    """Heartbeats and renewals, one at a time, in a thread of their own.

    `paused` is set while the server wants this device to take no new tasks. A refusal here ends nothing: the lease loop
    meets the same one and decides.
    """

    def __init__(
        self,
        *,
        client: ServerClient,
        held: HeldLeases,
        announcement: Announcement,
        read_conditions: Callable[[], Conditions],
        spooled_reports: Callable[[], int],
        interval_s: float,
        clock: Clock,
        rng: random.Random,
        backoff_policy: BackoffPolicy | None = None,
    ) -> None:
        self._client = client
        self._held = held
        self._announcement = announcement
        self._read_conditions = read_conditions
        self._spooled_reports = spooled_reports
        self._interval_s = max(MIN_INTERVAL_S, interval_s)
        self._clock = clock
        self._rng = rng
        self._beat_backoff = Backoff(rng, backoff_policy)
        self._renewal_backoff = Backoff(rng, backoff_policy)
        self._next_beat_at = clock.monotonic()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self.paused = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread, waiting for a request in flight at most `timeout_s`."""
        self._stopped.set()
        self._held.changed.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def step(self) -> float:
        """Do all that is due now; returns the seconds until the next thing is."""
        for lease in self._held.due():
            self._renew(lease)
        now = self._clock.monotonic()
        if now >= self._next_beat_at:
            self._next_beat_at = now + self._beat()
        renewal_in_s = self._held.next_renewal_in_s()
        beat_in_s = max(0.0, self._next_beat_at - self._clock.monotonic())
        return beat_in_s if renewal_in_s is None else min(beat_in_s, renewal_in_s)

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._held.changed.clear()
            try:
                pause_s = self.step()
            except Exception:
                # A bug must not silence the device while its lease loop works on: log it, and go on.
                logger.exception("heartbeat_failed")
                pause_s = self._interval_s
            self._clock.wait(self._held.changed, pause_s)

    def _beat(self) -> float:
        """Send one heartbeat; the pause until the next."""
        request = HeartbeatRequest(
            conditions=self._read_conditions(),
            runtimes=self._announcement.runtimes,
            profile=self._announcement.profile,
            agent_version=__version__,
            held_lease_ids=self._held.ids(),
            spooled_reports=self._spooled_reports(),
        )
        try:
            answer = self._client.heartbeat(request)
        except TryAgainLater as error:
            log_event(logger, logging.WARNING, "heartbeat_not_delivered", error=error)
            return self._beat_backoff.next_pause_s(error)
        except RequestRefused as error:
            log_event(logger, logging.ERROR, "heartbeat_refused", status=error.status, error=error)
            return self._interval_s
        self._beat_backoff.reset()
        if answer.drain != self.paused.is_set():
            log_event(logger, logging.INFO, "paused_by_server" if answer.drain else "resumed_by_server")
        (self.paused.set if answer.drain else self.paused.clear)()
        self._interval_s = max(MIN_INTERVAL_S, answer.interval_s)
        return self._interval_s * self._rng.uniform(_EARLIEST, 1.0)

    def _renew(self, lease: Lease) -> None:
        try:
            answer = self._client.renew(lease.lease_id, lease.attempt)
        except TryAgainLater as error:
            pause_s = self._renewal_backoff.next_pause_s(error)
            self._held.postpone(lease.lease_id, pause_s)
            log_event(
                logger,
                logging.WARNING,
                "lease_not_renewed",
                lease_id=lease.lease_id,
                task_id=lease.task_id,
                error=error,
            )
        except LeaseLost as error:
            self._held.end(lease.lease_id, LeaseEnd.LOST)
            log_event(
                logger, logging.WARNING, "lease_lost", lease_id=lease.lease_id, task_id=lease.task_id, error=error
            )
        except RequestRefused as error:
            self._held.postpone(lease.lease_id, self._interval_s)
            log_event(
                logger, logging.ERROR, "renewal_refused", lease_id=lease.lease_id, task_id=lease.task_id, error=error
            )
        else:
            self._renewal_backoff.reset()
            self._held.renewed(lease.lease_id, answer.duration_s)
            if answer.cancel:
                self._held.end(lease.lease_id, LeaseEnd.CANCELLED)
                log_event(logger, logging.INFO, "lease_cancelled", lease_id=lease.lease_id, task_id=lease.task_id)
