"""The Pareto front of a search: rows of its table and points of its chart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from device_agent.contracts import Verdict, VerdictReason
from search.domain.config import TOP1
from search.domain.objective import LatencyOverDevices, Metric
from search.domain.result import Standing
from search.latency.fleet import over_devices
from search.latency_axis import LatencyUnit, axis_reach_ms, latency_unit
from search.standing import VerifiedFigures, compare_verified
from server.dashboard.pages import DeviceFigures, DeviceLink, FileLink, FrontRow, SpeedUp
from server.dashboard.wording import STANDING_LABELS, VERDICT_LABELS, StateLabel, reason_texts
from server.errors import NotFound
from server.models import CandidateRow, SearchRow
from server.searches.queries import device_ids, get_search
from server.searches.repository import RESULT, get_document, load_checkpoint
from server.states import JobStage

#: More points than this make no better picture, only a slower one.
MAX_CLOUD_POINTS = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The unpruned network; None where it is not measured yet. `by_device` is there where there are several."""

    accuracy: float | None = None
    tflite_ms: float | None = None
    native_ms: float | None = None
    ncnn_ms: float | None = None
    by_device: Mapping[str, Baseline] = field(default_factory=dict)


def baseline_of(session: Session, search: SearchRow) -> Baseline:
    """The unpruned network's figures, as far as the search has come: from its result, else from its checkpoints."""
    text = get_document(session, search.id, RESULT)
    if text is not None:
        return result_baseline(json.loads(text)["baseline"])
    prepared = _checkpoint(session, search.id, JobStage.PREPARING)
    profile = _checkpoint(session, search.id, JobStage.PROFILING)
    first, *others = device_ids(search)
    by_device = {first: _of_profile(profile)}
    by_device |= {device: _of_profile(profile.get("others", {}).get(device, {})) for device in others}
    over = LatencyOverDevices(search.config.get("latency_over_devices", LatencyOverDevices.MAX))
    found = list(by_device.values())
    return Baseline(
        accuracy=prepared.get("baseline_accuracy"),
        tflite_ms=_over([b.tflite_ms for b in found], over),
        native_ms=_over([b.native_ms for b in found], over),
        ncnn_ms=_over([b.ncnn_ms for b in found], over),
        by_device=by_device if others else {},
    )


def result_baseline(data: Mapping[str, Any]) -> Baseline:
    """That of a result, from its JSON."""
    own = {found["device_id"]: _of_result(found) for found in data.get("devices", ())}
    return replace(_of_result(data), accuracy=data["accuracy"], by_device=own if len(own) > 1 else {})


def _of_result(data: Mapping[str, Any]) -> Baseline:
    latency = data["latency_ms"]
    return Baseline(
        tflite_ms=latency["tflite_dense"], native_ms=latency["native_dense"], ncnn_ms=latency.get("ncnn_dense")
    )


def _of_profile(data: Mapping[str, Any]) -> Baseline:
    return Baseline(
        tflite_ms=_ns_to_ms(data.get("tflite_dense_ns")),
        native_ms=_ns_to_ms(data.get("native_dense_ns")),
        ncnn_ms=_ns_to_ms(data.get("ncnn_dense_ns")),
    )


def _over(latencies: Sequence[float | None], over: LatencyOverDevices) -> float | None:
    known = [latency for latency in latencies if latency is not None]
    return float(over_devices(known, over)) if len(known) == len(latencies) else None


def metric_of(session: Session, search: SearchRow) -> str:
    """What the accuracy of a search is where its task is its user's own, as far as that is known; else ""."""
    task = search.config.get("task", TOP1)
    if task == TOP1:
        return ""
    return str(_checkpoint(session, search.id, JobStage.PREPARING).get("metric_name", f"the metric of the task {task}"))


def _checkpoint(session: Session, search_id: str, stage: JobStage) -> dict[str, Any]:
    found = load_checkpoint(session, search_id, stage)
    data: dict[str, Any] = {} if found is None else json.loads(found.data)
    return data


def _ns_to_ms(value_ns: float | None) -> float | None:
    return None if value_ns is None else value_ns / 1e6


def front_rows(
    session: Session, search_id: str, baseline: Baseline, devices: Sequence[DeviceLink] = ()
) -> tuple[FrontRow, ...]:
    """The front and what was selected from it, by predicted latency; with each one's figures where several `devices`
    are given.
    """
    query = select(CandidateRow).where(
        CandidateRow.search_id == search_id, or_(CandidateRow.on_front, CandidateRow.selected)
    )
    rows = _compared([_front_row(row, baseline, devices) for row in session.scalars(query)])
    return tuple(sorted(rows, key=lambda row: (row.predicted_latency_ms, row.candidate_id)))


def candidate_row(
    session: Session, search_id: str, candidate_id: str, baseline: Baseline, devices: Sequence[DeviceLink]
) -> FrontRow:
    """Any candidate with a latency, as `front_rows` has those of the front. Raises `NotFound`."""
    row = session.get(CandidateRow, (search_id, candidate_id))
    if row is None:
        raise NotFound(f"Search {search_id} has no candidate {candidate_id!r}.")
    if Metric.LATENCY_MS not in row.metrics:
        raise NotFound(f"Candidate {candidate_id} could not be evaluated: it has no figures to show.")
    return _front_row(row, baseline, devices)


