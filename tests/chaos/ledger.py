"""What must hold once the faults are over: nothing accepted is lost or doubled, and nothing is stuck."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from device_agent.contracts import ReportStatus, Verdict
from server.database import Database
from server.models import MeasurementFailureRow, MeasurementRawRow, MeasurementRow, ReportRow, SearchRow, TaskRow
from server.states import TaskState
from tests.chaos.proxy import Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """`accepted` counts measurements; of the others there should be none. Each is a line of text."""

    accepted: int
    lost: tuple[str, ...]
    duplicated: tuple[str, ...]
    stuck: tuple[str, ...]


def settle(database: Database, receipts: Iterable[Receipt], spools: Iterable[Path]) -> Findings:
    """Compare the database with the receipts that agents were sent, and with what agents still have."""
    with database.read() as session:
        reports = {row.result_key: row for row in session.scalars(select(ReportRow))}
        measured = {
            row.result_key: row.status
            for row in session.execute(select(MeasurementRow.result_key, MeasurementRow.status))
        }
        return Findings(
            accepted=sum(status is ReportStatus.ACCEPTED for status in measured.values()),
            lost=tuple(_lost(session, reports, measured, receipts, spools)),
            duplicated=tuple(_duplicated(session)),
            stuck=tuple(_stuck(session)),
        )


def reported_failures(database: Database) -> Counter[str]:
    """How many of the accepted reports were of failures, by reason. No agent reports those of expired leases."""
    of_report = (ReportRow.task_id == MeasurementFailureRow.task_id) & (
        ReportRow.attempt == MeasurementFailureRow.attempt
    )
    query = (
        select(MeasurementFailureRow.reason)
        .join(ReportRow, of_report)
        .where(ReportRow.status == ReportStatus.ACCEPTED, MeasurementFailureRow.status == ReportStatus.ACCEPTED)
    )
    with database.read() as session:
        return Counter(session.scalars(query))


def _lost(
    session: Session,
    reports: dict[str, ReportRow],
    measured: dict[str, ReportStatus],
    receipts: Iterable[Receipt],
    spools: Iterable[Path],
) -> Iterable[str]:
    for receipt in receipts:
        row = reports.get(receipt.result_key)
        if row is None:
            yield f"{receipt.result_key} was answered {receipt.status.value}, but is not stored"
        elif receipt.status is ReportStatus.ACCEPTED and row.status is not ReportStatus.ACCEPTED:
            yield f"{receipt.result_key} was answered accepted, but is stored as {row.status.value}"
        elif receipt.is_measurement and receipt.result_key not in measured:
            yield f"the measurement of {receipt.result_key} is not stored"
    raw = set(session.scalars(select(MeasurementRawRow.result_key)))
    for key in measured:
        if key not in raw:
            yield f"the samples of {key} are not stored"
    succeeded = select(TaskRow.id, TaskRow.result_key).where(TaskRow.state == TaskState.SUCCEEDED)
    for task_id, key in session.execute(succeeded):
        if measured.get(key) is not ReportStatus.ACCEPTED:
            yield f"{task_id} succeeded with {key}, which is no accepted measurement"
    for spool in spools:
        for path in spool.rglob("*.json"):
            if path.stem not in reports or path.parent.name == "refused":
                yield f"{path} was never delivered"


def _duplicated(session: Session) -> Iterable[str]:
    accepted = Counter(
        (row.task_id, row.attempt)
        for row in session.scalars(select(ReportRow).where(ReportRow.status == ReportStatus.ACCEPTED))
    )
    for (task_id, attempt), count in accepted.items():
        if count > 1:
            yield f"{count} reports of attempt {attempt} of {task_id} were accepted"
    usable = Counter(
        session.scalars(
            select(MeasurementRow.task_id).where(
                MeasurementRow.status == ReportStatus.ACCEPTED, MeasurementRow.verdict != Verdict.REJECTED
            )
        )
    )
    for task, count in usable.items():
        if count > 1:
            yield f"{task} has {count} accepted measurements"


def _stuck(session: Session) -> Iterable[str]:
    for task in session.scalars(select(TaskRow).where(TaskRow.state.in_((TaskState.PENDING, TaskState.LEASED)))):
        yield f"{task.id} is {task.state.value}, attempt {task.attempt}, lease {task.lease_id}"
    for search in session.scalars(select(SearchRow)):
        if not search.state.is_terminal:
            yield f"{search.id} is {search.state.value}"
