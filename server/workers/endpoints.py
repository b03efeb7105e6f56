"""/v1/workers: who carries the searches on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fastapi import APIRouter, Response

from server.context import ContextDep, Reader
from server.searches.visibility import sees_only, visible_ids
from server.wire import DEFAULT_PAGE, PROBLEMS, ContractResponse, Limit, Page, decode_cursor, iso, page
from server.workers import repository
from server.workers.repository import WorkerStatus

router = APIRouter(prefix="/v1/workers", tags=["workers"], responses=PROBLEMS)


class WorkerState(StrEnum):
    """How a worker is: derived, not stored."""

    IDLE = "idle"
    BUSY = "busy"
    #: It ended without a word, or its machine hangs; another worker takes its search over.
    SILENT = "silent"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """A process that runs searches. `search_id` is the one in its hands, where the asking user may see it."""

    id: str
    name: str
    host: str
    version: str
    state: WorkerState
    search_id: str | None
    started_at: str | None
    last_seen_at: str | None


@router.get("")
def list_workers(
    context: ContextDep, principal: Reader, cursor: str | None = None, limit: Limit = DEFAULT_PAGE
) -> Response:
    """Workers that run, and for a week those that ended without a word, in the order of their start."""
    owner = sees_only(context.settings, principal)
    with context.database.read() as session:
        found = repository.list_workers(session, after=decode_cursor(cursor), limit=limit + 1)
        seen = visible_ids(session, {item.row.search_id for item in found if item.row.search_id}, owner)
    part = page(found, limit, key=lambda item: item.row.id)
    return ContractResponse(Page(items=tuple(_view(item, seen) for item in part.items), next=part.next))


def state_of(status: WorkerStatus) -> WorkerState:
    if status.is_silent:
        return WorkerState.SILENT
    return WorkerState.IDLE if status.row.search_id is None else WorkerState.BUSY


def _view(status: WorkerStatus, seen: frozenset[str]) -> WorkerView:
    row = status.row
    return WorkerView(
        id=row.id,
        name=row.name,
        host=row.host,
        version=row.version,
        state=state_of(status),
        search_id=row.search_id if row.search_id in seen else None,
        started_at=iso(row.started_at),
        last_seen_at=iso(row.heartbeat_at),
    )
