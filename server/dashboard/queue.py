"""What waits: searches for a worker, and measuring tasks for their device, with how long that will take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from sqlalchemy import Select, and_, func, select
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
    busy = list_devices(session, after=None, limit=SHOWN_DEVICES, busy=True)
    waiting: dict[str, list[_Waiting]] = defaultdict(list)
    if busy:
        for device_id, search_id, name, count, last in session.execute(
            waiting_tasks_query([status.row.id for status in busy])
        ):
            waiting[device_id].append(_Waiting(search_id, name, count, last))
    queues = [_device_queue(session, status, waiting[status.row.id], heartbeat_interval_s) for status in busy]
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


def waiting_tasks_query(device_ids: Sequence[str]) -> Select[str, str, str, int, int]:
    """(device, search, name, its waiting tasks there, place of the last of them in the order of leasing).

    Ranked after joining: joined to ranked tasks, PostgreSQL compares all with all until it has statistics of them.
    """
    place = func.dense_rank().over(partition_by=TaskRow.device_id, order_by=(TaskRow.priority.desc(), TaskRow.id))
    waiting = (
        select(TaskRow.device_id, SearchRow.id.label("search_id"), SearchRow.name, place.label("place"))
        .outerjoin(SearchTaskRow, SearchTaskRow.task_id == TaskRow.id)
        .outerjoin(SearchRow, and_(SearchRow.id == SearchTaskRow.search_id, SearchRow.finished_at.is_(None)))
        .where(TaskRow.device_id.in_(device_ids), TaskRow.state == TaskState.PENDING)
        .subquery()
    )
    last = func.max(waiting.c.place)
    return (
        select(waiting.c.device_id, waiting.c.search_id, waiting.c.name, func.count(), last)
        .where(waiting.c.search_id.is_not(None))
        .group_by(waiting.c.device_id, waiting.c.search_id, waiting.c.name)
        .order_by(waiting.c.device_id, last, waiting.c.search_id)
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


@dataclass(frozen=True, slots=True)
class _Waiting:
    """The tasks of a search that wait for a device. `last` is the place of the last of them."""

    search_id: str
    name: str
    count: int
    last: int


def _device_queue(
    session: Session, status: DeviceStatus, waiting: Sequence[_Waiting], heartbeat_interval_s: float
) -> DeviceQueue:
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
            WaitingTasks(
                search_id=item.search_id,
                name=item.name,
                count=item.count,
                ahead=item.last - item.count,
                remaining_s=lasts_s(item.last),
            )
            for item in waiting
        ),
    )
