"""What waits: searches for a worker, and measuring tasks for their device, with how long that will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from server.dashboard.devices import described, device_view
from server.dashboard.queue_pages import DeviceQueue, QueuedSearch, QueuePage, WaitingTasks
from server.dashboard.searches import search_progress
from server.dashboard.wording import JOB_LABELS
from server.fleet.devices import DeviceState, device_state
from server.fleet.repository import DeviceStatus, list_devices
from server.models import EventRow, MeasurementRow, SearchRow, SearchTaskRow, TaskRow
from server.searches.visibility import visible_ids
from server.states import JobState, TaskState

#: Searches and devices of the page.
SHOWN_SEARCHES = 50
SHOWN_DEVICES = 60
#: Progress events that tell a search's pace, and measurements that tell a device's.
PACE_EVENTS = 20
PACE_MEASUREMENTS = 50

#: What stands for the name of a search that the viewer may not see.
ANOTHERS = "another user's search"

Row = TypeVar("Row", QueuedSearch, WaitingTasks)

_OPEN = tuple(state for state in JobState if not state.is_terminal)


def queue_page(session: Session, now: float, *, heartbeat_interval_s: float, owner: str | None = None) -> QueuePage:
    """Searches in the order in which workers take them, and devices with open tasks by name.

    Searches that `owner` may not see count in all positions, but show neither name nor identity.
    """
    rows = session.scalars(open_searches_query()).all()
    devices = list_devices(session, after=None, limit=SHOWN_DEVICES)
    queues = [
        _device_queue(session, status, heartbeat_interval_s)
        for status in devices
        if status.num_pending + status.num_leased
    ]
    page = QueuePage(
        searches=_searches(session, rows[:SHOWN_SEARCHES], now),
        more_searches=len(rows) > SHOWN_SEARCHES,
        devices=tuple(sorted(queues, key=lambda queue: queue.device.name.lower())),
    )
    return page if owner is None else _without_others(session, page, owner)


def _without_others(session: Session, page: QueuePage, owner: str) -> QueuePage:
    waiting = {row.search_id for queue in page.devices for row in queue.searches}
    seen = visible_ids(session, waiting | {row.search_id for row in page.searches}, owner)

    def shown(row: Row) -> Row:
        return row if row.search_id in seen else replace(row, search_id="", name=ANOTHERS)

    devices = tuple(replace(queue, searches=tuple(shown(row) for row in queue.searches)) for queue in page.devices)
    return replace(page, searches=tuple(shown(row) for row in page.searches), devices=devices)


def open_searches_query() -> Select[SearchRow]:
    """Searches that are not over, the oldest first."""
    return (
        select(SearchRow)
        .where(SearchRow.finished_at.is_(None), SearchRow.state.in_(_OPEN))
        .order_by(SearchRow.id)
        .limit(SHOWN_SEARCHES + 1)
    )


def waiting_tasks_query(device_id: str) -> Select[str, str, int, int]:
    """(search, name, its waiting tasks, place of the last of them in the order of leasing) for one device."""
    place = func.row_number().over(order_by=(TaskRow.priority.desc(), TaskRow.id))
    waiting = (
        select(TaskRow.id.label("task_id"), place.label("place"))
        .where(TaskRow.device_id == device_id, TaskRow.state == TaskState.PENDING)
        .subquery()
    )
    return (
        select(SearchRow.id, SearchRow.name, func.count(), func.max(waiting.c.place))
        .join(SearchTaskRow, SearchTaskRow.search_id == SearchRow.id)
        .join(waiting, waiting.c.task_id == SearchTaskRow.task_id)
        .where(SearchRow.finished_at.is_(None))
        .group_by(SearchRow.id, SearchRow.name)
        .order_by(func.max(waiting.c.place))
    )


def latest_durations_query(device_id: str) -> Select[float]:
    """How long the latest measurements of a device took, in s."""
    return (
        select(MeasurementRow.duration_s)
        .where(MeasurementRow.device_id == device_id)
        .order_by(MeasurementRow.result_key.desc())
        .limit(PACE_MEASUREMENTS)
    )


def remaining_s(steps: Sequence[tuple[int, float]], total: int) -> float | None:
    """How long is left at the pace of `steps`, which are (done, time) in any order; None where nothing moved."""
    if not steps:
        return None
    (first, began), (last, ended) = min(steps), max(steps)
    if last <= first or total < last:
        return None
    return (total - last) * max(0.0, ended - began) / (last - first)


def _searches(session: Session, rows: Sequence[SearchRow], now: float) -> tuple[QueuedSearch, ...]:
    waiting = [row.id for row in rows if row.state is JobState.PENDING]
    place = {search_id: i for i, search_id in enumerate(waiting, start=1)}
    return tuple(
        QueuedSearch(
            search_id=row.id,
            name=row.name,
            state=JOB_LABELS[row.state],
            position=place.get(row.id),
            progress=search_progress(row, with_stage=True),
            remaining_s=_stage_remaining_s(session, row) if row.state is JobState.RUNNING else None,
            age_s=now - row.created_at,
        )
        for row in rows
    )


def _stage_remaining_s(session: Session, row: SearchRow) -> float | None:
    """Of the present stage. A pause between two of the events counts as slowness until enough others follow."""
    query = (
        select(EventRow.data, EventRow.created_at)
        .where(EventRow.search_id == row.id, EventRow.kind == "progress")
        .order_by(EventRow.seq.desc())
        .limit(PACE_EVENTS)
    )
    found = session.execute(query).all()
    total = int(row.progress.get("total", 0))
    steps = [
        (int(data["done"]), at)
        for data, at in found
        if data.get("stage") == row.progress.get("stage") and data.get("total") == total
    ]
    return remaining_s(steps, total)


def _device_queue(session: Session, status: DeviceStatus, heartbeat_interval_s: float) -> DeviceQueue:
    device_id = status.row.id
    durations = session.scalars(latest_durations_query(device_id)).all()
    task_s = sum(durations) / len(durations) if durations else None
    is_working = device_state(status, heartbeat_interval_s) is DeviceState.ONLINE
    pace_s = task_s if is_working else None

    def lasts_s(tasks: int) -> float | None:
        return None if pace_s is None else pace_s * (tasks + status.num_leased)

    return DeviceQueue(
        device=device_view(status, described(status.row), heartbeat_interval_s),
        leased=status.num_leased,
        pending=status.num_pending,
        task_s=task_s,
        remaining_s=lasts_s(status.num_pending),
        searches=tuple(
            WaitingTasks(search_id=search_id, name=name, count=count, ahead=last - count, remaining_s=lasts_s(last))
            for search_id, name, count, last in session.execute(waiting_tasks_query(device_id))
        ),
    )
