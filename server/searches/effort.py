"""What a search cost its devices: measurements asked for, those that were there already, and minutes of measuring."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Integer, cast, func, select
from sqlalchemy.orm import Session

from search.domain.result import MeasuringEffort
from server.models import MeasurementRow, SearchRow, SearchTaskRow, TaskRow

_S_PER_MINUTE = 60.0


def measuring_efforts(session: Session, search_id: str) -> dict[str, MeasuringEffort]:
    """The effort of each device that the search asked for anything, as stored now.

    A task and its minutes count for the search that had it measured, and as a cache hit for others that share it; so
    minutes add up over searches. Failed attempts leave no duration behind and are not counted; neither are
    measurements that ended after the search did.
    """
    tasks = (
        select(TaskRow.device_id, func.count(), func.sum(cast(SearchTaskRow.shared, Integer)))
        .join(SearchTaskRow, SearchTaskRow.task_id == TaskRow.id)
        .where(SearchTaskRow.search_id == search_id)
        .group_by(TaskRow.device_id)
        .order_by(TaskRow.device_id)
    )
    seconds = (
        select(MeasurementRow.device_id, func.sum(MeasurementRow.duration_s))
        .join(SearchTaskRow, SearchTaskRow.task_id == MeasurementRow.task_id)
        .join(SearchRow, SearchRow.id == SearchTaskRow.search_id)
        .where(
            SearchTaskRow.search_id == search_id,
            ~SearchTaskRow.shared,
            MeasurementRow.created_at <= func.coalesce(SearchRow.finished_at, MeasurementRow.created_at),
        )
        .group_by(MeasurementRow.device_id)
    )
    spent_s = {device_id: float(total) for device_id, total in session.execute(seconds)}
    return {
        device_id: MeasuringEffort(
            measurements=int(count),
            cache_hits=int(shared),
            device_minutes=spent_s.get(device_id, 0.0) / _S_PER_MINUTE,
        )
        for device_id, count, shared in session.execute(tasks)
    }


def total_effort(efforts: Iterable[MeasuringEffort]) -> MeasuringEffort:
    """The effort over all devices; minutes of devices that measure at the same time add up."""
    found = tuple(efforts)
    return MeasuringEffort(
        measurements=sum(e.measurements for e in found),
        cache_hits=sum(e.cache_hits for e in found),
        device_minutes=sum(e.device_minutes for e in found),
    )