def _compared(rows: Sequence[FrontRow]) -> list[FrontRow]:
    """The rows with how the selected ones stand to each other, as the result will have it."""
    chosen = [row for row in rows if row.selected]
    compared = compare_verified(
        [
            VerifiedFigures(
                candidate_id=row.candidate_id,
                latency_ms=None if row.verdict == VERDICT_LABELS[Verdict.REJECTED] else row.measured_latency_ms,
                latency_ci95_ms=row.latency_ci95_ms,
                accuracy=row.accuracy,
                accuracy_ci95=row.accuracy_ci95,
            )
            for row in chosen
        ]
    )
    labels = {
        row.candidate_id: (None if found.standing is None else STANDING_LABELS[found.standing], found.tied_with)
        for row, found in zip(chosen, compared, strict=True)
    }
    nothing: tuple[StateLabel | None, tuple[str, ...]] = (None, ())
    found = [labels.get(row.candidate_id, nothing) for row in rows]
    return [replace(row, standing=label, tied_with=tied) for row, (label, tied) in zip(rows, found, strict=True)]


def unit_of(baseline: Baseline, front: Sequence[FrontRow]) -> LatencyUnit:
    """One unit for the table, the tiles and the chart of a search."""
    return latency_unit([baseline.tflite_ms, baseline.native_ms, *(row.predicted_latency_ms for row in front)])


def chart_data(session: Session, search_id: str) -> dict[str, Any]:
    """What the chart draws. Latencies in ms, to be shown in `unit` on an axis up to `reach_ms`; accuracies are parts of
    1, to be called `metric`.
    """
    search = get_search(session, search_id)
    baseline = baseline_of(session, search)
    front = front_rows(session, search_id, baseline)
    points = [_point(row) for row in front]
    measured = [p for p in points if p["measured_latency_ms"] is not None and p["shown_accuracy"] is not None]
    unit, cloud = unit_of(baseline, front), _cloud(session, search_id)
    known = (
        (baseline.tflite_ms, "unpruned, TFLite"),
        (baseline.native_ms, "unpruned, native"),
        (baseline.ncnn_ms, "unpruned, ncnn"),
    )
    lines = [(latency, label) for latency, label in known if latency is not None]
    reach_ms = axis_reach_ms(
        [
            *(latency for latency, _ in cloud),
            *(row.predicted_latency_ms for row in front),
            *(row.measured_latency_ms for row in front if row.measured_latency_ms is not None),
        ],
        [latency for latency, _ in lines],
        [row.latency_ci95_ms[1] for row in front if row.latency_ci95_ms is not None],
    )
    return {
        "unit": {"name": unit.name, "per_ms": unit.per_ms},
        "metric": metric_of(session, search) or "accuracy",
        "reach_ms": reach_ms,
        "evaluated": cloud,
        "front": [p for p in points if p["accuracy_estimate"] is not None],
        "selected": [p for p in points if p["selected"] and p["accuracy_estimate"] is not None],
        "verified": [p for p in measured if not p["untrained"]],
        "measured_untrained": [p for p in measured if p["untrained"]],
        "baselines": [
            {"label": label, "latency_ms": latency, "accuracy": baseline.accuracy, "is_beyond": latency > reach_ms}
            for latency, label in lines
        ],
    }


