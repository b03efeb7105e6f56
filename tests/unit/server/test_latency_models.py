"""Latency models of series: fitted from stored rows, asked by REST, and never mixed silently."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from device_agent.contracts import KernelTask, Op, encode
from search.latency.model.storage import load_model
from server.columns import now_s
from server.database import Database
from server.latency import kernel_models
from server.latency.kernel_models import refresh_model, request_model
from server.latency.series import get_series
from server.models import LatencyModelRow, SearchRow, SeriesRow
from server.states import JobState
from server.worker import loop
from tests.unit.server.server_lab import LabAgent, ServerLab, kernel_task, measurement, report_of


def measured(lab: ServerLab, agent: LabAgent, channels: range, **changes: Any) -> str:
    """Kernels that take 1000 ns for each input channel, and 500 ns beside; returns their series."""
    search = lab.search(agent.device_id)
    factor = changes.pop("factor", 1.0)
    lab.source.request(agent.device_id, [kernel_task(c) for c in channels], search)
    for lease in lab.lease(agent, 50):
        assert isinstance(lease.task, KernelTask)
        taken = measurement(factor * (1000.0 * lease.task.kernel.in_channels + 500.0), **changes)
        lab.report(agent, report_of(lease, taken))
    (series,) = lab.get(f"/v1/latency-series?device={agent.device_id}").json()["items"]
    return str(series["id"])


def model_of(lab: ServerLab, series_id: str) -> dict[str, Any]:
    response = lab.get(f"/v1/latency-series/{series_id}/model")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def predict(lab: ServerLab, series_id: str, channels: list[int], **changes: Any) -> Any:
    kernels = [encode(replace(kernel_task(c).kernel, seed=7, **changes)) for c in channels]
    return lab.post("/v1/latency:predict", {"series_id": series_id, "kernels": kernels})


def start_from(lab: ServerLab, series_id: str, start: str | None) -> Any:
    return lab.request("PUT", f"/v1/latency-series/{series_id}/model", content=json.dumps({"from_series_id": start}))


def test_fitted_from_the_database_and_anew_when_the_series_grows(lab: ServerLab) -> None:
    agent = lab.agent()
    series = measured(lab, agent, range(4, 24, 2))
    before = model_of(lab, series)
    assert (before["is_fitted"], before["is_stale"], before["fitted_at"]) == (False, True, None)
    refused = predict(lab, series, [5])
    assert (refused.status_code, refused.json()["code"]) == (409, "no_latency_model")
    assert refresh_model(lab.database) is None  # it was measured just now: it may be growing
    assert refresh_model(lab.database, quiet_s=0.0) == series
    assert refresh_model(lab.database, quiet_s=0.0) is None
    found = model_of(lab, series)
    assert (found["is_fitted"], found["is_stale"], found["num_kernels"], found["from_series"]) == (
        True,
        False,
        10,
        None,
    )

    answer = predict(lab, series, [9, 10]).json()
    unknown, known = answer["latencies"]
    assert answer["model"] == found
    assert (unknown["predicted"], known["predicted"]) == (True, False)
    assert known["latency_ns"] == pytest.approx(10500.0)
    assert unknown["latency_ns"] == pytest.approx(9500.0, rel=0.1)
    assert unknown["ci95_low_ns"] < unknown["latency_ns"] < unknown["ci95_high_ns"]
    assert unknown["std_ns"] > 0
    # Predictions are no measurements: the series has as many as before.
    assert model_of(lab, series)["series"]["num_measurements"] == 10

    measured(lab, agent, range(9, 10))
    assert model_of(lab, series)["is_stale"] is True
    assert predict(lab, series, [9]).json()["latencies"][0]["predicted"] is True
    assert refresh_model(lab.database, quiet_s=0.0) == series
    assert predict(lab, series, [9]).json()["latencies"][0]["predicted"] is False


def test_another_kind_of_code_is_marked_as_extrapolated(sqlite_lab: ServerLab) -> None:
    lab = sqlite_lab
    series = measured(lab, lab.agent(), range(4, 16))
    refresh_model(lab.database, quiet_s=0.0)
    (same,) = predict(lab, series, [30]).json()["latencies"]
    (other,) = predict(lab, series, [16], op=Op.MAX_POOL).json()["latencies"]
    assert (same["predicted"], same["extrapolated"]) == (True, False)
    assert (other["predicted"], other["extrapolated"]) == (True, True)


def test_the_export_is_the_model_itself(sqlite_lab: ServerLab) -> None:
    lab = sqlite_lab
    series = measured(lab, lab.agent(), range(4, 16))
    assert lab.get(f"/v1/latency-series/{series}/model:export").status_code == 409
    refresh_model(lab.database, quiet_s=0.0)
    response = lab.get(f"/v1/latency-series/{series}/model:export")
    assert response.headers["content-type"] == "application/json"
    assert json.loads(response.text)["version"] == model_of(lab, series)["format_version"]
    kernel = kernel_task(30).kernel
    (answered,) = predict(lab, series, [30]).json()["latencies"]
    assert load_model(response.content).predict(kernel).latency_ns == answered["latency_ns"]


def test_a_model_of_another_version_is_not_read_but_fitted_anew(sqlite_lab: ServerLab) -> None:
    lab = sqlite_lab
    series = measured(lab, lab.agent(), range(4, 16))
    refresh_model(lab.database, quiet_s=0.0)
    with lab.database.write() as session:
        session.execute(update(LatencyModelRow).values(format_version=0, model="something else"))
    found = model_of(lab, series)
    assert (found["is_fitted"], found["is_stale"]) == (False, True)
    assert predict(lab, series, [30]).status_code == 409
    assert refresh_model(lab.database, quiet_s=0.0) == series
    assert predict(lab, series, [30]).status_code == 200


def test_starts_from_another_series_where_asked_and_says_so(lab: ServerLab) -> None:
    old = measured(lab, lab.agent(device_name="old"), range(4, 40))
    new = measured(lab, lab.agent(device_name="new"), range(4, 14, 2), factor=3.0)
    for _ in range(2):
        refresh_model(lab.database, quiet_s=0.0)
    alone = predict(lab, new, [38]).json()["latencies"][0]["latency_ns"]
    assert model_of(lab, new)["from_series"] is None
    response = start_from(lab, new, old)
    assert response.status_code == 200, response.text
    asked = response.json()
    assert (asked["from_series"]["id"], asked["is_stale"], asked["is_fitted"]) == (old, True, True)
    # Until a worker came to it the model that is there answers.
    assert predict(lab, new, [38]).json()["latencies"][0]["latency_ns"] == alone
    assert refresh_model(lab.database, quiet_s=0.0) == new
    helped = predict(lab, new, [38]).json()
    assert helped["model"]["from_series"]["id"] == old
    assert helped["model"]["is_stale"] is False
    assert helped["latencies"][0]["latency_ns"] == pytest.approx(3 * 38500.0, rel=0.03)
    # Growing keeps the start; asking for none drops it.
    assert start_from(lab, new, None).json()["from_series"] is None
    refresh_model(lab.database, quiet_s=0.0)
    assert predict(lab, new, [38]).json()["latencies"][0]["latency_ns"] == alone


def test_what_cannot_be_fitted_says_why(sqlite_lab: ServerLab) -> None:
    lab = sqlite_lab
    few = measured(lab, lab.agent(device_name="few"), range(4, 7))
    enough = measured(lab, lab.agent(device_name="enough"), range(4, 12))
    with lab.database.write() as session:
        request_model(session, enough, few)
    while refresh_model(lab.database, quiet_s=0.0):
        pass
    assert "needs at least" in model_of(lab, few)["without_model"]
    assert "series to start from" in model_of(lab, enough)["without_model"]
    refused = predict(lab, few, [5]).json()
    assert "needs at least" in refused["detail"]
    for start, status in ((few, 422), ("s_none", 404)):
        assert start_from(lab, few, start).status_code == status
    assert lab.post("/v1/latency:predict", {"series_id": enough, "kernels": []}).status_code == 422
    assert predict(lab, "s_none", [5]).status_code == 404


def test_a_start_that_was_asked_for_meanwhile_is_not_overwritten(
    lab: ServerLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = measured(lab, lab.agent(device_name="old"), range(4, 20))
    new = measured(lab, lab.agent(device_name="new"), range(4, 12))
    fitted = kernel_models.fitted

    def slow(*arguments: Any) -> Any:
        _ask(lab.database, new, old)
        return fitted(*arguments)

    monkeypatch.setattr(kernel_models, "fitted", slow)
    assert refresh_model(lab.database, quiet_s=0.0) == new
    monkeypatch.undo()
    found = model_of(lab, new)
    assert (found["from_series"]["id"], found["is_fitted"]) == (old, False)
    assert refresh_model(lab.database, quiet_s=0.0) == new
    assert model_of(lab, new)["is_fitted"] is True


def test_an_idle_worker_fits_it_and_leaves_what_fails_alone_for_a_while(
    sqlite_lab: ServerLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = sqlite_lab
    series = measured(lab, lab.agent(), range(4, 12))
    with lab.database.write() as session:
        session.execute(update(SeriesRow).values(last_at=SeriesRow.last_at - 60.0))
        # The worker has no search to run.
        session.execute(update(SearchRow).values(state=JobState.COMPLETED, finished_at=now_s()))
    stop = threading.Event()
    worker = threading.Thread(target=loop.run_worker, args=(lab.settings, stop))
    worker.start()
    try:
        # Returns at once where it is fitted; a worker that never does fails by the assertion.
        for _ in range(600):
            if model_of(lab, series)["is_fitted"]:
                break
            stop.wait(0.1)
    finally:
        stop.set()
        worker.join()
    assert model_of(lab, series)["is_fitted"]

    def broken(database: Database) -> str | None:
        raise RuntimeError("a defect")

    monkeypatch.setitem(loop._REFRESHED, "latency_model", broken)
    after = loop._refresh("latency_model", lab.database, 0.0)
    assert after > time.monotonic() + loop.REFRESH_PAUSE_S / 2
    assert loop._refresh("latency_model", lab.database, after) == after


def _ask(database: Database, series_id: str, start: str) -> None:
    with database.write() as session:
        get_series(session, series_id)
        request_model(session, series_id, start)
