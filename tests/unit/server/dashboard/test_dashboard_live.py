"""What tells an open page that it is stale."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator

import pytest
from fastapi.sse import ServerSentEvent
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from server.context import Context
from server.dashboard import live
from server.dashboard.live import Version, changes, overview_version, search_version
from server.states import JobStage
from server.streams import SharedReads, Stream
from tests.unit.server.dashboard import seed
from tests.unit.server.dashboard.seed import Seeded

Versions = Callable[[Session], Version]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MIN_INTERVAL_S", 0.0)


def scripted(*versions: Version) -> Versions:
    """One version after the other; the last one stays."""
    left: Iterator[Version] = iter(versions)
    current = [versions[0]]

    def version(session: Session) -> Version:
        current[0] = next(left, current[0])
        return current[0]

    return version


def collect(context: Context, version: Versions, last_seen: str | None, limit: int = 10) -> list[tuple[str, str]]:
    """(event, id) of a stream, up to `limit` of them."""

    async def run() -> list[ServerSentEvent]:
        stopping = asyncio.Event()
        events = []
        stream = Stream(context.database, stopping, None)
        followed = dataclasses.replace(context, stopping=stopping, shared_reads=SharedReads())
        async for event in changes(followed, stream, "", version, last_seen):
            events.append(event)
            if len(events) >= limit:
                stopping.set()
        return events

    return [(str(event.event), str(event.id)) for event in asyncio.run(run())]


class TestChanges:
    def test_a_new_page_is_told_at_once_and_then_on_each_change(self, context: Context) -> None:
        version = scripted(("1", False), ("1", False), ("2", False), ("3", True))
        assert collect(context, version, None) == [("changed", "1"), ("changed", "2"), ("changed", "3"), ("end", "3")]

    def test_a_page_that_reconnects_gets_only_what_is_new(self, context: Context) -> None:
        version = scripted(("7", False), ("7", False), ("8", True))
        assert collect(context, version, "7") == [("changed", "8"), ("end", "8")]

    def test_ends_when_the_server_stops(self, context: Context) -> None:
        assert collect(context, scripted(("1", False)), None, limit=1) == [("changed", "1")]


def test_search_version_follows_its_events(context: Context, seeded: Seeded) -> None:
    def version(search_id: str) -> Version:
        with context.database.read() as session:
            return search_version(session, search_id)

    claim = seeded.running
    before = version(claim.search_id)
    assert before == version(claim.search_id)
    seed.advance(context, claim, 6, 8, "more", JobStage.TRAINING)
    after = version(claim.search_id)
    assert after != before
    assert not after[1]
    assert version(seeded.completed_id)[1]
    assert version("search_none") == ("gone", True)


def test_overview_version_follows_searches_devices_and_measurements(context: Context, seeded: Seeded) -> None:
    def version(offline_after_s: float = 1e9) -> Version:
        with context.database.read() as session:
            return overview_version(session, offline_after_s=offline_after_s)

    seen = [version()]
    assert version() == seen[0]
    seed.advance(context, seeded.running, 7, 8, "more", JobStage.TRAINING)
    seen.append(version())
    seed.enrol(context, "another board", seed.profile("Cortex-A55", 4))
    seen.append(version())
    seen.append(version(offline_after_s=-1.0))
    assert len(set(seen)) == 4


def test_streams_over_http(local: TestClient, seeded: Seeded) -> None:
    answer = local.get(f"/live/searches/{seeded.completed_id}")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "event: changed" in answer.text
    assert "event: end" in answer.text
    again = local.get(
        f"/live/searches/{seeded.completed_id}",
        headers={"Last-Event-ID": answer.text.split("id: ")[1].split("\n")[0]},
    )
    assert "event: changed" not in again.text
    assert "event: end" in again.text
