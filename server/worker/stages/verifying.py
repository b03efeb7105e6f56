"""VERIFYING: every exported network runs whole on the device: its outputs against torch, its latency as measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from device_agent.contracts import MeasurementFailure, NetworkTask
from device_agent.synthesis import synthesize_input
from search.export import FORMAT_FILES
from search.latency.drift import at_usual_speed
from server.latency.source import SqlLatencySource
from server.searches.repository import CandidateRecord, set_candidate_result
from server.states import JobStage
from server.worker.measuring import Outcome, measure
from server.worker.networks import search_format
from server.worker.run import SearchRun
from server.worker.stages.preparing import Prepared
from server.worker.stages.profiling import Profile
from server.worker.stages.searching import Front
from server.worker.stages.training import load_trained

STAGE = JobStage.VERIFYING

#: Inputs on which the outputs are compared: enough to hit saturated and unsaturated activations everywhere.
NUM_OUTPUTS = 4


def verify(run: SearchRun, prepared: Prepared, profile: Profile, front: Front) -> None:
    """Measure the exported file of each selected candidate and store what came out, failures included."""
    run.enter(STAGE)
    missing = [c for c in front.selected if STAGE.value not in c.results]
    tasks = [_task(run, prepared, candidate) for candidate in missing]
    outcomes = measure(run, STAGE, tasks, "whole networks", source=profile.table.source) if tasks else []
    for candidate, (task_id, outcome) in zip(missing, outcomes, strict=True):
        result = _judged(run, prepared, candidate, profile.summary.usual_references, task_id, outcome)
        with run.database.write() as session:
            set_candidate_result(session, run.claim, candidate.candidate_id, STAGE.value, result)


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
