"""/v1/searches: submit searches, follow them, and read what they found."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Self, TypedDict

from device_agent.contracts import ContractError, decode, encode
from kerf.errors import KerfError, SearchEnded
from kerf.front import Front
from kerf.operations import Operation, Request, operation, procedure
from kerf.progress import ProgressLine
from kerf.resources.base import DEFAULT_LIMIT, AsyncBound, Bound, Items, Page, SyncBound, collect, iterate
from kerf.schemas import CandidateView, EventView, JobState, SearchView
from kerf.session import EVENTS_PATH
from search.domain.config import SearchConfig
from search.domain.result import SearchResult

_PATH = "/v1/searches/{search_id}"

#: False draws nothing; True a line on the standard output; a function gets each event.
Progress = bool | Callable[[EventView], None]
#: A search as the keys of docs/configuration.md, or as the value that they stand for.
Config = Mapping[str, Any] | SearchConfig


class CandidateList(TypedDict):
    """The front as it stands."""

    items: list[CandidateView]


class SearchOperations(Bound):
    """Searches by their ids. `submit` and `open` of the client's resource give a search as an object."""

    #: Streams answer in parts, so `events` is written for each kind of client.
    events_operation: ClassVar = ("GET", EVENTS_PATH)

    @operation("POST", "/v1/searches")
    def create(self, config: Config, *, idempotency_key: str | None = None) -> Request[SearchView]:
        """Create a search. With a key of the caller's own, repeating the call for a day gives the same search."""
        body = encode(config) if isinstance(config, SearchConfig) else dict(config)
        # The key is what makes repeating the request harmless.
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return Request(json=body, headers=headers, is_repeatable=True)

    @operation("GET", "/v1/searches")
    def page(
        self, *, state: JobState | None = None, limit: int = DEFAULT_LIMIT, cursor: str | None = None
    ) -> Request[Page[SearchView]]:
        """One page of the searches."""
        return Request(query={"state": state, "limit": limit, "cursor": cursor})

    @procedure
    async def list(
        self, *, state: JobState | None = None, limit: int = DEFAULT_LIMIT, cursor: str | None = None
    ) -> Items[SearchView]:
        """Up to `limit` searches, the newest first."""
        return await collect(self.session, partial(SearchOperations.page.prepare, state=state), limit, cursor)

    @operation("GET", _PATH)
    def get(self, search_id: str) -> Request[SearchView]:
        """One search as it stands."""
        return Request(path={"search_id": search_id})

    @operation("POST", _PATH + ":pause", is_repeatable=True)
    def pause(self, search_id: str) -> Request[SearchView]:
        """Let a search rest after the step in hand; it can go on later."""
        return Request(path={"search_id": search_id})

    @operation("POST", _PATH + ":resume", is_repeatable=True)
    def resume(self, search_id: str) -> Request[SearchView]:
        """Let a paused search go on."""
        return Request(path={"search_id": search_id})

    @operation("POST", _PATH + ":cancel", is_repeatable=True)
    def cancel(self, search_id: str) -> Request[SearchView]:
        """End a search for good. What was measured stays in the latency database."""
        return Request(path={"search_id": search_id})

    @operation("GET", _PATH + "/candidates")
    def candidates_page(
        self, search_id: str, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None
    ) -> Request[Page[CandidateView]]:
        """One page of the candidates."""
        return Request(path={"search_id": search_id}, query={"limit": limit, "cursor": cursor})

    @procedure
    async def candidates(
        self, search_id: str, *, limit: int = 10_000, cursor: str | None = None
    ) -> Items[CandidateView]:
        """Up to `limit` of all candidates that were evaluated, in the order of their identity."""
        return await collect(self.session, partial(SearchOperations.candidates_page.prepare, search_id), limit, cursor)

    @operation("GET", _PATH + "/candidates/{candidate_id}")
    def candidate(self, search_id: str, candidate_id: str) -> Request[CandidateView]:
        """One candidate."""
        return Request(path={"search_id": search_id, "candidate_id": candidate_id})

    @operation("GET", _PATH + "/front")
    def front(self, search_id: str) -> Request[CandidateList]:
        """The Pareto front as it stands, also while the search runs."""
        return Request(path={"search_id": search_id})

    @operation("GET", _PATH + "/searched-front")
    def searched_front(self, search_id: str) -> Request[Any]:
        """The front as the search found it, before training: equal for equal seeds and latency tables."""
        return Request(path={"search_id": search_id})

    @operation("GET", _PATH + "/config")
    def config(self, search_id: str) -> Request[dict[str, Any]]:
        """The resolved config, with every default spelled out, as the search used it."""
        return Request(path={"search_id": search_id})

    @operation("GET", _PATH + "/latency-table")
    def latency_table(self, search_id: str, *, device: str | None = None) -> Request[Any]:
        """The latency table that the search used: of the device with the id `device`, else of its first."""
        return Request(path={"search_id": search_id}, query={"device": device})

    @operation("GET", _PATH + "/result")
    def result(self, search_id: str) -> Request[dict[str, Any]]:
        """The result of a completed search, as in result.json."""
        return Request(path={"search_id": search_id})


