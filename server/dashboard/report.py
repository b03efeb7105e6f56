"""A finished search as one HTML file that stands by itself: from its result alone, wherever that lies."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml
from markupsafe import Markup

from device_agent.contracts import Verdict, decode
from search.domain.method_sources import METHOD_SOURCES
from search.domain.objective import Metric
from search.domain.result import ACCURACY, DeviceFigures, DeviceSummary, FrontPoint, SearchResult
from search.latency_axis import LatencyUnit
from search.plot import DARK, ImageFormat, plot_front
from server.dashboard.budgets import budget_rows
from server.dashboard.candidate_pages import CandidateLayers, ReportDevice, ReportPage, ReportSeries
from server.dashboard.formats import MISSING, device_time, latency, percent, span
from server.dashboard.front import Baseline, device_figures, front_row, result_baseline, unit_of
from server.dashboard.layers import layer_rows
from server.dashboard.pages import DeviceLink, Fact, FrontRow
from server.dashboard.searches import effort_tile, excluded_tile, figure_tiles, growth_picture, metric_words, over_words
from server.dashboard.templating import STATIC_DIR, environment
from server.dashboard.wording import STAGE_LABELS, STANDING_LABELS, VERDICT_LABELS
from server.states import JobStage

_SHA256 = re.compile(r"[0-9a-f]{64}")


def render_report(data: Mapping[str, Any]) -> str:
    """The report of a result, given as its JSON. Raises `ContractError` where that is no result."""
    css = (STATIC_DIR / "kerf.css").read_text(encoding="utf-8")
    # Ours, and without "</": nothing of a result comes into it.
    return environment().get_template("report.html").render(page=report_page(data), css=Markup(css))


def report_page(data: Mapping[str, Any]) -> ReportPage:
    """What the report shows. What an older result does not have is left out. Raises `ContractError`."""
    result = decode(SearchResult, data)
    summaries = result.devices or (result.device,)
    devices = tuple(DeviceLink(device_id=device.id, name=device.name) for device in summaries)
    baseline = result_baseline(data["baseline"])
    chosen = tuple(_row(point, baseline, devices, selected=True) for point in result.front)
    others = tuple(_row(point, baseline, devices, selected=False) for point in result.measured_untrained)
    unit = unit_of(baseline, chosen)
    search, metric = result.search, "" if result.metric == ACCURACY else result.metric
    left_out = () if search.excluded_choices is None else (excluded_tile(search.excluded_choices),)
    effort = () if search.measuring is None else (effort_tile([search.measuring], is_over=True),)
    return ReportPage(
        search_id=search.id,
        name=search.name,
        metric=metric,
        source=result.device.source.value,
        devices=devices,
        over_devices=over_words(search.settings, len(devices)),
        tiles=(
            *figure_tiles(baseline, (*chosen, *others), search.evaluations, unit, metric, is_over=True),
            *effort,
            *left_out,
        ),
        chosen=chosen,
        others=others,
        budgets=budget_rows(chosen, baseline.tflite_ms),
        unit=unit,
        growth=growth_picture(search.history),
        picture_light=_picture(plot_front(result, ImageFormat.SVG)),
        picture_dark=_picture(plot_front(result, ImageFormat.SVG, palette=DARK)),
        picture_text=_picture_text(chosen, unit, result.metric),
        candidates=tuple(
            CandidateLayers(
                candidate_id=point.candidate_id,
                summary=_summary(row, unit),
                layers=layer_rows(point.layers),
            )
            for point, row in zip(result.front, chosen, strict=True)
            if point.layers
        ),
        method=_method(result, unit),
        hardware=tuple(_device(device) for device in summaries),
        versions=tuple(Fact(label=name, value=version) for name, version in search.versions.items()),
        commands=_commands(result),
        config=yaml.safe_dump(dict(search.settings), sort_keys=False, allow_unicode=True),
    )


def _row(point: FrontPoint, baseline: Baseline, devices: tuple[DeviceLink, ...], *, selected: bool) -> FrontRow:
    own = zip(point.devices, devices, strict=False) if len(devices) > 1 else ()
    row = front_row(
        candidate_id=point.candidate_id,
        selected=selected,
        predicted_latency_ms=point.predicted_latency_ms,
        accuracy_estimate=point.accuracy_estimate,
        macs=point.macs,
        trained={"accuracy": point.accuracy, "accuracy_ci95": point.accuracy_ci95},
        verified=_verified(point),
        files=point.files,
        devices=tuple(device_figures(d, f.predicted_latency_ms, _verified(f), baseline) for f, d in own),
        baseline=baseline,
        untrained=not selected,
    )
    standing = None if point.standing is None else STANDING_LABELS[point.standing]
    return replace(row, standing=standing, tied_with=point.tied_with)


def _verified(found: FrontPoint | DeviceFigures) -> dict[str, Any]:
    """What VERIFYING had stored."""
    names = (
        "measured_latency_ms", "latency_ci95_ms", "verdict", "verdict_reasons", "output_max_abs_error", "failure",
    )  # fmt: skip
    return {name: getattr(found, name) for name in names}


def _picture(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"


def _picture_text(chosen: tuple[FrontRow, ...], unit: LatencyUnit, metric: str) -> str:
    words = f"Measured latency against test {metric} of the selected candidates, with 95 % intervals, and the unpruned "
    words += "network."
    points = "; ".join(_summary(row, unit) for row in chosen)
    return f"{words} {points}" if points else words


def _summary(row: FrontRow, unit: LatencyUnit) -> str:
    """Such as "2.41 ms, 91.20 %"; ≈ marks what is predicted or estimated."""
    time = f"≈ {latency(row.predicted_latency_ms, unit)}"
    if row.measured_latency_ms is not None:
        time = latency(row.measured_latency_ms, unit)
    accuracy = percent(row.accuracy)
    if row.accuracy is None:
        accuracy = MISSING if row.accuracy_estimate is None else f"≈ {percent(row.accuracy_estimate)}"
    return f"{time}, {accuracy}"


def _method(result: SearchResult, unit: LatencyUnit) -> tuple[Fact, ...]:
    search, settings = result.search, result.search.settings
    known = {method.value: source for method, source in METHOD_SOURCES.items()}
    source = known.get(search.method)
    method, accuracy = settings.get("method", {}), settings.get("accuracy", {})
    training = settings.get("training", {})
    facts = [
        ("Method", search.method if source is None else f"{search.method}: {source.words}"),
        ("Published", "" if source is None else source.publication or "no: Kerf's own, or a baseline"),
        ("Operators", "as the authors released them" if method.get("reproduce_reference") else ""),
        ("First generation from", str(method.get("seed_with") or "")),
        ("Seed", str(search.seed)),
        ("Network", _network(settings)),
        ("Objectives", ", ".join(metric_words(item["metric"]) for item in settings.get("objectives", ()))),
        ("Constraints", ", ".join(_bound(item, unit) for item in settings.get("constraints", ()))),
        ("Designs evaluated", str(search.evaluations)),
        ("Accuracy estimated by", str(accuracy.get("estimator", ""))),
        ("Trained by", str(training.get("regime", ""))),
        ("Latency table", f"of search {search.latency_from}" if search.latency_from else "measured for this search"),
        ("Time in each stage", _stages(search.seconds)),
    ]
    return tuple(Fact(label=label, value=value) for label, value in facts if value)


def _network(settings: Mapping[str, Any]) -> str:
    model = settings.get("model", {})
    own = model.get("network")
    return str(model.get("architecture") or (f"own network, SHA-256 {own}" if own else ""))


def _bound(constraint: Mapping[str, Any], unit: LatencyUnit) -> str:
    known = {metric.value for metric in Metric}
    metric, most = str(constraint["metric"]), constraint["max"]
    where = f" on {constraint['device']}" if constraint.get("device") else ""
    bound = latency(most, unit) if metric == Metric.LATENCY_MS else f"{most:g}"
    return f"{metric_words(metric) if metric in known else metric}{where} ≤ {bound}"


def _stages(seconds: Mapping[str, float]) -> str:
    """In the order of the stages, whatever that of the file."""
    stages = [stage for stage in JobStage if stage.value in seconds]
    return ", ".join(f"{STAGE_LABELS[stage].lower()} {span(seconds[stage.value])}" for stage in stages)


def _device(device: DeviceSummary) -> ReportDevice:
    facts = [
        ("Processor", device.cpu_model),
        ("Runtime", f"{device.runtime} {device.runtime_version}"),
        ("Instruction set", device.isa),
        ("Threads", str(device.threads)),
        ("Kernels in the table", f"{device.kernels}, {device.kernels_reused} of them measured before"),
        ("Identity", device.id),
    ]
    if device.measuring is not None:
        facts.append(("Measured for this search", device_time(device.measuring.device_minutes)))
    return ReportDevice(
        name=device.name,
        source=device.source.value,
        facts=tuple(Fact(label=label, value=value) for label, value in facts if value),
        series=tuple(
            ReportSeries(
                series_id=series.id,
                runtime=f"{series.runtime} {series.runtime_version}",
                agent_version=series.agent_version,
                verdicts=", ".join(
                    f"{VERDICT_LABELS[verdict].text} {series.verdicts[verdict.value]}"
                    for verdict in Verdict
                    if verdict.value in series.verdicts
                ),
            )
            for series in device.series
        ),
    )


def _commands(result: SearchResult) -> tuple[str, ...]:
    """What finds the same front again, and what deploys its fastest network."""
    search, data = result.search, ""
    named = (search.settings.get("model", {}), search.settings.get("dataset", {}))
    files = [part.get(key) for part in named for key in ("checkpoint", "network", "train", "test")]
    if any(isinstance(name, str) and _SHA256.fullmatch(name) for name in files):
        data = " --data DIR"
    commands = [
        f"kerf search run --config search.yaml{data} --output out",
        f"kerf search run --config search.yaml{data} --output again --latency-from {search.id}",
    ]
    exported = [point.candidate_id for point in result.front if point.files]
    return (*commands, *(f"kerf export out/candidates/{name} --output deployed" for name in exported[:1]))
