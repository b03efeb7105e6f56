"""What methods promise, held through the service: bounds judged together, candidates that fail, several devices."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from search.accuracy import one_shot
from search.domain.config import Method, MethodConfig, SearchConfig, SpaceConfig, WeightsConfig
from search.domain.objective import Constraint, LatencyOverDevices, Metric, Objective
from search.errors import InfeasibleBudget
from server.searches.repository import LATENCY_TABLE, SEARCHED_FRONT
from tests.unit.server.server_lab import ServerLab
from tests.unit.server.worker_lab import Kill, WorkerLab, quick_search

#: Of small_cnn, unpruned.
MACS = 1_779_328


def thinly_pruned(**bounds: float) -> SearchConfig:
    """AACP on densities that save multiply-accumulates but no time: the loads of sparse kernels cost more than a tenth
    of their arithmetic.
    """
    return quick_search(
        "bounds",
        space=SpaceConfig(weights=WeightsConfig(densities=(0.9, 1.0), stem_min_density=0.9)),
        method=MethodConfig(name=Method.AACP, population=6, generations=2),
        objectives=(Objective(metric=Metric.ERROR),),
        constraints=tuple(Constraint(metric=Metric(name), max=value) for name, value in bounds.items()),
    )


def refused(worker: WorkerLab, config: SearchConfig) -> tuple[str, str]:
    search_id = worker.submit(config)
    with pytest.raises(InfeasibleBudget):
        worker.run(search_id)
    assert worker.get(f"/v1/searches/{search_id}/candidates")["items"] == []
    return search_id, str(worker.get(f"/v1/searches/{search_id}")["error"])


def test_bounds_on_counts_that_nothing_meets_are_all_named_before_anything_is_measured(sqlite_lab: ServerLab) -> None:
    worker = WorkerLab(sqlite_lab)
    search_id, text = refused(worker, thinly_pruned(macs=0.5 * MACS, parameters=1000, model_bytes=1000, latency_ms=1.0))
    for bound in ("macs <= 889664", "parameters <= 1000", "model_bytes <= 1000"):
        assert f"{bound}: the smallest found in this space is " in text
    assert worker.get(f"/v1/searches/{search_id}")["stage"] == "preparing"


def test_bounds_on_counts_and_latency_that_exclude_each_other_are_refused_before_anything_is_searched(
    sqlite_lab: ServerLab,
) -> None:
    worker = WorkerLab(sqlite_lab)
    free = worker.done(thinly_pruned(latency_ms=1000.0), Kill(steps=1))
    result = worker.get(f"/v1/searches/{free}/result")
    baseline = result["baseline"]
    # Where only time counts, nothing of this is tried, and it is told once, whoever takes the search over.
    counts = result["search"]["excluded_choices"]
    assert counts["excluded"] == counts["pruned"] > 0
    text = f"{counts['pruned']} of {counts['pruned']} prunings of layers, each shape counted by itself, are not tried"
    assert sum(message.startswith(text) for message in worker.messages(free)) == 1
    assert result["search"]["evaluations"] == 1
    assert [point["macs"] for point in result["front"]] == [MACS]
    dense_ms = baseline["latency_ms"]["native_dense"]
    bounds = {"macs": 0.93 * MACS, "parameters": baseline["parameters"], "model_bytes": baseline["parameters"] * 4}
    search_id, text = refused(worker, thinly_pruned(**bounds, latency_ms=1.001 * dense_ms))
    assert text.startswith("each bound can be met, but not all together: macs <= ")
    assert f"latency_ms <= {1.001 * dense_ms:g} (the smallest with the others kept is " in text
    assert worker.get(f"/v1/searches/{search_id}")["stage"] == "profiling"
    # With the smallest value that the text names, there is a network.
    smallest_ms = float(text.split("latency_ms <= ")[1].split(" is ")[1].split(")")[0])
    found = worker.done(thinly_pruned(**bounds, latency_ms=1.001 * smallest_ms))
    result = worker.get(f"/v1/searches/{found}/result")
    assert result["search"]["excluded_choices"] is None, "sparser layers have fewer multiply-accumulates"
    (point,) = result["front"]
    assert point["macs"] <= bounds["macs"]
    assert dense_ms < point["predicted_latency_ms"] <= 1.001 * smallest_ms


def test_a_candidate_whose_estimate_fails_is_survived_and_shown(
    sqlite_lab: ServerLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = WorkerLab(sqlite_lab)
    apply, calls = one_shot.apply_decisions, []

    def broken(*arguments: Any) -> Any:
        calls.append(arguments)
        # The second of the first generation, and the first of the four that are judged again.
        if len(calls) in (2, 13):
            raise RuntimeError("the estimate diverged")
        return apply(*arguments)

    monkeypatch.setattr(one_shot, "apply_decisions", broken)
    config = quick_search("failing")
    config = dataclasses.replace(config, accuracy=dataclasses.replace(config.accuracy, reevaluate_top=4))
    search_id = worker.done(config)
    assert len(calls) == 12 + 4
    candidates = worker.get(f"/v1/searches/{search_id}/candidates")["items"]
    failed = [c for c in candidates if c["failure"]]
    assert len(candidates) == 12
    assert {c["failure"] for c in failed} == {"RuntimeError: the estimate diverged"}
    assert len(failed) == 2
    for candidate in failed:
        assert not candidate["on_front"]
        assert not candidate["selected"]
        text = f"candidate {candidate['candidate_id'][:10]} could not be evaluated: RuntimeError: the estimate diverged"
        assert worker.messages(search_id).count(text) == 1
    assert worker.get(f"/v1/searches/{search_id}/result")["front"]


def test_other_methods_on_two_devices(sqlite_lab: ServerLab) -> None:
    worker = WorkerLab(sqlite_lab, ("phone", "board"))
    aacp = quick_search(
        "aacp",
        devices=("phone", "board"),
        method=MethodConfig(name=Method.AACP, population=6, generations=2),
    )
    free = worker.done(aacp)
    points = worker.outcome(free)[1]
    bound_ms = 1.2 * min(at["predicted_latency_ms"] for p in points for at in p["devices"][1:])
    on_board = Constraint(metric=Metric.LATENCY_MS, max=bound_ms, device="board")
    for config in (
        dataclasses.replace(aacp, objectives=(Objective(metric=Metric.ERROR),), constraints=(on_board,)),
        dataclasses.replace(
            aacp,
            method=MethodConfig(name=Method.EXACT, population=6, generations=2),
            latency_over_devices=LatencyOverDevices.MEAN,
            constraints=(on_board,),
        ),
    ):
        _, front = worker.outcome(worker.done(dataclasses.replace(config, latency_from=free)))
        for point in front:
            own = [at["predicted_latency_ms"] for at in point["devices"]]
            assert own[1] <= bound_ms
            is_mean = config.latency_over_devices is LatencyOverDevices.MEAN
            assert point["predicted_latency_ms"] == pytest.approx(sum(own) / 2 if is_mean else max(own))
            assert point["measured_latency_ms"] == pytest.approx(point["predicted_latency_ms"], rel=0.1)


def test_one_device_in_a_list_is_that_device(sqlite_lab: ServerLab) -> None:
    worker = WorkerLab(sqlite_lab, ("phone", "board"))
    alone, listed = (
        worker.done(quick_search("alone", **where)) for where in ({"device": "board"}, {"devices": ("board",)})
    )
    for name in (SEARCHED_FRONT, LATENCY_TABLE):
        assert worker.document(alone, name) == worker.document(listed, name)
    results = [worker.get(f"/v1/searches/{search_id}/result") for search_id in (alone, listed)]
    assert results[0]["front"] == results[1]["front"]
    assert json.dumps(results[0]["baseline"]) == json.dumps(results[1]["baseline"])
