"""Cards of series: worked out from stored rows of one series, made anew when it grows, and read by REST and pages."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from sqlalchemy import insert, update

from device_agent.contracts import KernelTask, NetworkFormat, NetworkTask
from server.columns import now_s
from server.latency.card import outdate_cards, refresh_card
from server.models import CandidateRow, DocumentRow, SearchRow
from server.searches.repository import RESULT
from server.states import JobState
from tests.unit.server.server_lab import SETUP, LabAgent, ServerLab, kernel_task, measurement, report_of

NETWORK_SETUP = replace(SETUP, processes=6)


def measured(lab: ServerLab, agent: LabAgent, search_id: str, channels: range, **changes: object) -> str:
    """Kernels that take 1000 ns for each input channel, and 100 ns beside; returns their series."""
    lab.source.request(agent.device_id, [kernel_task(c) for c in channels], search_id)
    for lease in lab.lease(agent, 50):
        assert isinstance(lease.task, KernelTask)
        taken = measurement(1000.0 * lease.task.kernel.in_channels + 100.0, **changes)  # type: ignore[arg-type]
        lab.report(agent, report_of(lease, replace(taken, duration_s=6.0)))
    return str(lab.get("/v1/latency-series?limit=1").json()["items"][0]["id"])


def verified(
    lab: ServerLab, agent: LabAgent, search_id: str, candidate_id: str, predicted_ms: float, **changes: object
):
    """A network that took 2 ms, and what the finished search says about it."""
    network = NetworkTask(
        artifact_sha256=candidate_id.ljust(64, "0"),
        artifact_bytes=10,
        format=NetworkFormat.PACKED,
        input_shape=(1, 8, 8),
        setup=NETWORK_SETUP,
    )
    (task_id,) = lab.source.request(agent.device_id, [network], search_id)
    # There is none to lend where another search had the network measured.
    for lease in lab.lease(agent):
        taken = measurement(2e6, **changes)  # type: ignore[arg-type]
        assert lab.report(agent, report_of(lease, taken)) == ["accepted"]
    figures = {
        "device_id": agent.device_id,
        "predicted_latency_ms": predicted_ms,
        "measured_latency_ms": 2.0,
        "verdict": "trusted",
    }
    with lab.database.write() as session:
        session.execute(
            insert(CandidateRow).values(
                search_id=search_id,
                candidate_id=candidate_id,
                genome=[1],
                metrics={},
                violation=0.0,
                generation=0,
                results={"verifying": {"task_id": task_id}},
            )
        )
    return {"candidate_id": candidate_id, "devices": [figures]}


def complete(lab: ServerLab, search_id: str, front: list[dict[str, object]]) -> None:
    with lab.database.write() as session:
        text = json.dumps({"front": front})
        session.execute(insert(DocumentRow).values(search_id=search_id, name=RESULT, sha256="", text=text))
        done = update(SearchRow).where(SearchRow.id == search_id)
        session.execute(done.values(state=JobState.COMPLETED, finished_at=now_s()))
        outdate_cards(session, search_id)


def card(lab: ServerLab, series_id: str) -> dict[str, object]:
    response = lab.get(f"/v1/latency-series/{series_id}/card")
    assert response.status_code == 200, response.text
    found: dict[str, object] = response.json()
    return found


def test_of_stored_rows_and_made_anew_when_the_series_grows(lab: ServerLab) -> None:
    agent = lab.agent()
    search = lab.search(agent.device_id)
    series = measured(lab, agent, search, range(4, 14))
    before = card(lab, series)
    assert (before["card"], before["computed_at"], before["is_stale"]) == (None, None, True)
    assert refresh_card(lab.database) is None  # it was measured just now: it may be growing
    assert refresh_card(lab.database, quiet_s=0.0) == series
    assert refresh_card(lab.database, quiet_s=0.0) is None
    answer = card(lab, series)
    assert answer["is_stale"] is False
    found = answer["card"]
    assert isinstance(found, dict)
    assert (found["num_kernels"], found["num_measurements"], found["verdicts"]) == (10, 10, {"trusted": 10})
    assert found["device_minutes"] == pytest.approx(1.0)
    # The kernels lie on a line, so that two neighbours tell the one between them exactly.
    assert found["table"]["count"] == 8
    assert found["table"]["rmspe"] == pytest.approx(0.0, abs=1e-9)
    assert found["model"]["count"] == len(found["kernel_points"]) == 10
    assert found["model"]["spearman"] > 0.9
    (family,) = found["families"]
    assert (family["kernels"], family["table"]["count"]) == (10, 8)
    measured(lab, agent, search, range(14, 16))
    assert card(lab, series)["is_stale"] is True
    assert refresh_card(lab.database, quiet_s=0.0) == series
    assert card(lab, series)["card"]["num_kernels"] == 12


def test_networks_of_searches_on_the_series_and_no_others(lab: ServerLab) -> None:
    agent = lab.agent()
    search = lab.search(agent.device_id)
    series = measured(lab, agent, search, range(4, 10))
    good = verified(lab, agent, search, "c1", 2.05)
    worse = verified(lab, agent, search, "c2", 2.5)
    # The runtime was upgraded before the last one was measured: that is no figure of this series.
    other = verified(lab, agent, search, "c3", 9.0, runtime_version="1.1")
    refresh_card(lab.database, quiet_s=0.0)
    assert card(lab, series)["card"]["networks"] is None
    complete(lab, search, [good, worse, other])
    assert refresh_card(lab.database, quiet_s=0.0) == series
    found = card(lab, series)["card"]
    assert [(p["candidate_id"], p["predicted_ms"], p["measured_ms"]) for p in found["network_points"]] == [
        ("c1", 2.05, 2.0),
        ("c2", 2.5, 2.0),
    ]
    assert (found["networks"]["within_5_percent"], found["networks"]["within_10_percent"]) == (0.5, 0.5)
    assert refresh_card(lab.database, quiet_s=0.0) is None


def test_a_network_of_two_searches_counts_once(lab: ServerLab) -> None:
    """It has one measurement. What counts is what the latest of its searches predicted."""
    agent = lab.agent()
    first, second = (lab.search(agent.device_id) for _ in range(2))
    series = measured(lab, agent, first, range(4, 10))
    measured(lab, agent, second, range(4, 10))
    complete(lab, first, [verified(lab, agent, first, "c1", 2.5), verified(lab, agent, first, "c2", 2.05)])
    complete(lab, second, [verified(lab, agent, second, "c1", 2.01)])
    assert refresh_card(lab.database, quiet_s=0.0) == series
    found = card(lab, series)["card"]
    points = {(p["search_id"], p["candidate_id"]): p["predicted_ms"] for p in found["network_points"]}
    assert points == {(second, "c1"): 2.01, (first, "c2"): 2.05}
    assert found["networks"]["count"] == 2


def test_too_few_kernels_say_so(lab: ServerLab) -> None:
    agent = lab.agent()
    series = measured(lab, agent, lab.search(agent.device_id), range(4, 6))
    refresh_card(lab.database, quiet_s=0.0)
    found = card(lab, series)["card"]
    assert (found["model"], found["table"]) == (None, None)
    assert "2 kernels were measured" in found["without_model"]


def test_unknown_series(lab: ServerLab) -> None:
    assert lab.get("/v1/latency-series/s_0/card").status_code == 404
