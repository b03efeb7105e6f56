"""The lease loop: ask for tasks, measure each, deliver the results.

At least once, never twice in effect: a result is on the disk before anything is sent, and the server returns the
leases that it still counts as ours, so that a restarted agent measures them again or sends what the spool has already.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from device_agent import __version__
from device_agent.artifacts import ArtifactCache
from device_agent.begun import BegunTask
from device_agent.client import ServerClient
from device_agent.clock import Clock
from device_agent.contracts import (
    FailureReason,
    KernelTask,
    Lease,
    LeaseRequest,
    Measurement,
    MeasurementFailure,
    ReceivedLeases,
    TaskReport,
    UnreadableLease,
    kernel_id,
)
from device_agent.delivery import Delivery
from device_agent.errors import ArtifactError, CredentialsRefused, RequestRefused, ServerError, TryAgainLater
from device_agent.heartbeat import Heartbeat
from device_agent.held import HeldLease, HeldLeases, LeaseEnd
from device_agent.identity import new_result_key
from device_agent.log import log_event
from device_agent.outbox import Outbox
from device_agent.retry import Backoff, BackoffPolicy
from device_agent.stopping import PollInterrupted, StopRequest

logger = logging.getLogger(__name__)

#: A server that answers a long poll at once must not be asked a hundred times a second.
MIN_POLL_INTERVAL_S = 1.0
#: Temperatures move over seconds, and a pause that the server asked for is no hurry.
READY_POLL_INTERVAL_S = 2.0
#: Results wait at most this long for company: one request for a few is cheaper on both sides than one each.
DELIVERY_INTERVAL_S = 3.0
#: Downloads of one artifact that may come broken or wrong before the task is given back as failed.
ARTIFACT_ATTEMPTS = 4
#: A server that gives no artifact is waited for this long, as every other request waits: a restart is nobody's failure.
ARTIFACT_OUTAGE_S = 120.0
#: What a draining agent gives to handing leases back and emptying its spool; the spool survives it.
DRAIN_BUDGET_S = 10.0
#: How often a measurement that the full disk does not take is tried again. Its lease is renewed meanwhile.
SPOOL_RETRY_S = 2.0

_BROUGHT_DOWN = "the agent or its whole device went down while it ran this task"


class TaskRunner(Protocol):
    """Runs one task to its end in a process of its own. Called from the lease loop only."""

    def run(self, held: HeldLease, artifact: Path | None) -> Measurement | MeasurementFailure:
        """Measure within the lease's deadline; end early (with any failure) once `held.interrupt` is set."""
        ...


