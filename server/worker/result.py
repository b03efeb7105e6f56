"""result.json, put together from what the stages stored."""

from __future__ import annotations

import json

import jsonschema

from device_agent.contracts import DeviceProfile, Verdict, encode
from search.domain.objective import Metric
from search.domain.result import (
    Baseline,
    BaselineLatency,
    DeviceSummary,
    FrontPoint,
    SearchResult,
    SearchSummary,
    result_schema,
)
from search.domain.space import Decisions
from search.known_figures import plan_figures
from search.lowering import lower
from server.searches.repository import RESULT, CandidateRecord
from server.states import JobStage
from server.worker.run import SearchRun
from server.worker.stages.preparing import Prepared
from server.worker.stages.profiling import Profile
from server.worker.stages.searching import Front


def store_result(
    run: SearchRun, prepared: Prepared, profile: Profile, front: Front, device: tuple[str, DeviceProfile]
) -> SearchResult:
    """Build, check against the schema, and store the result of a search whose stages are all done."""
    config = run.config
    dense = lower(prepared.spec, Decisions())
    name, hardware = device
    points = sorted(
        (_point(prepared, profile, c) for c in front.selected),
        key=lambda p: (p.measured_latency_ms or p.predicted_latency_ms, p.candidate_id),
    )
    result = SearchResult(
        search=SearchSummary(
            id=run.search_id,
            name=config.name,
            method=config.method.name.value,
            seed=config.method.seed,
            settings=encode(config),
            evaluations=run.num_evaluations(),
            seconds=run.stage_seconds(),
            latency_from=config.latency_from,
        ),
        device=DeviceSummary(
            id=run.claim.device_id,
            name=name,
            cpu_model=hardware.cpu_model,
            runtime=profile.table.runtime,
            runtime_version=profile.table.runtime_version,
            isa=profile.summary.isa,
            threads=profile.summary.threads,
            source=profile.table.source,
            kernels=len(profile.table.kernels),
            kernels_reused=profile.summary.kernels_reused,
        ),
        baseline=Baseline(
            accuracy=prepared.baseline_accuracy,
            latency_ms=BaselineLatency(
                tflite_dense=_ms(profile.summary.tflite_dense_ns),
                native_dense=_ms(profile.summary.native_dense_ns),
                ncnn_dense=_ms(profile.summary.ncnn_dense_ns),
            ),
            macs=dense.macs,
            parameters=dense.parameters,
            model_bytes=int(plan_figures(dense)[Metric.MODEL_BYTES]),
        ),
        front=tuple(points),
    )
    data = encode(result)
    jsonschema.validate(data, result_schema())
    run.put_document(RESULT, json.dumps(data, sort_keys=True))
    return result


def _point(prepared: Prepared, profile: Profile, candidate: CandidateRecord) -> FrontPoint:
    decisions = prepared.space.decode(candidate.genome)
    plan = lower(prepared.spec, decisions)
    verified = candidate.results.get(JobStage.VERIFYING.value, {})
    interval = verified.get("latency_ci95_ms")
    verdict = verified.get("verdict")
    error = candidate.metrics.get(Metric.ERROR.value)
    return FrontPoint(
        candidate_id=candidate.candidate_id,
        accuracy_estimate=None if error is None else 1.0 - error,
        accuracy=candidate.results.get(JobStage.TRAINING.value, {}).get("accuracy"),
        predicted_latency_ms=profile.predict_ms(plan),
        measured_latency_ms=verified.get("measured_latency_ms"),
        uncorrected_latency_ms=verified.get("uncorrected_latency_ms"),
        latency_ci95_ms=None if interval is None else (interval[0], interval[1]),
        verdict=None if verdict is None else Verdict(verdict),
        verdict_reasons=tuple(verified.get("verdict_reasons", ())),
        output_max_abs_error=verified.get("output_max_abs_error"),
        macs=plan.macs,
        parameters=plan.parameters,
        files=candidate.results.get(JobStage.EXPORTING.value, {}).get("files", {}),
        decisions=encode(decisions),
        failure=verified.get("failure"),
        model_bytes=int(plan_figures(plan)[Metric.MODEL_BYTES]),
    )


def _ms(nanoseconds: float | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e6
