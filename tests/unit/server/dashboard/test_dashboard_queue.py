"""What waits, in which order, and how long that takes; and how a device is added."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from device_agent.contracts import EnrolmentRequest, KernelTask, Source, Verdict, encode
from server.accounts.service import Scope, mint_user_token
from server.app import create_app
from server.context import TOKEN_COOKIE, Context
from server.dashboard import queue as queue_module
from server.dashboard.queue import (
    latest_durations_query,
    open_searches_query,
    queue_page,
    remaining_s,
    waiting_tasks_query,
)
from server.database import upgrade
from server.latency.source import SqlLatencySource
from server.searches import queries
from server.settings import Settings
from server.states import JobStage
from tests.unit.server.dashboard import seed
from tests.unit.server.dashboard.conftest import LOCAL, LOCAL_CLIENT
from tests.unit.server.dashboard.test_dashboard_pages import tags_of, text_of
from tests.unit.server.plans import plan

OWN = {"Origin": LOCAL}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[TestClient]:
    """A server of its own: what waits on it is all that is told."""
    settings = Settings(data_dir=tmp_path, open_dashboard=True)
    upgrade(settings)
    with TestClient(create_app(settings), base_url=LOCAL, client=LOCAL_CLIENT, follow_redirects=False) as client:
        yield client


@pytest.fixture
def own(site: TestClient) -> Context:
    found: Context = site.app.state.context  # type: ignore[attr-defined]
    return found


def waiting(context: Context, name: str, device: str) -> str:
    """A search that no worker has taken."""
    with context.database.read() as session:
        config = encode(queries.list_searches(session, before=None, limit=1)[0].config)
    with context.database.write() as session:
        return queries.insert_search(session, name=name, device_id=device, config=config, created_by="token_test").id


def tasks(first: int, last: int) -> tuple[KernelTask, ...]:
    return tuple(KernelTask(kernel=kernel, setup=seed.SETUP) for kernel in seed.kernels()[first:last])


def test_searches_and_tasks_wait_in_the_order_in_which_they_are_taken(site: TestClient, own: Context) -> None:
    device = seed.enrol(own, "busy-board", seed.profile("Cortex-A55", 4))
    running = seed.submit(own, "the running one", device)
    seed.advance(own, running, 3, 8, "", JobStage.TRAINING)
    seed.measure(own, running, tasks(0, 2), source=Source.MEASURED, judge=lambda _: (Verdict.TRUSTED, ()))
    first, second = (waiting(own, name, device) for name in ("first in line", "second in line"))
    source = SqlLatencySource(own.database)
    source.request(device, tasks(2, 5), running.search_id)
    source.request(device, tasks(3, 8), first)
    with own.database.read() as session:
        page = queue_page(session, 0.0, heartbeat_interval_s=3600.0)
    assert [(row.search_id, row.position) for row in page.searches] == [
        (running.search_id, None), (first, 1), (second, 2),
    ]  # fmt: skip
    (queue,) = page.devices
    assert (queue.leased, queue.pending) == (0, 6)
    assert queue.task_s is not None
    assert queue.remaining_s == pytest.approx(6 * queue.task_s)
    # Kernels 2 to 4 for the running search; 3 and 4 are shared, and its own last one is behind them.
    assert {row.name: (row.count, row.ahead) for row in queue.searches} == {
        "the running one": (3, 0), "first in line": (5, 1),
    }  # fmt: skip
    assert [row.remaining_s for row in queue.searches] == pytest.approx([3 * queue.task_s, 6 * queue.task_s])
    text = text_of(site.get("/queue").text)
    assert "2 of those waiting" in text
    assert "0 being measured, 6 waiting: about" in text


def test_a_device_that_gets_no_work_has_no_time(own: Context) -> None:
    device = seed.enrol(own, "away", seed.profile("Cortex-A55", 4))
    claim = seed.submit(own, "asks", device)
    SqlLatencySource(own.database).request(device, tasks(0, 2), claim.search_id)
    with own.database.read() as session:
        (queue,) = queue_page(session, 0.0, heartbeat_interval_s=-1.0).devices
    assert queue.remaining_s is None
    assert [row.remaining_s for row in queue.searches] == [None]


def test_idle_devices_leave_room_for_busy_ones(own: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "SHOWN_DEVICES", 1)
    seed.enrol(own, "idle", seed.profile("Cortex-A55", 4))
    busy = seed.enrol(own, "busy", seed.profile("Cortex-A55", 4))
    claim = seed.submit(own, "asks", busy)
    SqlLatencySource(own.database).request(busy, tasks(0, 2), claim.search_id)
    with own.database.read() as session:
        (queue,) = queue_page(session, 0.0, heartbeat_interval_s=3600.0).devices
    assert (queue.device.name, queue.pending) == ("busy", 2)


def test_what_waits_is_found_by_index(own: Context) -> None:
    with own.database.read() as session:
        assert "ix_search_job_open" in plan(session, open_searches_query())
        assert "ix_measurement_task_ready (device_id=?)" in plan(session, waiting_tasks_query(["device_1", "device_2"]))
        latest = plan(session, latest_durations_query("device_1"))
    assert "ix_measurement_device_latest (device_id=?)" in latest
    assert "TEMP B-TREE" not in latest


@pytest.mark.parametrize(
    ("steps", "total", "left"),
    [
        ([(4, 130.0), (2, 100.0), (3, 120.0)], 8, 60.0),
        ([(8, 130.0), (2, 100.0)], 8, 0.0),
        ([(2, 100.0), (2, 120.0)], 8, None),
        ([(2, 100.0)], 8, None),
        ([], 8, None),
    ],
)
def test_the_rest_of_a_stage_goes_at_its_latest_pace(
    steps: list[tuple[int, float]], total: int, left: float | None
) -> None:
    assert remaining_s(steps, total) == left


def test_an_empty_queue_says_so(site: TestClient) -> None:
    text = text_of(site.get("/queue").text)
    assert "No search is open" in text
    assert "No task is open" in text


class TestEnrolling:
    def test_an_administrator_makes_a_code_that_enrols_one_device(self, site: TestClient, own: Context) -> None:
        with own.database.write() as session:
            token = mint_user_token(session, own.hasher, name="root", scopes=(Scope.ADMIN,))
        site.cookies.set(TOKEN_COOKIE, token)
        assert "CODE" in site.get("/enrol").text
        answer = site.post("/enrol")
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        (command,) = [line for line in answer.text.splitlines() if "--code " in line]
        code = command.partition("--code ")[2].partition("<")[0]
        request = EnrolmentRequest(
            code=code, agent_key="a-key-of-an-agent", device_name="new", profile=seed.profile("x", 1),
            runtimes=seed.runtimes("neon"), agent_version="0.1.0",
        )  # fmt: skip
        assert site.post("/v1/agents:enrol", json=encode(request)).status_code == 200
        other = {**encode(request), "agent_key": "another-key-of-an-agent"}
        assert site.post("/v1/agents:enrol", json=other).status_code == 403

    @pytest.mark.parametrize("scopes", [(), (Scope.READ, Scope.SEARCHES_WRITE)], ids=["signed out", "no scope"])
    def test_others_are_told_the_command_and_get_no_code(
        self, site: TestClient, own: Context, scopes: tuple[Scope, ...]
    ) -> None:
        if scopes:
            with own.database.write() as session:
                site.cookies.set(TOKEN_COOKIE, mint_user_token(session, own.hasher, name="ada", scopes=scopes))
        page = site.get("/enrol").text
        assert "kerf enrol-code" in text_of(page)
        assert [tag for name, tag in tags_of(page) if name == "form" and tag["action"] == "/enrol"] == []
        assert site.post("/enrol", headers=OWN).status_code == 403

    def test_an_address_of_this_machine_alone_is_no_address_for_a_phone(self, site: TestClient) -> None:
        assert "an address of this machine alone" in text_of(site.get("/enrol").text)
