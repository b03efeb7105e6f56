"""VERIFYING: every exported network runs whole on each device: outputs against torch, latency as measured.

With `measuring.whole_front`, what is on the front but was not selected is measured, too: untrained, for its latency.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from server.searches.repository import CandidateRecord, load_candidates, set_candidate_result
from server.states import JobStage
from server.worker.latencies import Profile
from server.worker.measuring import Order, Outcome, measure
from server.worker.networks import search_format, search_task, untrained
from server.worker.run import SearchRun
from server.worker.stages.preparing import Prepared
from server.worker.stages.searching import Front
from server.worker.stages.training import load_trained

STAGE = JobStage.VERIFYING

#: Inputs on which the outputs are compared: enough to hit saturated and unsaturated activations everywhere.
NUM_OUTPUTS = 4

#: Verdicts from the best to the worst.
_SEVERITY = (Verdict.TRUSTED.value, Verdict.NOISY.value, Verdict.REJECTED.value)

#: In a stored result: the network had inherited weights, so its outputs mean nothing and were not compared.
UNTRAINED = "untrained"

_Outputs = tuple[tuple[float, ...], ...]


def verify(run: SearchRun, prepared: Prepared, profile: Profile, front: Front) -> None:
    """Measure the exported file of each selected candidate on every device, all at the same time, and store what came
    out, failures included; then the rest of the front, if that is wanted.
    """
    run.enter(STAGE)
    missing = [c for c in front.selected if STAGE.value not in c.results]
    tasks = [_task(run, prepared, candidate) for candidate in missing]
    for candidate, outcomes in zip(missing, _measured(run, profile, tasks, "whole networks"), strict=True):

        def error_of(outputs: _Outputs, of: CandidateRecord = candidate) -> float:
            return _output_max_abs_error(run, prepared, of, outputs)

        _store(run, profile, candidate, outcomes, {}, error_of)
    if run.config.measuring.whole_front:
        _measure_rest(run, prepared, profile)


def _measure_rest(run: SearchRun, prepared: Prepared, profile: Profile) -> None:
    """Measure what is on the front and was not selected, with the weights that it inherits."""
    with run.database.read() as session:
        found = load_candidates(session, run.search_id, on_front=True, selected=False)
    rest = [candidate for candidate in found if STAGE.value not in candidate.results]
    tasks = []
    for done, candidate in enumerate(rest):
        run.check()
        run.progress(STAGE, done, len(rest), "the rest of the front is packed")
        tasks.append(search_task(run, untrained(prepared, prepared.space.decode(candidate.genome))))
    for candidate, outcomes in zip(rest, _measured(run, profile, tasks, "the rest of the front"), strict=True):
        _store(run, profile, candidate, outcomes, {UNTRAINED: True}, None)


def _measured(
    run: SearchRun, profile: Profile, tasks: Sequence[NetworkTask], note: str
) -> list[list[tuple[str, Outcome]]]:
    """What became of each task on each device."""
    if not tasks:
        return []
    orders = [Order(device_id=d.device_id, tasks=tasks, source=d.table.source) for d in profile.devices]
    return [list(outcomes) for outcomes in zip(*measure(run, STAGE, orders, note), strict=True)]


def _store(
    run: SearchRun,
    profile: Profile,
    candidate: CandidateRecord,
    outcomes: Sequence[tuple[str, Outcome]],
    marks: Mapping[str, Any],
    error_of: Callable[[_Outputs], float] | None,
) -> None:
    """Store what became of a candidate, with `marks`. `error_of` judges outputs; None where they mean nothing."""
    by_device = {
        device.device_id: _judged(run, device.summary.usual_references, *outcome, error_of)
        for device, outcome in zip(profile.devices, outcomes, strict=True)
    }
    result = {**joined(by_device, run.device_names, profile.over), **marks}
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
        "output_max_abs_error": _largest([r["output_max_abs_error"] for r in found]),
        **own,
    }


def _largest(errors: Sequence[float | None]) -> float | None:
    """None where outputs were not compared."""
    known = [error for error in errors if error is not None]
    return max(known) if len(known) == len(errors) else None


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
    usual: Mapping[str, float],
    task_id: str,
    outcome: Outcome,
    error_of: Callable[[_Outputs], float] | None,
) -> dict[str, Any]:
    if isinstance(outcome, MeasurementFailure):
        return {"failure": f"{outcome.reason.value}: {outcome.detail}"}
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
        "output_max_abs_error": None
        if error_of is None
        else error_of(SqlLatencySource(run.database).measurement(task_id).outputs),
        "memory_bytes": outcome.memory_bytes,
    }


def _output_max_abs_error(run: SearchRun, prepared: Prepared, candidate: CandidateRecord, outputs: _Outputs) -> float:
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
