"""Two servers with one database, as behind one address: what one is told, the other knows, and they share no memory."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from server.app import create_app
from server.settings import Settings
from tests.unit.server.server_lab import ServerLab, measurement, report_of

Pair = tuple[ServerLab, ServerLab]


@pytest.fixture
def servers(app: FastAPI, settings: Settings, tmp_path: Path) -> Iterator[Pair]:
    """Each on a host of its own: data folders differ; database, artifacts and the key of tokens do not."""
    (tmp_path / "objects").mkdir()
    first = dataclasses.replace(
        settings, database_url=settings.url, token_key="ab" * 32, artifacts_url=f"file://{tmp_path / 'objects'}"
    )
    (tmp_path / "host").mkdir()
    second = dataclasses.replace(first, data_dir=tmp_path / "host")
    app.state.settings = first
    with TestClient(app) as one, TestClient(create_app(second)) as other:
        labs = ServerLab(one, first), ServerLab(other, second)
        yield labs
        for lab in labs:
            lab.close()


def test_one_agent_is_served_by_both(servers: Pair) -> None:
    here, there = servers
    agent = here.agent()
    task_id, other_id = here.tasks(agent, 2)
    (lease,) = there.lease(agent)
    assert lease.task_id == task_id
    # The same lease is given again, whoever is asked: nothing is lent twice.
    assert [again.lease_id for again in here.lease(agent, 5)] == [lease.lease_id]
    assert here.post(f"/v1/leases/{lease.lease_id}:renew", {"attempt": lease.attempt}, agent.token).status_code == 200
    report = report_of(lease, measurement())
    assert there.report(agent, report) == ["accepted"]
    assert here.report(agent, report) == ["duplicate"]
    assert [lease.task_id for lease in here.lease(agent, 5)] == [other_id]


def test_an_agent_that_waits_at_one_feels_work_that_comes_at_the_other(servers: Pair) -> None:
    here, there = servers
    agent = here.agent()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(here.lease, agent, 1, 30.0)
        (task_id,) = there.tasks(agent)
        assert [lease.task_id for lease in waiting.result(timeout=30)] == [task_id]


def test_a_code_is_used_once_by_both_together(servers: Pair) -> None:
    here, there = servers
    code = here.code()
    assert there.post("/v1/agents:enrol", here.enrolment(code)).status_code == 200
    assert here.post("/v1/agents:enrol", here.enrolment(code)).status_code == 403


def test_a_session_of_the_dashboard_goes_from_one_to_the_other_and_ends_on_both(servers: Pair) -> None:
    here, there = servers
    token = here.user_token()
    cookie = {"Cookie": f"kerf_token={token}"}
    assert here.client.get("/v1/devices", headers=cookie).status_code == 200
    assert there.client.get("/v1/devices", headers=cookie).status_code == 200
    tokens = here.get("/v1/tokens?limit=500", here.admin).json()["items"]
    token_id = tokens[-1]["id"]
    assert there.post(f"/v1/tokens/{token_id}:revoke", None, there.admin).status_code == 200
    assert here.client.get("/v1/devices", headers=cookie).status_code == 401
    assert there.client.get("/v1/devices", headers=cookie).status_code == 401


def test_events_of_a_search_are_the_same_from_both(servers: Pair) -> None:
    here, there = servers
    search_id = here.search(here.agent().device_id)
    assert there.post(f"/v1/searches/{search_id}:cancel").status_code == 200
    streams = [lab.get(f"/v1/searches/{search_id}/events").text for lab in servers]
    assert "event: end" in streams[0]
    assert streams[0] == streams[1]


def test_artifacts_are_those_of_both(servers: Pair) -> None:
    here, there = servers
    data = b"weights"
    url = f"/v1/artifacts/sha256/{hashlib.sha256(data).hexdigest()}"
    assert here.request("PUT", url, content=data).status_code == 201
    assert there.get(url).content == data
