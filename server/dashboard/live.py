"""Tells open pages that there is something new. The event carries no data: the page then asks for itself again.

So nothing can be missed or shown twice, whatever happens to the connection.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Hashable

from fastapi.sse import ServerSentEvent
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.columns import now_s
from server.context import Context
from server.dashboard.queries import SHOWN_DEVICES, SHOWN_SEARCHES
from server.models import DeviceRow, MeasurementRow, SearchRow, TaskRow
from server.states import TaskState
from server.streams import Stream

#: A page is fetched again at most so often: faster than that, nobody reads.
MIN_INTERVAL_S = 1.0

#: (what identifies the present content, whether it will not change any more)
Version = tuple[str, bool]


async def changes(
    context: Context, stream: Stream, what: Hashable, version: Callable[[Session], Version], last_seen: str | None
) -> AsyncIterator[ServerSentEvent]:
    """A "changed" event at once if the page may be stale, then one for every change; "end" when there are no more.

    `what` tells pages apart: streams of one share what they ask. `last_seen` is the identity of the last event that the
    page got. Ends when the server stops, or the viewer's
    token ends.
    """

    def read() -> Version:
        with context.database.read() as session:
            return version(session)

    while await stream.goes_on():
        current, is_final = await context.shared_reads.get(("page", what), read, MIN_INTERVAL_S / 2)
        if current != last_seen:
            last_seen = current
            yield ServerSentEvent(event="changed", raw_data=current, id=current)
        if is_final:
            yield ServerSentEvent(event="end", raw_data=current, id=current)
            return
        try:
            await asyncio.wait_for(context.stopping.wait(), timeout=MIN_INTERVAL_S)
        except TimeoutError:
            continue


def search_version(session: Session, search_id: str) -> Version:
    """Every change of a search comes with an event of its own."""
    row = session.execute(
        select(SearchRow.state, SearchRow.last_event_seq).where(SearchRow.id == search_id)
    ).one_or_none()
    return ("gone", True) if row is None else (f"{row.state.value}-{row.last_event_seq}", row.state.is_terminal)


def overview_version(session: Session, *, offline_after_s: float) -> Version:
    """Of what the overview shows: the newest searches, the devices' states and the newest measurement."""
    searches = session.execute(
        select(SearchRow.id, SearchRow.state, SearchRow.last_event_seq)
        .order_by(SearchRow.id.desc())
        .limit(SHOWN_SEARCHES)
    ).all()
    devices = session.execute(
        select(DeviceRow.id, DeviceRow.enabled, DeviceRow.last_seen_at < now_s() - offline_after_s)
        .order_by(DeviceRow.id)
        .limit(SHOWN_DEVICES)
    ).all()
    newest = session.execute(select(func.max(MeasurementRow.result_key))).scalar_one()
    leased = session.execute(select(func.count()).where(TaskRow.state == TaskState.LEASED)).scalar_one()
    parts = repr(([tuple(row) for row in searches], [tuple(row) for row in devices], newest, leased))
    return hashlib.sha256(parts.encode()).hexdigest()[:16], False
