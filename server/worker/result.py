"""result.json, put together from what the stages stored."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jsonschema

from device_agent.contracts import DeviceProfile, Verdict, decode, encode
from search.data.loading import LoadedData
from search.domain.objective import Metric
from search.domain.result import (
    Baseline,
    BaselineLatency,
    DataSummary,
    DeviceBaseline,
    DeviceFigures,
    DeviceSummary,
    ExcludedChoices,
    FrontPoint,
    MeasuringEffort,
    SearchResult,
    SearchSummary,
    SeriesSummary,
    result_schema,
)
from search.domain.space import Decisions
from search.known_figures import plan_figures
from search.layers import layer_figures
from search.lowering import lower
from search.standing import VerifiedFigures, compare_verified
from search.tasks.base import task_of
from server.searches.effort import measuring_efforts, total_effort
from server.searches.history import generation_history
from server.searches.provenance import measured_series
from server.searches.repository import EXCLUDED_CHOICES, RESULT, CandidateRecord, get_document, load_candidates
from server.states import JobStage
from server.worker.latencies import DenseLatency, DeviceLatencies, Profile
from server.worker.run import SearchRun
from server.worker.stages.preparing import Prepared
from server.worker.stages.searching import Front

#: Of the libraries that decide what a search computes.
_LIBRARIES = ("kerf", "torch", "numpy", "scipy")


def store_result(
    run: SearchRun, prepared: Prepared, profile: Profile, front: Front, devices: Mapping[str, tuple[str, DeviceProfile]]
) -> SearchResult:
    """Build, check against the schema, and store the result of a search whose stages are all done."""
    config = run.config
    dense = lower(prepared.spec, Decisions())
    with run.database.read() as session:
        efforts = measuring_efforts(session, run.search_id)
        excluded = get_document(session, run.search_id, EXCLUDED_CHOICES)
        series = measured_series(session, run.search_id)
        history = generation_history(session, run.search_id)
    nothing = total_effort(())
    summaries = tuple(
        _device(d, *devices[d.device_id], efforts.get(d.device_id, nothing), series.get(d.device_id, ()))
        for d in profile.devices
    )
    with run.database.read() as session:
        rest = load_candidates(session, run.search_id, on_front=True, selected=False)
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
            measuring=total_effort(efforts.values()),
            excluded_choices=None if excluded is None else decode(ExcludedChoices, json.loads(excluded)),
            history=history,
            versions={"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        ),
        device=summaries[0],
        devices=summaries,
        baseline=Baseline(
            accuracy=prepared.baseline_accuracy,
            latency_ms=_baseline(profile.dense),
            devices=tuple(
                DeviceBaseline(device_id=d.device_id, latency_ms=_baseline(d.dense)) for d in profile.devices
            ),
            macs=dense.macs,
            parameters=dense.parameters,
            model_bytes=int(plan_figures(dense)[Metric.MODEL_BYTES]),
        ),
        front=tuple(compared(_points(prepared, profile, front.selected))),
        measured_untrained=tuple(
            dataclasses.replace(point, layers=())
            for point in _points(prepared, profile, [c for c in rest if JobStage.VERIFYING.value in c.results])
        ),
        data=_data(prepared.data),
    )
    data = encode(result)
    jsonschema.validate(data, result_schema())
    run.put_document(RESULT, json.dumps(data, sort_keys=True))
    return result


def _data(data: LoadedData) -> DataSummary:
    split = data.split
    return DataSummary(
        metric=task_of(split.train).metric_name,
        class_names=split.train.class_names,
        mean=data.normalise.mean,
        std=data.normalise.std,
        num_train=len(split.train),
        num_holdout=len(split.holdout),
        num_test=len(split.test),
    )


def compared(points: Sequence[FrontPoint]) -> list[FrontPoint]:
    """The points with how they stand to each other. A latency that was rejected is compared with none."""
    found_by_point = compare_verified(
        [
            VerifiedFigures(
                candidate_id=p.candidate_id,
                latency_ms=None if p.verdict is Verdict.REJECTED else p.measured_latency_ms,
                latency_ci95_ms=p.latency_ci95_ms,
                accuracy=p.accuracy,
                accuracy_ci95=p.accuracy_ci95,
            )
            for p in points
        ]
    )
    return [
        dataclasses.replace(point, standing=found.standing, tied_with=found.tied_with)
        for point, found in zip(points, found_by_point, strict=True)
    ]


def _device(
    found: DeviceLatencies,
    name: str,
    hardware: DeviceProfile,
    measuring: MeasuringEffort,
    series: tuple[SeriesSummary, ...],
) -> DeviceSummary:
    return DeviceSummary(
        id=found.device_id,
        name=name,
        cpu_model=hardware.cpu_model,
        runtime=found.table.runtime,
        runtime_version=found.table.runtime_version,
        isa=found.summary.isa,
        threads=found.summary.threads,
        source=found.table.source,
        kernels=len(found.table.kernels),
        kernels_reused=found.summary.kernels_reused,
        measuring=measuring,
        series=series,
    )


def _baseline(dense: DenseLatency) -> BaselineLatency:
    return BaselineLatency(tflite_dense=dense.tflite_ms, native_dense=dense.native_ms, ncnn_dense=dense.ncnn_ms)


def _points(prepared: Prepared, profile: Profile, candidates: Sequence[CandidateRecord]) -> list[FrontPoint]:
    """Fastest first."""
    return sorted(
        (_point(prepared, profile, candidate) for candidate in candidates),
        key=lambda p: (p.measured_latency_ms or p.predicted_latency_ms, p.candidate_id),
    )


def _point(prepared: Prepared, profile: Profile, candidate: CandidateRecord) -> FrontPoint:
    decisions = prepared.space.decode(candidate.genome)
    plan = lower(prepared.spec, decisions)
    verified = candidate.results.get(JobStage.VERIFYING.value, {})
    by_device = profile.fleet.latencies_ms(plan)
    over = _figures("", profile.predict_ms(plan), verified)
    error = candidate.metrics.get(Metric.ERROR.value)
    trained = candidate.results.get(JobStage.TRAINING.value, {})
    interval = trained.get("accuracy_ci95")
    return FrontPoint(
        candidate_id=candidate.candidate_id,
        accuracy_estimate=None if error is None else 1.0 - error,
        accuracy=trained.get("accuracy"),
        accuracy_ci95=None if interval is None else (interval[0], interval[1]),
        predicted_latency_ms=over.predicted_latency_ms,
        measured_latency_ms=over.measured_latency_ms,
        uncorrected_latency_ms=over.uncorrected_latency_ms,
        latency_ci95_ms=over.latency_ci95_ms,
        verdict=over.verdict,
        verdict_reasons=over.verdict_reasons,
        output_max_abs_error=over.output_max_abs_error,
        macs=plan.macs,
        parameters=plan.parameters,
        files=candidate.results.get(JobStage.EXPORTING.value, {}).get("files", {}),
        decisions=encode(decisions),
        failure=over.failure,
        model_bytes=int(plan_figures(plan)[Metric.MODEL_BYTES]),
        devices=tuple(
            _figures(
                device, predicted_ms, verified if len(by_device) == 1 else verified.get("devices", {}).get(device, {})
            )
            for device, predicted_ms in by_device.items()
        ),
        layers=layer_figures(plan, list(profile.fleet.models.values())),
    )


def _figures(device_id: str, predicted_ms: float, verified: Mapping[str, Any]) -> DeviceFigures:
    """What VERIFYING stored, or nothing of it yet."""
    interval = verified.get("latency_ci95_ms")
    verdict = verified.get("verdict")
    return DeviceFigures(
        device_id=device_id,
        predicted_latency_ms=predicted_ms,
        measured_latency_ms=verified.get("measured_latency_ms"),
        uncorrected_latency_ms=verified.get("uncorrected_latency_ms"),
        latency_ci95_ms=None if interval is None else (interval[0], interval[1]),
        verdict=None if verdict is None else Verdict(verdict),
        verdict_reasons=tuple(verified.get("verdict_reasons", ())),
        output_max_abs_error=verified.get("output_max_abs_error"),
        failure=verified.get("failure"),
    )
