"""VERIFYING: every exported network runs whole on each device: outputs against torch, latency as measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from device_agent.contracts import MeasurementFailure, NetworkTask, Verdict
from device_agent.synthesis import synthesize_input
from search.domain.objective import LatencyOverDevices
from search.export import FORMAT_FILES
from search.latency.drift import at_usual_speed
from search.latency.fleet import over_devices
from server.latency.source import SqlLatencySource
from server.searches.repository import CandidateRecord, set_candidate_result
from server.states import JobStage
from server.worker.latencies import Profile
from server.worker.measuring import Order, Outcome, measure
from server.worker.networks import search_format
from server.worker.run import SearchRun
from server.worker.stages.preparing import Prepared
from server.worker.stages.searching import Front
from server.worker.stages.training import load_trained

STAGE = JobStage.VERIFYING

#: Inputs on which the outputs are compared: enough to hit saturated and unsaturated activations everywhere.
NUM_OUTPUTS = 4

#: Verdicts from the best to the worst.
_SEVERITY = (Verdict.TRUSTED.value, Verdict.NOISY.value, Verdict.REJECTED.value)


def verify(run: SearchRun, prepared: Prepared, profile: Profile, front: Front) -> None:
    """Measure the exported file of each selected candidate on every device, all at the same time, and store what came
    out, failures included.
    """
    run.enter(STAGE)
    missing = [c for c in front.selected if STAGE.value not in c.results]
    if not missing:
        return
    tasks = [_task(run, prepared, candidate) for candidate in missing]
    orders = [Order(device_id=d.device_id, tasks=tasks, source=d.table.source) for d in profile.devices]
    measured = measure(run, STAGE, orders, "whole networks")
    for candidate, *outcomes in zip(missing, *measured, strict=True):
        by_device = {
            device.device_id: _judged(run, prepared, candidate, device.summary.usual_references, *outcome)
            for device, outcome in zip(profile.devices, outcomes, strict=True)
        }
        result = joined(by_device, run.device_names, profile.over)
        with run.database.write() as session:
            set_candidate_result(session, run.claim, candidate.candidate_id, STAGE.value, result)


def joined(
    by_device: Mapping[str, dict[str, Any]], names: Mapping[str, str], over: LatencyOverDevices
) -> dict[str, Any]:
    """What was found on the devices as one result: that of the only device, or latencies over the devices, the worst
    verdict and the largest error, with each device's own result in "devices".

    Where a device failed there is no latency over all of them, but the reasons with the devices' names.
    """
    found = list(by_device.values())
    if len(found) == 1:
        return found[0]
    own = {"devices": dict(by_device)}
    failures = [f"{names[device]!r}: {r['failure']}" for device, r in by_device.items() if "failure" in r]
    if failures:
        return {"failure": "; ".join(failures), **own}
    intervals = [r["latency_ci95_ms"] for r in found]
    return {
        "measured_latency_ms": float(over_devices([r["measured_latency_ms"] for r in found], over)),
        "uncorrected_latency_ms": float(over_devices([r["uncorrected_latency_ms"] for r in found], over)),
        # All three ways grow with each device's latency, so the ends of the intervals give those of the whole.
        "latency_ci95_ms": None
        if None in intervals
        else [float(end) for end in over_devices(np.array(intervals).T, over)],
        "verdict": max((r["verdict"] for r in found), key=_SEVERITY.index),
        "verdict_reasons": list(dict.fromkeys(reason for r in found for reason in r["verdict_reasons"])),
        "output_max_abs_error": max(r["output_max_abs_error"] for r in found),
        **own,
    }


def _task(run: SearchRun, prepared: Prepared, candidate: CandidateRecord) -> NetworkTask:
    form = search_format(run.config.measuring.networks)
    digest = candidate.results[JobStage.EXPORTING.value]["files"][FORMAT_FILES[form]]
    return NetworkTask(
        artifact_sha256=digest,
        artifact_bytes=run.artifact_path(digest).stat().st_size,
        format=form,
        input_shape=_input_shape(prepared, candidate),
        setup=run.config.measuring.networks,
        num_outputs=NUM_OUTPUTS,
    )


def _judged(
    run: SearchRun,
    prepared: Prepared,
    candidate: CandidateRecord,
    usual: Mapping[str, float],
    task_id: str,
    outcome: Outcome,
) -> dict[str, Any]:
    if isinstance(outcome, MeasurementFailure):
        return {"failure": f"{outcome.reason.value}: {outcome.detail}"}
    measurement = SqlLatencySource(run.database).measurement(task_id)
    statistics = at_usual_speed(outcome.statistics, usual)
    interval = (
        None
        if statistics.ci95_low_ns is None or statistics.ci95_high_ns is None
        else [statistics.ci95_low_ns / 1e6, statistics.ci95_high_ns / 1e6]
    )
    return {
        "task_id": task_id,
        "measured_latency_ms": statistics.median_ns / 1e6,
        "uncorrected_latency_ms": outcome.median_ns / 1e6,
        "latency_ci95_ms": interval,
        "verdict": outcome.verdict.value,
        "verdict_reasons": [r.value for r in outcome.reasons],
        "output_max_abs_error": _output_max_abs_error(run, prepared, candidate, measurement.outputs),
        "memory_bytes": outcome.memory_bytes,
    }


def _output_max_abs_error(
    run: SearchRun, prepared: Prepared, candidate: CandidateRecord, outputs: tuple[tuple[float, ...], ...]
) -> float:
    """The largest difference between the device's outputs and those of the trained torch network."""
    model = load_trained(run, prepared, candidate).model.eval()
    shape = _input_shape(prepared, candidate)
    inputs: NDArray[np.float32] = np.stack([synthesize_input(shape, seed) for seed in range(len(outputs))])
    with torch.no_grad():
        expected = model(torch.from_numpy(inputs)).flatten(1).numpy()
    return float(np.abs(expected - np.asarray(outputs)).max())


def _input_shape(prepared: Prepared, candidate: CandidateRecord) -> tuple[int, int, int]:
    channels, height, width = prepared.spec.plan.input_shape
    side = prepared.space.decode(candidate.genome).resolution
    return (channels, height, width) if side is None else (channels, side, side)
