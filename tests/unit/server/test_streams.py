"""Event streams: how many a token has open, and that none outlives its token."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import update

from server import streams
from server.accounts.repository import revoke_token
from server.context import TOKEN_COOKIE, Context
from server.dashboard import live
from server.dashboard.live import changes
from server.errors import TooManyRequests
from server.models import SearchRow, TokenRow
from server.searches import events as search_events
from server.searches.events import stream_events
from server.settings import Settings
from server.states import JobState
from server.streams import OpenStreams, SharedReads, Stream
from tests.unit.server.server_lab import ServerLab


def context_of(lab: ServerLab) -> Context:
    context: Context = lab.client.app.state.context  # type: ignore[attr-defined]
    return context


class TestHowMany:
    def test_a_token_has_as_many_as_it_may(self) -> None:
        opened = OpenStreams(2)
        with ExitStack() as held:
            for token_id in ("a", "a", "b", None, None, None):
                held.enter_context(opened.one(token_id))
            with pytest.raises(TooManyRequests, match="2 event streams open"), opened.one("a"):
                pass
        with opened.one("a"), opened.one("a"):
            pass

    def test_zero_is_without_limit(self) -> None:
        opened = OpenStreams(0)
        with ExitStack() as held:
            for _ in range(1000):
                held.enter_context(opened.one("a"))

    @pytest.mark.parametrize("url", ["/v1/searches/{}/events", "/live/searches/{}"])
    def test_one_too_many_is_told_to_wait_and_ended_ones_do_not_count(
        self, app: FastAPI, sqlite_settings: Settings, url: str
    ) -> None:
        app.state.settings = replace(sqlite_settings, max_streams=1)
        with TestClient(app) as client:
            lab = ServerLab(client, sqlite_settings)
            search_id = lab.search(lab.agent().device_id)
            with lab.database.write() as session:
                session.execute(update(SearchRow).values(state=JobState.CANCELLED))
            token_id = lab.get("/v1/tokens/current").json()["id"]
            client.cookies.set(TOKEN_COOKIE, lab.user)

            def ask() -> Any:
                return client.get(url.format(search_id))

            # Each ends by itself, as the search is over, and is counted while it lasts.
            assert [ask().status_code for _ in range(3)] == [200] * 3
            with context_of(lab).streams.one(token_id):
                refused = ask()
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
            assert ask().status_code == 200
            lab.close()


class TestItsToken:
    @pytest.mark.parametrize("kind", ["events", "page"])
    @pytest.mark.parametrize("ending", ["revoked", "expired"])
    def test_a_stream_ends_with_it(
        self, lab: ServerLab, monkeypatch: pytest.MonkeyPatch, kind: str, ending: str
    ) -> None:
        monkeypatch.setattr(streams, "RECHECK_S", 0.0)
        monkeypatch.setattr(live, "MIN_INTERVAL_S", 0.01)
        search_id = lab.search(lab.agent().device_id)
        token_id = lab.get("/v1/tokens/current").json()["id"]
        context = context_of(lab)

        def end() -> None:
            with lab.database.write() as session:
                if ending == "revoked":
                    revoke_token(session, token_id)
                else:
                    session.execute(update(TokenRow).where(TokenRow.id == token_id).values(expires_at=1.0))

        events = asyncio.run(self.followed(context, kind, search_id, token_id, end))
        assert len(events) == 1

    @staticmethod
    async def followed(
        context: Context, kind: str, search_id: str, token_id: str, end: Callable[[], None]
    ) -> list[object]:
        """What comes of a search that goes on for ever, after the first event of which the token ends."""
        stopping = asyncio.Event()
        context = replace(context, stopping=stopping, shared_reads=SharedReads())
        stream = Stream(context.database, stopping, token_id)
        followed: AsyncIterator[object]
        if kind == "events":
            followed = stream_events(search_id, context, 0, stream)
        else:
            followed = changes(context, stream, "", lambda session: ("1", False), None)
        found = [await anext(followed)]
        end()
        async with asyncio.timeout(30):
            async for event in followed:
                found.append(event)
        return found

    def test_it_is_asked_for_now_and_then_only(self, sqlite_lab: ServerLab, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []
        monkeypatch.setattr(streams, "is_usable", lambda session, token_id: bool(asked.append(token_id)) or True)

        async def go() -> None:
            stream = Stream(sqlite_lab.database, asyncio.Event(), "token")
            assert [await stream.goes_on() for _ in range(5)] == [True] * 5
            monkeypatch.setattr(streams, "RECHECK_S", 0.0)
            assert await stream.goes_on()

        asyncio.run(go())
        assert asked == ["token"]


class TestSharedReads:
    def test_what_is_asked_at_once_is_read_once(self) -> None:
        asked: list[str] = []

        def read() -> int:
            asked.append("")
            return len(asked)

        async def go() -> None:
            reads = SharedReads()
            assert await asyncio.gather(*(reads.get("a", read, 3600.0) for _ in range(50))) == [1] * 50
            assert await reads.get("a", read, 3600.0) == 1
            assert await reads.get("a", read, 0.0) == 2
            assert await reads.get("b", read, 3600.0) == 3

        asyncio.run(go())

    def test_a_failure_is_not_kept_and_who_leaves_takes_nothing_away(self) -> None:
        tried: list[str] = []
        free = threading.Event()

        def read() -> str:
            tried.append("")
            assert free.wait(30)
            if len(tried) == 1:
                raise ValueError("not now")
            return "read"

        async def go() -> None:
            reads = SharedReads()
            first = asyncio.create_task(reads.get("a", read, 3600.0))
            second = asyncio.create_task(reads.get("a", read, 3600.0))
            await asyncio.sleep(0)
            first.cancel()
            free.set()
            with pytest.raises(ValueError, match="not now"):
                await second
            assert await reads.get("a", read, 3600.0) == "read"

        asyncio.run(go())
        assert len(tried) == 2

    def test_streams_of_one_search_ask_together(self, sqlite_lab: ServerLab, monkeypatch: pytest.MonkeyPatch) -> None:
        search_id = sqlite_lab.search(sqlite_lab.agent().device_id)
        standing, asked = search_events._standing, []

        def noted(context: Context, search_id: str) -> tuple[int, bool]:
            asked.append(search_id)
            return standing(context, search_id)

        monkeypatch.setattr(search_events, "_standing", noted)

        async def go() -> list[object]:
            context = replace(context_of(sqlite_lab), stopping=asyncio.Event(), shared_reads=SharedReads())
            followed = [
                stream_events(search_id, context, 0, Stream(context.database, context.stopping, None))
                for _ in range(20)
            ]
            found = await asyncio.gather(*(anext(one) for one in followed))
            for one in followed:
                await one.aclose()  # type: ignore[attr-defined]
            return found

        found = asyncio.run(go())
        assert len(found) == 20
        assert asked == [search_id]
