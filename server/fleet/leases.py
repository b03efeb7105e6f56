"""Leases in SQL: claim, keep, give back, expire, and the end of a task.

A lease is on the task's row. `attempt` fences it: it grows when a lease ends without completing the task, so that
whatever an older lending still does is recognised as late. Only the database's clock decides about expiry.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ARRAY, String, any_, bindparam, case, cast, exists, func, literal, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql import ColumnElement
from sqlalchemy.sql.dml import ReturningUpdate

from device_agent.contracts import FailureReason, MeasurementFailure, ReportStatus, Verdict
from server.columns import now_s
from server.fleet.retry import MAX_DEFERRALS, RetryDecision
from server.latency.repository import store_failure
from server.models import DeviceRow, TaskRow
from server.searches.tasks import cancel_unwanted
from server.states import TaskState

#: An agent that asks for the same lease more often than this seems to die from it: it is no longer prolonged.
MAX_DELIVERIES = 5

_QUIET = {"synchronize_session": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedTask:
    """A row of a claim."""

    task_id: str
    lease_id: str
    attempt: int
    priority: int
    remaining_s: float
    task: dict[str, Any]
    is_kernel: bool


def has_work(session: Session, device_id: str) -> bool:
    """Whether a claim for this device would return something. Reads only."""
    return bool(session.scalar(_HAS_WORK, {"device_id": device_id}))


def ready_tasks(session: Session, device_ids: Sequence[str]) -> dict[str, int]:
    """How many tasks wait for each of these devices."""
    if session.get_bind().dialect.name == "sqlite":
        rows = session.execute(_READY_SQLITE, {"device_ids": json.dumps(list(device_ids))})
    else:
        rows = session.execute(_READY_POSTGRESQL, {"device_ids": list(device_ids)})
    return {row.device_id: row[1] for row in rows}


def redeliver(session: Session, device_id: str, limit: int, duration_s: float) -> list[LeasedTask]:
    """The leases that the device holds, prolonged: an agent that asks again has forgotten or not yet finished them."""
    held = TaskRow.id.in_(
        select(TaskRow.id)
        .where(TaskRow.device_id == device_id, _leased())
        .order_by(TaskRow.priority.desc(), TaskRow.id)
        .limit(limit)
    )
    is_prolonged = TaskRow.deliveries < MAX_DELIVERIES
    rows = session.execute(
        update(TaskRow)
        .where(TaskRow.device_id == device_id, _leased(), held)
        .values(
            deliveries=TaskRow.deliveries + 1,
            lease_expires_at=case((is_prolonged, now_s() + duration_s), else_=TaskRow.lease_expires_at),
        )
        .returning(*_LEASED_COLUMNS)
        .execution_options(**_QUIET)
    )
    return _leased_tasks(rows)


def claim(session: Session, device_id: str, limit: int, duration_s: float) -> list[LeasedTask]:
    """Lend up to `limit` waiting tasks to the device, in one statement."""
    return _leased_tasks(session.execute(claim_statement(device_id, limit, duration_s)))


def claim_statement(
    device_id: str, limit: int, duration_s: float
) -> ReturningUpdate[tuple[str, str | None, int, int, str | None, dict[str, Any], float | None]]:
    """What `claim` runs. The index of waiting tasks has their order, so it reads `limit` of them, however many wait.

    The tasks are picked in a CTE: a plain sub-query with LIMIT may be run again for every row, and lend all of them.
    """
    picked = (
        select(TaskRow.id)
        .where(
            TaskRow.device_id == device_id,
            _ready(),
            exists().where(DeviceRow.id == device_id, DeviceRow.enabled),
        )
        .order_by(TaskRow.priority.desc(), TaskRow.id)
        .limit(limit)
        .with_for_update(skip_locked=True, of=TaskRow)
        .cte("picked")
    )
    return (
        update(TaskRow)
        .where(TaskRow.id.in_(select(picked.c.id)))
        .values(
            state=TaskState.LEASED,
            # One identity for each lending: attempts are never used twice.
            lease_id=func.replace(TaskRow.id, "task_", "lease_") + literal("_") + cast(TaskRow.attempt, String),
            lease_expires_at=now_s() + duration_s,
            deliveries=1,
        )
        .returning(*_LEASED_COLUMNS)
        .execution_options(**_QUIET)
    )


def renew(session: Session, device_id: str, lease_id: str, attempt: int, duration_s: float) -> str | None:
    """Prolong a lease; returns the task, or None if the lease is over.

    A lease past its time that nobody collected yet is still good: the server may have been away meanwhile.
    """
    return session.execute(
        update(TaskRow)
        .where(*_held(device_id, lease_id, attempt))
        .values(lease_expires_at=now_s() + duration_s)
        .returning(TaskRow.id)
        .execution_options(**_QUIET)
    ).scalar_one_or_none()


def release(session: Session, device_id: str, lease_id: str, attempt: int) -> str | None:
    """Take back a lease that was not used; returns the task, or None if the lease is over."""
    task_id = session.execute(
        update(TaskRow)
        .where(*_held(device_id, lease_id, attempt))
        .values(state=TaskState.PENDING, attempt=TaskRow.attempt + 1, lease_id=None, lease_expires_at=None)
        .returning(TaskRow.id)
        .execution_options(**_QUIET)
    ).scalar_one_or_none()
    if task_id is not None:
        cancel_unwanted(session, [task_id])
    return task_id


def expire(session: Session, *, device_id: str | None = None) -> dict[str, int]:
    """Collect expired leases, in one UPDATE: back to PENDING, or FAILED after very many.

    That an agent, its network or this server was away says nothing about the task, so it uses up none of its attempts;
    an agent that a task brought down says so itself when it is back. Returns how many tasks became ready, by device.
    """
    is_last = TaskRow.deferrals + 1 >= MAX_DEFERRALS
    detail = "the lease was not renewed in time: the agent, its device or the network went away"
    where = [TaskRow.state == TaskState.LEASED, TaskRow.lease_expires_at < now_s()]
    if device_id is not None:
        where.append(TaskRow.device_id == device_id)
    rows = session.execute(
        update(TaskRow)
        .where(*where)
        .values(
            state=case((is_last, TaskState.FAILED), else_=TaskState.PENDING),
            deferrals=TaskRow.deferrals + 1,
            attempt=TaskRow.attempt + 1,
            lease_id=None,
            lease_expires_at=None,
            failure_reason=case((is_last, FailureReason.LEASE_EXPIRED.value), else_=TaskRow.failure_reason),
            failure_detail=case((is_last, detail), else_=TaskRow.failure_detail),
            finished_at=case((is_last, now_s()), else_=TaskRow.finished_at),
        )
        .returning(TaskRow.id, TaskRow.attempt, TaskRow.state, TaskRow.device_id)
        .execution_options(**_QUIET)
    ).all()
    failure = MeasurementFailure(reason=FailureReason.LEASE_EXPIRED, detail=detail)
    ready: dict[str, int] = {}
    for row in rows:
        store_failure(session, task_id=row.id, attempt=row.attempt - 1, failure=failure, status=ReportStatus.ACCEPTED)
        if row.state is TaskState.PENDING:
            ready[row.device_id] = ready.get(row.device_id, 0) + 1
    cancel_unwanted(session, [row.id for row in rows])
    return ready


def lock_tasks(session: Session, device_id: str, task_ids: Sequence[str]) -> dict[str, TaskRow]:
    """The device's tasks of these, locked in one order so that two batches cannot wait for each other."""
    rows = session.scalars(
        select(TaskRow)
        .where(TaskRow.id.in_(task_ids), TaskRow.device_id == device_id)
        .order_by(TaskRow.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    return {row.id: row for row in rows}


def count_pending(session: Session, task_ids: Collection[str]) -> int:
    """How many of these tasks wait for another attempt."""
    if not task_ids:
        return 0
    waiting = select(func.count()).where(TaskRow.id.in_(task_ids), TaskRow.state == TaskState.PENDING)
    return int(session.scalar(waiting) or 0)


def succeed(session: Session, task: TaskRow, *, result_key: str, verdict: Verdict) -> None:
    """Complete a task with a measurement."""
    session.execute(
        _SUCCEED, {"of_task": task.id, "of_attempt": task.attempt, "by_key": result_key, "by_verdict": verdict}
    )


def fail(session: Session, task: TaskRow, failure: MeasurementFailure) -> None:
    """Give a task up."""
    _end_lease(
        session,
        task,
        state=TaskState.FAILED,
        failures=task.failures + 1,
        failure_reason=failure.reason.value,
        failure_detail=failure.detail,
        finished_at=now_s(),
    )


def try_again(session: Session, task: TaskRow, decision: RetryDecision) -> None:
    """Put a task back after an attempt."""
    _end_lease(
        session,
        task,
        state=TaskState.PENDING,
        attempt=task.attempt + 1,
        failures=task.failures + int(decision.counts),
        deferrals=task.deferrals + int(decision.defers),
        not_before=now_s() + decision.delay_s,
    )
    cancel_unwanted(session, [task.id])


def _end_lease(session: Session, task: TaskRow, **values: Any) -> None:
    session.execute(
        update(TaskRow)
        .where(TaskRow.id == task.id, TaskRow.state == TaskState.LEASED, TaskRow.attempt == task.attempt)
        .values(lease_id=None, lease_expires_at=None, **values)
        .execution_options(**_QUIET)
    )


def _ready() -> ColumnElement[bool]:
    return (TaskRow.state == TaskState.PENDING) & (TaskRow.not_before <= now_s())


def _leased() -> ColumnElement[bool]:
    return TaskRow.state == TaskState.LEASED


def _held(device_id: str, lease_id: str, attempt: int) -> tuple[ColumnElement[bool], ...]:
    return (
        TaskRow.device_id == device_id,
        TaskRow.lease_id == lease_id,
        TaskRow.attempt == attempt,
        TaskRow.state == TaskState.LEASED,
    )


#: Built once, and with all devices in one parameter: thousands of agents may wait, and this is asked several times a
#: second for all of them.
_READY = select(TaskRow.device_id, func.count()).where(_ready()).group_by(TaskRow.device_id)
_READY_POSTGRESQL = _READY.where(TaskRow.device_id == any_(bindparam("device_ids", type_=ARRAY(String))))
_READY_SQLITE = _READY.where(
    TaskRow.device_id.in_(select(func.json_each(bindparam("device_ids")).table_valued("value").c.value))
)

#: Built once: the end of most leases.
_SUCCEED = (
    update(TaskRow.__table__)  # type: ignore[arg-type]
    .where(
        TaskRow.id == bindparam("of_task"),
        TaskRow.state == TaskState.LEASED,
        TaskRow.attempt == bindparam("of_attempt"),
    )
    .values(
        state=TaskState.SUCCEEDED,
        lease_id=None,
        lease_expires_at=None,
        result_key=bindparam("by_key"),
        verdict=bindparam("by_verdict", type_=TaskRow.__table__.c.verdict.type),
        finished_at=now_s(),
    )
)

#: Built once: waiting agents ask it all the time.
_HAS_WORK = select(exists().where(TaskRow.device_id == bindparam("device_id"), _ready() | _leased()))

_LEASED_COLUMNS = (
    TaskRow.id,
    TaskRow.lease_id,
    TaskRow.attempt,
    TaskRow.priority,
    TaskRow.kernel_id,
    TaskRow.task,
    (TaskRow.lease_expires_at - now_s()).label("remaining_s"),
)


def _leased_tasks(rows: Any) -> list[LeasedTask]:
    leased = [
        LeasedTask(
            task_id=row.id,
            lease_id=row.lease_id,
            attempt=row.attempt,
            priority=row.priority,
            remaining_s=row.remaining_s,
            task=row.task,
            is_kernel=row.kernel_id is not None,
        )
        for row in rows
    ]
    # RETURNING has no order.
    return sorted(leased, key=lambda item: (-item.priority, item.task_id))