class _OneSearch(Bound):
    """What both kinds of search objects can do. `view` is the search as it was last seen."""

    def __init__(self, session: Any, view: SearchView) -> None:
        super().__init__(session)
        self.view = view

    @property
    def id(self) -> str:
        return self.view["id"]

    @property
    def state(self) -> JobState:
        """The state as it was last seen; `refresh` asks again."""
        return self.view["state"]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.view['name']!r}: {self.state}>"

    async def _update(self, wanted: Operation[[str], SearchView]) -> SearchView:
        self.view = await self.session.call(wanted.prepare(self.id))
        return self.view

    @procedure
    async def refresh(self) -> SearchView:
        """Ask how the search stands."""
        return await self._update(SearchOperations.get)

    @procedure
    async def pause(self) -> SearchView:
        """Let the search rest after the step in hand."""
        return await self._update(SearchOperations.pause)

    @procedure
    async def resume(self) -> SearchView:
        """Let the paused search go on."""
        return await self._update(SearchOperations.resume)

    @procedure
    async def cancel(self) -> SearchView:
        """End the search for good."""
        return await self._update(SearchOperations.cancel)

    @procedure
    async def config(self) -> dict[str, Any]:
        """The resolved config, with every default spelled out."""
        return await self.session.call(SearchOperations.config.prepare(self.id))

    @procedure
    async def candidates(self) -> Items[CandidateView]:
        """All candidates that were evaluated so far."""
        return await SearchOperations.candidates.start(self, self.id)

    @procedure
    async def result(self) -> SearchResult:
        """The whole result. Raises `Conflict` or `NotFound` where the search is not complete: `wait` first."""
        return _result(await self.session.call(SearchOperations.result.prepare(self.id)))

    @procedure
    async def front(self) -> Front:
        """The verified front of the completed search. `client.searches.front` tells the front of a running one."""
        return Front(_result(await self.session.call(SearchOperations.result.prepare(self.id))))

    async def _ended(self, progress: Progress) -> None:
        notify = ProgressLine() if progress is True else progress or None
        async for event in self.session.events(self.id):
            if notify is not None:
                notify(event)
        if isinstance(notify, ProgressLine):
            notify.end()
        view = await self._update(SearchOperations.get)
        if view["state"] != "completed":
            raise SearchEnded(f"search {self.id} {view['state']}: {view.get('error') or 'no reason was given'}")


class Search(_OneSearch, SyncBound):
    """A search at the server."""

    def wait(self, progress: Progress = True) -> Self:
        """Wait until the search has ended. Raises `SearchEnded` unless it completed."""
        self.finish(self._ended(progress))
        return self

    def events(self) -> Iterator[EventView]:
        """The events from the beginning until the search ends. Reconnects, and misses none."""
        return iterate(self.session.events(self.id))


class AsyncSearch(_OneSearch, AsyncBound):
    """A search at the server, for `await`."""

    async def wait(self, progress: Progress = True) -> Self:
        """Wait until the search has ended. Raises `SearchEnded` unless it completed."""
        await self._ended(progress)
        return self

    def events(self) -> AsyncIterator[EventView]:
        """The events from the beginning until the search ends. Reconnects, and misses none."""
        return self.session.events(self.id)


class Searches(SearchOperations, SyncBound):
    def submit(self, config: Config, *, idempotency_key: str | None = None) -> Search:
        """Submit a search. Raises `Unprocessable` where the config is not right, naming the key."""
        return Search(self.session, self.create(config, idempotency_key=idempotency_key))

    def open(self, search_id: str) -> Search:
        """The search with this id, as an object."""
        return Search(self.session, self.get(search_id))

    def events(self, search_id: str) -> Iterator[EventView]:
        """The events of a search from its beginning until it ends. Reconnects, and misses none."""
        return iterate(self.session.events(search_id))


class AsyncSearches(SearchOperations, AsyncBound):
    async def submit(self, config: Config, *, idempotency_key: str | None = None) -> AsyncSearch:
        """Submit a search. Raises `Unprocessable` where the config is not right, naming the key."""
        return AsyncSearch(self.session, await self.create(config, idempotency_key=idempotency_key))

    async def open(self, search_id: str) -> AsyncSearch:
        """The search with this id, as an object."""
        return AsyncSearch(self.session, await self.get(search_id))

    def events(self, search_id: str) -> AsyncIterator[EventView]:
        """The events of a search from its beginning until it ends. Reconnects, and misses none."""
        return self.session.events(search_id)


def _result(data: dict[str, Any]) -> SearchResult:
    try:
        return decode(SearchResult, data)
    except ContractError as error:
        raise KerfError(
            f"the server's result is of another version ({error}): install the version of Kerf that the server has"
        ) from None
