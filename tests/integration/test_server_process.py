"""The server as a process of its own: it stops at once although agents and watchers hang on to it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from device_agent.contracts import EnrolmentRequest, LeaseRequest, dumps
from server.accounts.service import ensure_local_admin_token
from server.database import Database, upgrade
from server.searches.queries import insert_search
from server.settings import Settings
from tests.unit.server.server_lab import PROFILE, RUNTIMES, new_key


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, Settings]]:
    settings = Settings(data_dir=tmp_path)
    upgrade(settings)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "server.cli", "server", "--port", str(port)],
        env={**os.environ, "KERF_DATA_DIR": str(tmp_path)},
        stderr=subprocess.PIPE,
    )
    url = f"http://127.0.0.1:{port}"
    while True:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                break
        except httpx.TransportError:
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
    yield process, url, settings
    process.kill()
    process.communicate()


def test_sigterm_ends_it_with_a_long_poll_and_an_event_stream_open(
    server: tuple[subprocess.Popen[bytes], str, Settings],
) -> None:
    process, url, settings = server
    database = Database.from_settings(settings)
    token = ensure_local_admin_token(database, settings)
    user = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60)
    code = user.post("/v1/enrolment-codes", json={}).json()["code"]
    request = EnrolmentRequest(
        code=code,
        agent_key=new_key(),
        device_name="board",
        profile=PROFILE,
        runtimes=RUNTIMES,
        agent_version="0.1.0",
    )
    agent = user.post("/v1/agents:enrol", content=dumps(request)).json()
    with database.write() as session:
        search_id = insert_search(session, name="s", device_id=agent["device_id"], config={}, created_by="test").id
    database.dispose()
    answers: dict[str, object] = {}
    polling = threading.Event()

    def poll() -> None:
        headers = {"Authorization": f"Bearer {agent['token']}"}
        polling.set()
        response = httpx.post(f"{url}/v1/leases", content=dumps(LeaseRequest(wait_s=60)), headers=headers, timeout=90)
        answers["lease"] = response.json()

    thread = threading.Thread(target=poll)
    thread.start()
    assert polling.wait(30)
    with user.stream("GET", f"/v1/searches/{search_id}/events") as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("event: state")
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        # The stream ends of itself, whole; the client would reconnect.
        assert list(lines)[-1] == ""
    thread.join(60)
    # uvicorn's own patience would be 5 s, after which it cuts connections and the poll gets no answer.
    assert answers["lease"] == {"leases": []}
    process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGTERM)
