"""A database that is away, and a disk that is full: both pass, so neither ends a search or becomes a defect of ours."""

from __future__ import annotations

import errno
import hashlib
import io
import threading
from typing import Any

import pytest
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from search.domain.config import parse_config
from server.artifacts.store import Upload
from server.database import is_away, is_full
from server.logs import LossyStream
from server.searches.queries import insert_search
from server.searches.repository import JobClaim, complete_job
from server.states import JobState
from server.worker import loop
from tests.unit.server.server_lab import ServerLab, search_config

CAUSE = Exception("of the driver")
FULL = OSError(errno.ENOSPC, "No space left on device")
LOCKED = OperationalError("UPDATE", {}, Exception("database is locked"))


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (LOCKED, True),
        (PoolTimeout("no connection for 30 s"), True),
        (DBAPIError("SELECT", {}, CAUSE, connection_invalidated=True), True),
        (InterfaceError("SELECT", {}, CAUSE), False),
        (IntegrityError("INSERT", {}, CAUSE), False),
        (DataError("INSERT", {}, CAUSE), False),
        (FULL, False),
    ],
)
def test_what_counts_as_away(error: Exception, away: bool) -> None:
    assert is_away(error) is away


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (FULL, True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.ENOENT, "No such file or directory"), False),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("shapes differ"), False),
    ],
)
def test_what_counts_as_full(error: Exception, full: bool) -> None:
    assert is_full(error) is full


def test_an_upload_on_a_full_disk_may_be_repeated(sqlite_lab: ServerLab, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"/v1/artifacts/sha256/{hashlib.sha256(b'weights').hexdigest()}"

    def write(upload: Upload, data: bytes) -> None:
        raise FULL

    with monkeypatch.context() as patched:
        patched.setattr(Upload, "write", write)
        response = sqlite_lab.request("PUT", url, content=b"weights")
    assert (response.status_code, response.json()["code"]) == (503, "disk_full")
    assert response.json()["retryable"] is True
    assert int(response.headers["retry-after"]) > 0
    assert sqlite_lab.request("PUT", url, content=b"weights").is_success


def test_a_log_on_a_full_disk_fails_nothing() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise FULL

        def flush(self) -> None:
            raise FULL

    stream = LossyStream(Full())
    assert stream.write("line") == 4
    stream.flush()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "UNAVAILABLE_INTERVAL_S", 0.01)
    monkeypatch.setattr(loop, "IDLE_INTERVAL_S", 0.01)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("error", [LOCKED, FULL, PoolTimeout("no connection")], ids=["locked", "full", "pool"])
def test_a_search_that_was_interrupted_is_taken_up_at_once(
    sqlite_lab: ServerLab, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    lab, stop = sqlite_lab, threading.Event()
    agent = lab.agent()
    config = search_config(device=agent.device_id)
    parse_config(config)
    with lab.database.write() as session:
        search_id = insert_search(session, name="s", device_id=agent.device_id, config=config, created_by="t").id
    claims: list[JobClaim] = []

    def run_stages(run: Any) -> None:
        claims.append(run.claim)
        if len(claims) == 1:
            raise error
        with lab.database.write() as session:
            complete_job(session, run.claim)
        stop.set()

    monkeypatch.setattr(loop, "run_stages", run_stages)
    worker = threading.Thread(target=loop.run_worker, args=(lab.settings, stop), daemon=True)
    worker.start()
    worker.join(20)
    assert [claim.epoch for claim in claims] == [1, 2]
    assert lab.get(f"/v1/searches/{search_id}").json()["state"] == JobState.COMPLETED.value