class Agent:
    """One device's work for one server. `run` returns when it was asked to stop.

    Raises `CredentialsRefused` or `RequestRefused` from `run` where the server will not work with this agent.
    """

    def __init__(
        self,
        *,
        client: ServerClient,
        outbox: Outbox,
        held: HeldLeases,
        heartbeat: Heartbeat,
        artifacts: ArtifactCache,
        runner: TaskRunner,
        begun: BegunTask,
        stop: StopRequest,
        why_not_ready: Callable[[], str | None],
        max_leases: int,
        lease_wait_s: float,
        clock: Clock,
        rng: random.Random,
        backoff_policy: BackoffPolicy | None = None,
    ) -> None:
        self._client = client
        self._outbox = outbox
        self._held = held
        self._heartbeat = heartbeat
        self._artifacts = artifacts
        self._runner = runner
        self._begun = begun
        self._stop = stop
        self._why_not_ready = why_not_ready
        self._request = LeaseRequest(max_leases=max_leases, wait_s=lease_wait_s)
        self._clock = clock
        self._rng = rng
        self._not_ready: str | None = None
        self._delivery = Delivery(client, outbox, held)
        self._backoff = Backoff(rng, backoff_policy)
        self._delivery_backoff = Backoff(rng, backoff_policy)
        self._deliver_at = clock.monotonic()

    def run(self) -> None:
        """Work until a stop is asked for."""
        self._stop.on_abort(self._held.abort)
        self._stop.on_abort(self._begun.end)
        self._heartbeat.start()
        try:
            self._loop()
            if not self._stop.abort.is_set():
                self._drain()
        finally:
            self._heartbeat.stop(timeout_s=2.0)
        log_event(logger, logging.INFO, "stopped", spooled_reports=len(self._outbox))

    def _loop(self) -> None:
        backoff = self._backoff
        while not self._stop.drain.is_set():
            try:
                self._delivery.flush()
                if self._heartbeat.paused.is_set() or not self._ready():
                    self._clock.wait(self._stop.drain, READY_POLL_INTERVAL_S)
                    continue
                leases, unreadable = self._ask()
            except TryAgainLater as error:
                pause_s = backoff.next_pause_s(error)
                log_event(
                    logger,
                    logging.WARNING,
                    "server_not_available",
                    failures=backoff.failures,
                    pause_s=pause_s,
                    spooled_reports=len(self._outbox),
                    error=error,
                )
                self._clock.wait(self._stop.drain, pause_s)
                continue
            backoff.reset()
            for lease in unreadable:
                self._refuse(lease)
            self._work(leases)

    def _ask(self) -> tuple[tuple[Lease, ...], tuple[UnreadableLease, ...]]:
        """Long poll for tasks: those to do, and those that cannot be read. A stop signal ends the wait."""
        asked_at = self._clock.monotonic()
        received = ReceivedLeases(leases=())
        try:
            with self._stop.interruptible():
                received = self._client.lease(self._request)
        except PollInterrupted:
            self._stop.drain.wait()
        if not received.leases and not received.unreadable:
            early_s = asked_at + MIN_POLL_INTERVAL_S - self._clock.monotonic()
            self._clock.wait(self._stop.drain, early_s)
        return received.leases, received.unreadable

    def _refuse(self, lease: UnreadableLease) -> None:
        """Fail a task of a newer server for good: held back, it would be lent again and again."""
        if not self._outbox.holds(lease.lease_id, lease.attempt):
            detail = f"this agent, version {__version__}, cannot read the task: {lease.problem}: upgrade the agent"
            failure = MeasurementFailure(reason=FailureReason.AGENT_OUTDATED, detail=detail[:2000])
            self._spool(lease, failure, 0.0)

    def _work(self, leases: tuple[Lease, ...]) -> None:
        batch = [self._held.add(lease) for lease in leases]
        for held in batch:
            # A hot device cools down while its leases are renewed: it measures later, instead of failing the task.
            while not self._stop.drain.is_set() and held.end is None and not self._ready():
                self._clock.wait(self._stop.drain, READY_POLL_INTERVAL_S)
            if self._stop.drain.is_set():
                return
            self._handle(held)
            self._deliver_when_due()

    def _ready(self) -> bool:
        """Whether the device may measure now. Says so in the log when that changes."""
        reason = self._why_not_ready()
        if (reason is None) != (self._not_ready is None):
            log_event(logger, logging.INFO, "device_ready" if reason is None else "device_not_ready", reason=reason)
        self._not_ready = reason
        return reason is None

    def _handle(self, held: HeldLease) -> None:
        """Measure one lease and spool its report, unless that happened before or nobody wants it any more."""
        lease = held.lease
        if self._outbox.holds(lease.lease_id, lease.attempt):
            return
        if held.end is None and self._begun.brought_down(lease):
            self._spool(lease, MeasurementFailure(reason=FailureReason.CRASHED, detail=_BROUGHT_DOWN), 0.0)
            self._begun.told()
            return
        if held.end is None:
            started_at = self._clock.monotonic()
            self._begun.begin(lease)
            result = self._measure(held)
            self._begun.end()
            # A child that was interrupted fails; that says nothing about the task. A finished one counts in any case:
            # the server keeps even a late measurement.
            if not held.interrupt.is_set() or isinstance(result, Measurement):
                self._spool(lease, result, self._clock.monotonic() - started_at)
                return
        self._give_up(held)

    def _measure(self, held: HeldLease) -> Measurement | MeasurementFailure:
        task = held.lease.task
        try:
            artifact = None if isinstance(task, KernelTask) else self._fetch(held)
            return self._runner.run(held, artifact)
        except CredentialsRefused:
            raise
        except (ArtifactError, ServerError) as error:
            return MeasurementFailure(reason=FailureReason.ARTIFACT_UNAVAILABLE, detail=str(error)[:2000])
        except OSError as error:
            return MeasurementFailure(reason=FailureReason.RESOURCE_EXHAUSTED, detail=str(error)[:2000])
        except Exception as error:
            logger.exception("task_failed_in_agent", extra={"fields": _names(held.lease)})
            return MeasurementFailure(
                reason=FailureReason.AGENT_ERROR, detail=f"{type(error).__name__}: {error}"[:2000]
            )

    def _fetch(self, held: HeldLease) -> Path:
        """The file of a network task, with more attempts while somebody wants the result, also on a full disk."""
        task = held.lease.task
        assert not isinstance(task, KernelTask)
        backoff = Backoff(self._rng, BackoffPolicy(base_s=0.5, cap_s=10.0))
        num_broken = 0
        give_up_at = self._clock.monotonic() + ARTIFACT_OUTAGE_S
        while True:
            try:
                return self._artifacts.path_of(task.artifact_sha256, task.artifact_bytes, self._client.artifact)
            except (ArtifactError, TryAgainLater, OSError) as error:
                if isinstance(error, OSError):
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    self._artifacts.clear()
                log_event(logger, logging.WARNING, "artifact_not_fetched", **_names(held.lease), error=error)
                num_broken += isinstance(error, ArtifactError)
                pause_s = backoff.next_pause_s(error if isinstance(error, TryAgainLater) else None)
                is_hopeless = num_broken >= ARTIFACT_ATTEMPTS or self._clock.monotonic() + pause_s > give_up_at
                if is_hopeless or self._clock.wait(held.interrupt, pause_s):
                    raise

    def _spool(
        self, lease: Lease | UnreadableLease, result: Measurement | MeasurementFailure, elapsed_s: float
    ) -> None:
        report = TaskReport(
            result_key=new_result_key(),
            lease_id=lease.lease_id,
            task_id=lease.task_id,
            attempt=lease.attempt,
            result=result,
        )
        if not self._added(report, lease):
            return
        if isinstance(result, Measurement):
            log_event(
                logger,
                logging.INFO,
                "task_measured",
                **_names(lease),
                median_ns=result.statistics.median_ns,
                verdict=result.verdict,
                elapsed_s=elapsed_s,
            )
        else:
            log_event(
                logger,
                logging.WARNING,
                "task_failed",
                **_names(lease),
                reason=result.reason,
                detail=result.detail,
                elapsed_s=elapsed_s,
            )

    def _added(self, report: TaskReport, lease: Lease | UnreadableLease) -> bool:
        """Put a report on the disk, waiting for room on a full one. False: stopped before there was any, and the task
        will be measured again.
        """
        while True:
            try:
                self._outbox.add(report)
                return True
            except OSError as error:
                log_event(logger, logging.ERROR, "spool_not_written", **_names(lease), error=error)
            self._artifacts.clear()  # Room that can be had again, for a measurement that cannot.
            try:
                self._outbox.add(report)
                return True
            except OSError:
                if self._clock.wait(self._stop.drain, SPOOL_RETRY_S):
                    return False

    def _give_up(self, held: HeldLease) -> None:
        log_event(logger, logging.INFO, "task_dropped", **_names(held.lease), end=held.end)
        if held.end is LeaseEnd.CANCELLED:
            with contextlib.suppress(TryAgainLater):  # It runs out by itself.
                self._release(held.lease)
        self._held.discard(held.lease.lease_id)

    def _deliver_when_due(self) -> None:
        """Deliver between two tasks, never while one runs. A failure waits for the next round."""
        if not len(self._outbox) or self._clock.monotonic() < self._deliver_at:
            return
        try:
            self._delivery.flush()
        except TryAgainLater as error:
            pause_s = self._delivery_backoff.next_pause_s(error)
            log_event(
                logger,
                logging.WARNING,
                "reports_not_delivered",
                spooled_reports=len(self._outbox),
                pause_s=pause_s,
                error=error,
            )
        else:
            self._delivery_backoff.reset()
            pause_s = DELIVERY_INTERVAL_S
        self._deliver_at = self._clock.monotonic() + pause_s

    def _drain(self) -> None:
        """Hand back what was not begun and deliver what is done, as far as the budget goes."""
        ends_at = self._clock.monotonic() + DRAIN_BUDGET_S
        backoff = Backoff(self._rng, BackoffPolicy(base_s=0.5, cap_s=4.0))
        while not self._stop.abort.is_set():
            try:
                self._delivery.flush()
                for lease in self._held.leases():
                    self._release(lease)
                    self._held.discard(lease.lease_id)
                return
            except TryAgainLater as error:
                pause_s = backoff.next_pause_s(error)
                if self._clock.monotonic() + pause_s >= ends_at:
                    log_event(
                        logger,
                        logging.WARNING,
                        "drained_without_server",
                        spooled_reports=len(self._outbox),
                        held_leases=len(self._held.ids()),
                        error=error,
                    )
                    return
                self._clock.wait(self._stop.abort, pause_s)

    def _release(self, lease: Lease) -> None:
        """Give a lease back. A refusal is fine: then it is not ours any more."""
        try:
            self._client.release(lease.lease_id, lease.attempt)
        except CredentialsRefused:
            raise
        except RequestRefused as error:
            log_event(logger, logging.INFO, "release_refused", **_names(lease), error=error)


def _names(lease: Lease | UnreadableLease) -> dict[str, object]:
    """The fields that tell a task in the log."""
    names: dict[str, object] = {"task_id": lease.task_id, "lease_id": lease.lease_id, "attempt": lease.attempt}
    if isinstance(lease, UnreadableLease):
        return names
    if isinstance(lease.task, KernelTask):
        return names | {"kernel_id": kernel_id(lease.task.kernel)}
    return names | {"artifact_sha256": lease.task.artifact_sha256}
