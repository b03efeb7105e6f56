"""Several devices in the hands of a worker: asked at the same time, waited for by name, and joined in one result."""

from __future__ import annotations

from typing import Any

import pytest

from search.domain.objective import LatencyOverDevices
from server.searches.repository import device_document
from server.states import JobStage
from server.worker.latencies import ProfileSummary, summaries_from_json, summaries_to_json
from server.worker.measuring import Order, absent_devices, measure
from server.worker.run import RunInterrupted, SearchRun
from server.worker.stages.verifying import joined
from tests.unit.server.server_lab import LabAgent, ServerLab, kernel_task, measurement, report_of, search_config


def claimed_run(lab: ServerLab, agents: tuple[LabAgent, ...]) -> SearchRun:
    devices = [agent.device_id for agent in agents]
    assert lab.request("POST", "/v1/searches", json=search_config(devices=devices)).status_code == 201
    return lab.claimed_run()


def events(lab: ServerLab, run: SearchRun, kind: str) -> list[dict[str, Any]]:
    from server.searches.queries import events_after

    with lab.database.read() as session:
        return [event.data for event in events_after(session, run.search_id, 0, 1000) if event.kind == kind]


def test_all_devices_are_asked_before_any_is_waited_for(lab: ServerLab) -> None:
    agents = tuple(lab.agent(device_name=name) for name in ("phone", "pi4"))
    run = claimed_run(lab, agents)
    tasks = [kernel_task(1), kernel_task(2)]
    orders = [Order(device_id=agent.device_id, tasks=tasks) for agent in agents]
    run.interrupt.set()
    with pytest.raises(RunInterrupted):
        measure(run, JobStage.PROFILING, orders, "kernels")
    for position, agent in enumerate(agents):
        for lease in lab.lease(agent, count=2):
            assert lab.report(agent, report_of(lease, measurement(1000.0 * (position + 1)))) == ["accepted"]
    run.interrupt.clear()
    found = measure(run, JobStage.PROFILING, orders, "kernels")
    assert [[outcome.median_ns for _, outcome in own] for own in found] == [[1000.0] * 2, [2000.0] * 2]  # type: ignore[union-attr]
    progress = events(lab, run, "progress")[-1]
    assert (progress["done"], progress["total"]) == (4, 4)


def test_who_waits_is_told_which_device_it_is_for(lab: ServerLab) -> None:
    agents = tuple(lab.agent(device_name=name) for name in ("phone", "pi4"))
    run = claimed_run(lab, agents)
    lab.post(f"/v1/devices/{agents[1].device_id}:disable", token=lab.admin)
    assert list(absent_devices(run, [agent.device_id for agent in agents])) == ["pi4"]
    run.interrupt.set()
    with pytest.raises(RunInterrupted):
        measure(
            run, JobStage.PROFILING, [Order(device_id=a.device_id, tasks=[kernel_task()]) for a in agents], "kernels"
        )
    assert events(lab, run, "message")[-1]["text"] == (
        "waiting for the device 'pi4', which is disabled: enable it, or cancel the search"
    )
    assert events(lab, run, "progress")[-1]["note"] == "kernels; waits for 'pi4', which is disabled"


def test_progress_is_not_told_twice(lab: ServerLab) -> None:
    run = claimed_run(lab, (lab.agent(),))
    for done in (1, 3, 3, 3):
        run.progress(JobStage.PROFILING, done, 3)
    assert [event["done"] for event in events(lab, run, "progress")] == [1, 3]


def test_errors_name_devices_and_not_their_ids(lab: ServerLab) -> None:
    agents = tuple(lab.agent(device_name=name) for name in ("phone", "pi4"))
    run = claimed_run(lab, agents)
    assert run.named(f"latency_ms on {agents[1].device_id} <= 1") == "latency_ms on 'pi4' <= 1"


def found(latency_ms: float, verdict: str, *reasons: str) -> dict[str, Any]:
    return {
        "task_id": "t",
        "measured_latency_ms": latency_ms,
        "uncorrected_latency_ms": 2 * latency_ms,
        "latency_ci95_ms": [0.9 * latency_ms, 1.1 * latency_ms],
        "verdict": verdict,
        "verdict_reasons": list(reasons),
        "output_max_abs_error": 1e-6 * latency_ms,
    }


def test_results_of_devices_are_joined() -> None:
    own = {"d1": found(4.0, "noisy", "ci_too_wide"), "d2": found(1.0, "trusted")}
    names = {"d1": "phone", "d2": "pi4"}
    assert joined({"d1": own["d1"]}, names, LatencyOverDevices.MAX) == own["d1"]
    result = joined(own, names, LatencyOverDevices.GEOMETRIC_MEAN)
    assert result["measured_latency_ms"] == pytest.approx(2.0)
    assert result["uncorrected_latency_ms"] == pytest.approx(4.0)
    assert result["latency_ci95_ms"] == pytest.approx([1.8, 2.2])
    assert (result["verdict"], result["verdict_reasons"]) == ("noisy", ["ci_too_wide"])
    assert result["output_max_abs_error"] == pytest.approx(4e-6)
    assert result["devices"] == own
    failed = joined({**own, "d2": {"failure": "timeout: too slow"}}, names, LatencyOverDevices.MAX)
    assert failed["failure"] == "'pi4': timeout: too slow"
    assert "measured_latency_ms" not in failed
    assert failed["devices"]["d1"] == own["d1"]


def test_summaries_survive_json() -> None:
    summary = ProfileSummary(
        isa="neon", threads=1, kernels_reused=0, tflite_dense_ns=None, native_dense_ns=3.0, usual_references={}
    )
    several = {"d1": summary, "d2": summary}
    assert summaries_from_json(summaries_to_json(list(several.items())), ("d1", "d2")) == several
    assert "others" not in summaries_to_json([("d1", summary)])
    assert [device_document("x", d, ("d1", "d2")) for d in ("d1", "d2")] == ["x", "x.d2"]
