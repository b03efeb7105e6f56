"""/v1/workers: who carries the searches on."""

from __future__ import annotations

from kerf.operations import Request, operation, procedure
from kerf.resources.base import MAX_PAGE, AsyncBound, Bound, Items, Page, SyncBound, collect
from kerf.schemas import WorkerView


class WorkerOperations(Bound):
    """The processes that run searches."""

    @operation("GET", "/v1/workers")
    def page(self, *, limit: int = MAX_PAGE, cursor: str | None = None) -> Request[Page[WorkerView]]:
        """One page of the workers."""
        return Request(query={"limit": limit, "cursor": cursor})

    @procedure
    async def list(self, *, limit: int = MAX_PAGE, cursor: str | None = None) -> Items[WorkerView]:
        """Up to `limit` workers in the order of their start: those that run, and those that ended without a word."""
        return await collect(self.session, WorkerOperations.page.prepare, limit, cursor)


class Workers(WorkerOperations, SyncBound):
    pass


class AsyncWorkers(WorkerOperations, AsyncBound):
    pass
