"""What agents report, and what becomes of the tasks. At least once on the wire, exactly once in the database.

A report is known by its `result_key`. One that comes under an attempt that is over is kept beside the data as LATE
and completes nothing. At most one report of an attempt is accepted: a unique index says so as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from device_agent.contracts import (
    DeviceProfile,
    FailureReason,
    Measurement,
    MeasurementFailure,
    MeasuringSetup,
    ReportReceipt,
    ReportStatus,
    Source,
    TaskReport,
    decode,
)
from server.errors import Conflict
from server.fleet import leases, retry
from server.fleet.checking import judged, why_inconsistent
from server.latency.repository import NewMeasurement, store_failure, store_measurements
from server.models import DeviceRow, ReportRow, TaskRow
from server.states import TaskState

log = structlog.get_logger(__name__)

#: The table and not its class: the ORM would look at each row in turn.
_INSERT_REPORT = insert(ReportRow.__table__)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hardware:
    """What the reporting device is now."""

    profile_id: str
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What became of a batch: a receipt for each report, how many tasks are ready for another attempt, and the tasks
    that this database does not have, once for each report of one.
    """

    receipts: tuple[ReportReceipt, ...]
    num_ready: int
    unknown_task_ids: tuple[str, ...]


def take_reports(session: Session, device_id: str, reports: tuple[TaskReport, ...], *, max_attempts: int) -> Taken:
    """Store a batch. Raises `Conflict` for a key that another device used."""
    tasks = leases.lock_tasks(session, device_id, sorted({r.task_id for r in reports}))
    device = session.execute(select(DeviceRow.profile_id, DeviceRow.profile).where(DeviceRow.id == device_id)).one()
    hardware = _Hardware(profile_id=device.profile_id, source=decode(DeviceProfile, device.profile).source)
    asked = select(ReportRow.result_key, ReportRow.device_id).where(
        ReportRow.result_key.in_([report.result_key for report in reports])
    )
    owners: dict[str, str] = {row.result_key: row.device_id for row in session.execute(asked)}
    receipts, unknown = [], []
    new: list[NewMeasurement] = []
    rows: list[dict[str, Any]] = []
    done: set[str] = set()
    for report in reports:
        owner = owners.get(report.result_key)
        if owner == device_id:
            receipts.append(ReportReceipt(result_key=report.result_key, status=ReportStatus.DUPLICATE))
            continue
        if owner is not None:
            raise Conflict(f"the result_key {report.result_key} belongs to another device: make keys with UUIDv7")
        task = tasks.get(report.task_id)
        if task is None:
            # Another database than the one that gave the task out. There is nothing to attach the data to.
            unknown.append(report.task_id)
            receipts.append(ReportReceipt(result_key=report.result_key, status=ReportStatus.LATE))
            continue
        owners[report.result_key] = device_id
        if task.id in done:
            # What the report before made of it.
            session.refresh(task)
        status = _take(session, device_id, task, report, hardware, max_attempts, new)
        rows.append(_row(report, device_id, status))
        receipts.append(ReportReceipt(result_key=report.result_key, status=status))
        if status is ReportStatus.ACCEPTED:
            done.add(task.id)
    if rows:
        session.execute(_INSERT_REPORT, rows)
    store_measurements(session, new)
    return Taken(
        receipts=tuple(receipts), num_ready=leases.count_pending(session, done), unknown_task_ids=tuple(unknown)
    )


def _take(
    session: Session,
    device_id: str,
    task: TaskRow,
    report: TaskReport,
    hardware: _Hardware,
    max_attempts: int,
    new: list[NewMeasurement],
) -> ReportStatus:
    """Take one report; a measurement is added to `new`, to be stored with the others of its batch."""
    is_current = task.state is TaskState.LEASED and task.lease_id == report.lease_id and task.attempt == report.attempt
    status = ReportStatus.ACCEPTED if is_current else ReportStatus.LATE
    result = _checked(task, report.result, hardware.source)
    if isinstance(result, MeasurementFailure):
        store_failure(session, task_id=task.id, attempt=report.attempt, failure=result, status=status)
        if is_current:
            _after_failure(session, task, result, max_attempts)
        return status
    if is_current:
        _follow_key(session, task, result, hardware.profile_id)
    new.append(NewMeasurement.of(report.result_key, task, result, status))
    if is_current:
        decision = retry.after_measurement(result, failures=task.failures, max_attempts=max_attempts)
        if decision.retry:
            leases.try_again(session, task, decision)
        else:
            leases.succeed(session, task, result_key=report.result_key, verdict=result.verdict)
    return status


def _row(report: TaskReport, device_id: str, status: ReportStatus) -> dict[str, Any]:
    return {
        "result_key": report.result_key,
        "task_id": report.task_id,
        "device_id": device_id,
        "lease_id": report.lease_id,
        "attempt": report.attempt,
        "status": status,
    }


def _after_failure(session: Session, task: TaskRow, failure: MeasurementFailure, max_attempts: int) -> None:
    decision = retry.after_failure(
        failure.reason, failures=task.failures, deferrals=task.deferrals, max_attempts=max_attempts
    )
    log.info(
        "attempt_failed",
        task_id=task.id,
        device_id=task.device_id,
        attempt=task.attempt,
        reason=failure.reason.value,
        retry=decision.retry,
    )
    if decision.retry:
        leases.try_again(session, task, decision)
    else:
        leases.fail(session, task, failure)


def _checked(
    task: TaskRow, result: Measurement | MeasurementFailure, source: Source
) -> Measurement | MeasurementFailure:
    """The result with the verdict that its samples lead to, or a failure where it is not of what was asked (numbers of
    different keys must never mix) or contradicts its own samples.
    """
    if isinstance(result, MeasurementFailure):
        return result
    provenance, setup = result.provenance, task.task["setup"]
    told = (provenance.runtime, provenance.threads)
    asked = (setup["runtime"], setup["threads"])
    if told != asked:
        detail = f"asked to measure with runtime and threads {asked}, but the report is of {told}"
        return MeasurementFailure(reason=FailureReason.AGENT_ERROR, detail=detail)
    if provenance.source is not source:
        # Also a report from before the device became emulated, or stopped being it: it is measured again.
        detail = f"the report's source is {provenance.source.value!r}, but that of this device is {source.value!r}"
        return MeasurementFailure(reason=FailureReason.AGENT_ERROR, detail=detail)
    measuring = decode(MeasuringSetup, setup)
    contradiction = why_inconsistent(result, measuring)
    if contradiction is not None:
        return MeasurementFailure(reason=FailureReason.AGENT_ERROR, detail=contradiction)
    return judged(result, measuring)


def _follow_key(session: Session, task: TaskRow, measurement: Measurement, profile_id: str) -> None:
    """Where the device or its runtime changed since the task was made, its key becomes that of what was measured."""
    provenance = measurement.provenance
    told = (profile_id, provenance.runtime_version, provenance.runtime_sha256)
    if told == (task.profile_id, task.runtime_version, task.runtime_sha256):
        return
    session.execute(
        update(TaskRow)
        .where(TaskRow.id == task.id)
        # `repeat` keeps the key unique where the new key has a task of its own already.
        .values(profile_id=told[0], runtime_version=told[1], runtime_sha256=told[2], repeat=task.id)
        .execution_options(synchronize_session=False)
    )
    session.refresh(task)
