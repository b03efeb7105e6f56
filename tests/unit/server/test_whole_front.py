"""The whole front measured at the end: what was selected as exported, the rest untrained."""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version
from typing import Any

import pytest
from sqlalchemy import func, select

from search.domain.config import SearchConfig
from search.errors import LatencyModelError
from server.latency import card
from server.models import MeasurementRow, SearchTaskRow
from server.searches.repository import FRONT_LAYERS
from server.states import JobStage
from tests.unit.server.server_lab import ServerLab
from tests.unit.server.worker_lab import Kill, WorkerLab, quick_search


def whole_front(name: str, **changes: Any) -> SearchConfig:
    config = quick_search(name, **changes)
    return dataclasses.replace(config, measuring=dataclasses.replace(config.measuring, whole_front=True))


def no_model(*_: Any, **__: Any) -> None:
    raise LatencyModelError("not in this test")


def rest_of(worker: WorkerLab, search_id: str) -> dict[str, dict[str, Any]]:
    """What VERIFYING found of the candidates on the front that were not selected."""
    front = worker.get(f"/v1/searches/{search_id}/front")["items"]
    assert any(candidate["selected"] for candidate in front)
    return {c["candidate_id"]: c["results"].get("verifying") for c in front if not c["selected"]}


def test_the_rest_of_the_front_is_measured_untrained_through_deaths_of_the_worker(
    sqlite_lab: ServerLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = WorkerLab(sqlite_lab)
    plain = worker.done(quick_search("selected alone"))
    assert set(rest_of(worker, plain).values()) == {None}
    assert worker.get(f"/v1/searches/{plain}/result")["measured_untrained"] == []
    killed = worker.done(
        whole_front("whole"),
        Kill(stage=JobStage.VERIFYING, note="the rest of the front is packed", steps=2),
        Kill(stage=JobStage.VERIFYING, note="the rest of the front", steps=4),
    )
    found = rest_of(worker, killed)
    assert set(found) == set(rest_of(worker, plain))
    assert len(found) >= 2
    for result in found.values():
        assert result["untrained"] is True
        assert result["output_max_abs_error"] is None
        assert result["verdict"] == "trusted"
    # What was selected is measured as it is without the rest.
    assert worker.outcome(killed) == worker.outcome(plain)
    points = worker.get(f"/v1/searches/{killed}/result")["measured_untrained"]
    assert {p["candidate_id"]: p["measured_latency_ms"] for p in points} == {
        name: result["measured_latency_ms"] for name, result in found.items()
    }
    measured = [p["measured_latency_ms"] for p in points]
    assert measured == sorted(measured)
    for point in points:
        assert point["accuracy"] is None
        assert point["accuracy_estimate"] is not None
        assert point["files"] == {}
        assert point["measured_latency_ms"] == pytest.approx(point["predicted_latency_ms"], rel=0.1)
    # The card of the series judges its predictions by these networks, too; its model takes seconds and is not needed.
    monkeypatch.setattr(card, "cross_validate", no_model)
    cards = []
    while (series_id := card.refresh_card(sqlite_lab.database, quiet_s=-1.0)) is not None:
        with sqlite_lab.database.read() as session:
            cards.append(card.stored_card(session, series_id))
    names = {point.candidate_id for stored in cards if stored for point in stored[0].network_points}
    assert set(found) < names


def test_the_rest_of_the_front_on_two_devices(sqlite_lab: ServerLab) -> None:
    worker = WorkerLab(sqlite_lab, ("phone", "board"))
    search_id = worker.done(whole_front("two devices", devices=("phone", "board")))
    for result in rest_of(worker, search_id).values():
        own = [found["measured_latency_ms"] for found in result["devices"].values()]
        assert len(own) == 2
        assert result["measured_latency_ms"] == max(own)
        assert result["untrained"] is True
        assert result["output_max_abs_error"] is None
    points = worker.get(f"/v1/searches/{search_id}/result")["measured_untrained"]
    assert [len(point["devices"]) for point in points] == [2] * len(points)
    assert "NaN" not in json.dumps(points)
    assert [point["layers"] for point in points] == [[] for _ in rest_of(worker, search_id)]
    the_result_tells_layers_growth_and_provenance(worker, search_id)


def the_result_tells_layers_growth_and_provenance(worker: WorkerLab, search_id: str) -> None:
    result = worker.get(f"/v1/searches/{search_id}/result")
    stored = json.loads(worker.document(search_id, FRONT_LAYERS))
    front = {c["candidate_id"] for c in worker.get(f"/v1/searches/{search_id}/front")["items"]}
    assert set(stored) == front
    for point in result["front"]:
        assert point["layers"] == stored[point["candidate_id"]]
        assert sum(layer["macs"] for layer in point["layers"]) == point["macs"]
        for place, own in enumerate(point["devices"]):
            parts = sum(layer["latency_ms"][place] for layer in point["layers"])
            # The rest is the constant of the whole network.
            assert 0.5 * own["predicted_latency_ms"] < parts <= own["predicted_latency_ms"] * (1 + 1e-9)
        kept = {layer["name"]: layer["density"] for layer in point["layers"]}
        pruned = {name: pruning["density"] for name, pruning in point["decisions"]["pruning"].items()}
        assert pruned
        assert {name: kept[name] for name in pruned} == pruned
    history = result["search"]["history"]
    assert [found["generation"] for found in history] == [1, 2]
    assert history[-1]["evaluations"] == result["search"]["evaluations"]
    assert history[-1]["hypervolume"] >= history[0]["hypervolume"] > 0
    assert result["search"]["versions"]["torch"] == version("torch")
    with worker.lab.database.read() as session:
        used = session.execute(
            select(func.count())
            .select_from(MeasurementRow)
            .join(SearchTaskRow, SearchTaskRow.task_id == MeasurementRow.task_id)
            .where(SearchTaskRow.search_id == search_id)
        ).scalar_one()
    told = [series for device in result["devices"] for series in device["series"]]
    assert sum(sum(series["verdicts"].values()) for series in told) == used
    assert len({series["id"] for series in told}) == len(told) >= 2
