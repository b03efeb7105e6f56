"""/v1/searches/{id}/events: progress as server-sent events, replayed from the table and then followed.

The id of an event is its number in the search; a browser or client that reconnects sends the last one it saw in
Last-Event-ID and misses nothing. After the last event of a finished search comes one called "end".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent

from device_agent.contracts import dumps
from server.context import Context, ContextDep, Reader, streaming
from server.errors import BadRequest
from server.searches import queries
from server.searches.schemas import EventView, event_view
from server.searches.visibility import check_visible
from server.streams import Stream
from server.wire import PROBLEMS

router = APIRouter(prefix="/v1/searches", tags=["searches"], responses=PROBLEMS, dependencies=[Depends(check_visible)])

#: Events that are read at once: bounds the memory of a replay.
_BATCH = 500


def first_seq(
    search_id: str, context: ContextDep, principal: Reader, last_event_id: Annotated[str | None, Header()] = None
) -> int:
    """The event after which to go on. Errors are raised here, before the stream has begun."""
    with context.database.read() as session:
        queries.get_search(session, search_id)
    if last_event_id is None:
        return 0
    if not last_event_id.isascii() or not last_event_id.isdigit() or len(last_event_id) > 9:
        raise BadRequest(f"Last-Event-ID {last_event_id!r} is no event number: leave it out to begin at the start")
    return int(last_event_id)


async def one_stream(request: Request, context: ContextDep, principal: Reader) -> AsyncIterator[Stream]:
    """Counted until the answer has ended."""
    with streaming(request, context) as stream:
        yield stream


@router.get("/{search_id}/events", response_class=EventSourceResponse)
async def stream_events(
    search_id: str,
    context: ContextDep,
    seq: Annotated[int, Depends(first_seq)],
    stream: Annotated[Stream, Depends(one_stream)],
) -> AsyncIterator[ServerSentEvent]:
    """Events of a search from Last-Event-ID on, until it ends."""
    interval_s = context.settings.poll_interval_s
    while await stream.goes_on():
        # Most of the time nothing is new, whoever asks.
        last, is_over = await context.shared_reads.get(
            ("events", search_id), partial(_standing, context, search_id), interval_s / 2
        )
        events = await run_in_threadpool(_read, context, search_id, seq) if seq < last else []
        for event in events:
            seq = event.seq
            yield ServerSentEvent(raw_data=dumps(event), event=event.kind, id=str(event.seq))
        if is_over and not events:
            yield ServerSentEvent(raw_data=json.dumps({"last": seq}), event="end")
            return
        if not events:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(context.stopping.wait(), interval_s)


def _standing(context: Context, search_id: str) -> tuple[int, bool]:
    """The number of the latest event, and whether the search is over, so that none can follow."""
    with context.database.read() as session:
        row = queries.get_search(session, search_id)
        return row.last_event_seq, row.state.is_terminal


def _read(context: Context, search_id: str, seq: int) -> list[EventView]:
    """The next events."""
    with context.database.read() as session:
        return [event_view(row) for row in queries.events_after(session, search_id, seq, _BATCH)]
