"""A search that takes its worker too long fails and says so."""

from __future__ import annotations

import dataclasses
import math
import threading
from types import SimpleNamespace

import pytest

from device_agent.contracts import ContractError
from server.artifacts.store import ArtifactStore
from server.searches import repository
from server.settings import Settings
from server.worker.run import SearchFailed, SearchRun
from tests.unit.server.server_lab import ServerLab
from tests.unit.server.worker_lab import WorkerLab, quick_search


class Clock(threading.Event):
    """Passes while somebody waits, and when told."""

    now_s = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        self.now_s += timeout or 0.0
        return self.is_set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("server.worker.run.time", SimpleNamespace(monotonic=lambda: found.now_s))
    return found


def test_work_counts_and_waiting_for_devices_does_not(sqlite_lab: ServerLab, clock: Clock) -> None:
    worker = WorkerLab(sqlite_lab)
    worker.submit(quick_search("long"))
    with sqlite_lab.database.write() as session:
        claim = repository.claim_runnable_job(session, worker="lab", stale_s=60.0)
    assert claim is not None
    run = SearchRun(
        database=sqlite_lab.database,
        settings=dataclasses.replace(sqlite_lab.settings, max_work_s=100.0),
        store=ArtifactStore(sqlite_lab.settings.artifacts_dir),
        claim=claim,
        interrupt=clock,
        lost=threading.Event(),
        _began_s=clock.now_s,
    )
    run.wait(1000.0)
    clock.now_s += 99.0
    run.wait(1000.0)
    clock.now_s += 2.0
    with pytest.raises(SearchFailed, match=r"more than the 100 s of KERF_MAX_WORK_S"):
        run.check()
    unlimited = dataclasses.replace(run, settings=sqlite_lab.settings)
    clock.now_s += 1e9
    unlimited.check()


def test_a_search_beyond_the_limit_fails_with_the_reason(sqlite_lab: ServerLab) -> None:
    sqlite_lab.settings = dataclasses.replace(sqlite_lab.settings, max_work_s=1e-6)
    worker = WorkerLab(sqlite_lab)
    search_id = worker.submit(quick_search("long"))
    with pytest.raises(SearchFailed):
        worker.run(search_id)
    found = worker.get(f"/v1/searches/{search_id}")
    assert found["state"] == "failed"
    assert "KERF_MAX_WORK_S" in found["error"]


@pytest.mark.parametrize("limit_s", [-1.0, math.inf, math.nan])
def test_what_is_no_limit_is_refused(limit_s: float) -> None:
    with pytest.raises(ContractError, match="max_work_s"):
        Settings(max_work_s=limit_s)