def _cloud(session: Session, search_id: str) -> list[tuple[float, float]]:
    """(predicted latency, accuracy estimate) of the candidates, thinned evenly where there are too many."""
    # Two numbers of each: to read all the JSON of thousands of candidates takes several times as long.
    latency_ms, error = (CandidateRow.metrics[metric.value].as_float() for metric in (Metric.LATENCY_MS, Metric.ERROR))
    query = (
        select(latency_ms, error)
        .where(CandidateRow.search_id == search_id, latency_ms.is_not(None), error.is_not(None))
        .order_by(CandidateRow.generation, CandidateRow.candidate_id)
    )
    points = [(float(latency), 1.0 - float(wrong)) for latency, wrong in session.execute(query)]
    step = -(-len(points) // MAX_CLOUD_POINTS) or 1
    return points[::step]


def _front_row(row: CandidateRow, baseline: Baseline, devices: Sequence[DeviceLink]) -> FrontRow:
    metrics = row.metrics
    trained, exported, verified = (
        row.results.get(stage.value, {}) for stage in (JobStage.TRAINING, JobStage.EXPORTING, JobStage.VERIFYING)
    )
    return front_row(
        candidate_id=row.candidate_id,
        selected=row.selected,
        predicted_latency_ms=float(metrics[Metric.LATENCY_MS]),
        accuracy_estimate=1.0 - float(metrics[Metric.ERROR]) if Metric.ERROR in metrics else None,
        macs=int(metrics[Metric.MACS]) if Metric.MACS in metrics else None,
        trained=trained,
        verified=verified,
        files=exported.get("files", {}),
        devices=tuple(_on_device(row, device, baseline) for device in devices) if len(devices) > 1 else (),
        baseline=baseline,
        untrained=bool(verified.get("untrained")),
    )


def front_row(
    *,
    candidate_id: str,
    selected: bool,
    predicted_latency_ms: float,
    accuracy_estimate: float | None,
    macs: int | None,
    trained: Mapping[str, Any],
    verified: Mapping[str, Any],
    files: Mapping[str, str],
    devices: tuple[DeviceFigures, ...],
    baseline: Baseline,
    untrained: bool,
) -> FrontRow:
    """A row of what the stages found, as their JSON or a result has it; not yet compared with others."""
    found = _Verified.of(verified)
    return FrontRow(
        candidate_id=candidate_id,
        selected=selected,
        predicted_latency_ms=predicted_latency_ms,
        measured_latency_ms=found.measured_latency_ms,
        latency_ci95_ms=found.latency_ci95_ms,
        speed_up=_speed_up(baseline, predicted_latency_ms, found.measured_latency_ms),
        accuracy_estimate=accuracy_estimate,
        accuracy=trained.get("accuracy"),
        accuracy_ci95=_pair(trained.get("accuracy_ci95")),
        macs=macs,
        verdict=found.verdict,
        reasons=found.reasons,
        output_max_abs_error=found.output_max_abs_error,
        failure=found.failure,
        files=_files(files),
        devices=devices,
        untrained=untrained,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verified:
    """What VERIFYING stored, of one device or over several; results have the same keys."""

    measured_latency_ms: float | None
    latency_ci95_ms: tuple[float, float] | None
    verdict: StateLabel | None
    reasons: tuple[str, ...]
    output_max_abs_error: float | None
    failure: str

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> _Verified:
        verdict = data.get("verdict")
        return cls(
            measured_latency_ms=data.get("measured_latency_ms"),
            latency_ci95_ms=_pair(data.get("latency_ci95_ms")),
            verdict=None if verdict is None else VERDICT_LABELS[Verdict(verdict)],
            reasons=reason_texts(tuple(VerdictReason(r) for r in data.get("verdict_reasons", ()))),
            output_max_abs_error=data.get("output_max_abs_error"),
            failure=str(data.get("failure") or ""),
        )


def _pair(interval: Sequence[float] | None) -> tuple[float, float] | None:
    return None if interval is None else (interval[0], interval[1])


def _on_device(row: CandidateRow, device: DeviceLink, baseline: Baseline) -> DeviceFigures:
    searched, verified = (row.results.get(stage.value, {}) for stage in (JobStage.SEARCHING, JobStage.VERIFYING))
    predicted = searched.get("latencies_ms", {}).get(device.device_id)
    return device_figures(device, predicted, verified.get("devices", {}).get(device.device_id, {}), baseline)


def device_figures(
    device: DeviceLink, predicted_latency_ms: float | None, verified: Mapping[str, Any], baseline: Baseline
) -> DeviceFigures:
    """A candidate on one of several devices; `verified` as in `front_row`."""
    found = _Verified.of(verified)
    own = baseline.by_device.get(device.device_id, Baseline())
    measured = found.measured_latency_ms
    return DeviceFigures(
        device=device,
        predicted_latency_ms=predicted_latency_ms,
        measured_latency_ms=measured,
        latency_ci95_ms=found.latency_ci95_ms,
        speed_up=None if predicted_latency_ms is None else _speed_up(own, predicted_latency_ms, measured),
        verdict=found.verdict,
        reasons=found.reasons,
        output_max_abs_error=found.output_max_abs_error,
        failure=found.failure,
    )


def _files(digests: Mapping[str, str]) -> tuple[FileLink, ...]:
    return tuple(FileLink(name=name, sha256=digest) for name, digest in sorted(digests.items()))


def _speed_up(baseline: Baseline, predicted_ms: float, measured_ms: float | None) -> SpeedUp | None:
    """Against the unpruned network in TFLite; None where that is not known."""
    if baseline.tflite_ms is None:
        return None
    latency = predicted_ms if measured_ms is None else measured_ms
    return SpeedUp(factor=baseline.tflite_ms / latency, predicted=measured_ms is None)


def _point(row: FrontRow) -> dict[str, Any]:
    return {
        "candidate_id": row.candidate_id,
        "selected": row.selected,
        "predicted_latency_ms": row.predicted_latency_ms,
        "measured_latency_ms": row.measured_latency_ms,
        "latency_ci95_ms": row.latency_ci95_ms,
        "accuracy_estimate": row.accuracy_estimate,
        "accuracy": row.accuracy,
        "shown_accuracy": row.accuracy_estimate if row.accuracy is None else row.accuracy,
        "accuracy_ci95": row.accuracy_ci95,
        "verdict": None if row.verdict is None else row.verdict.text,
        "standing": None if row.standing is None else row.standing.text,
        "is_dominated": row.standing == STANDING_LABELS[Standing.DOMINATED],
        "tied_with": row.tied_with,
        "untrained": row.untrained,
    }
