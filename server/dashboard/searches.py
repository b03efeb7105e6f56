"""Searches as the pages show them: rows of the overview, and one search with its stages and its front."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ScalarSelect, Select, func, select
from sqlalchemy.orm import Session

from device_agent.contracts import DeviceProfile, ReportStatus, Source, decode
from search.domain.objective import LatencyOverDevices
from search.domain.result import ExcludedChoices, GenerationFigures, MeasuringEffort
from search.latency_axis import LatencyUnit
from server.dashboard import pages
from server.dashboard.budgets import budget_rows
from server.dashboard.formats import MISSING, count, device_time, latency, percent, span
from server.dashboard.front import Baseline, baseline_of, front_rows, metric_of, unit_of
from server.dashboard.lines import Value, line_picture
from server.dashboard.pages import DeviceLink, EventView, FrontRow, Progress, SearchPage, StageView, Tile
from server.dashboard.pictures import LinePicture
from server.dashboard.wording import JOB_LABELS, STAGE_LABELS
from server.models import CandidateRow, DeviceRow, EventRow, MeasurementRow, SearchRow, SearchTaskRow
from server.searches.effort import measuring_efforts, total_effort
from server.searches.history import generation_history
from server.searches.queries import STEERING, device_ids, find_document, get_search
from server.searches.repository import EXCLUDED_CHOICES, RESULT, get_document
from server.searches.visibility import is_of
from server.states import JobStage, JobState

#: Rows of the front's table, and the latest events: what a reader looks through.
SHOWN_FRONT = 200
SHOWN_EVENTS = 12

#: The oldest tasks of a search, in which a measurement is looked for.
_ASKED_FOR_SOURCE = 50

#: The stages in order, without the end that is no work.
STAGES = tuple(stage for stage in JobStage if stage is not JobStage.DONE)


def search_rows(session: Session, now: float, *, limit: int, owner: str | None = None) -> tuple[pages.SearchRow, ...]:
    """The newest searches (of `owner`). `now` is the database's time."""
    found = session.execute(search_rows_query(limit=limit, owner=owner)).all()
    names = _device_names(session, {device_id for row, *_ in found for device_id in device_ids(row)})
    return tuple(
        pages.SearchRow(
            search_id=row.id,
            name=row.name,
            architecture=_network_name(row),
            method=row.config["method"]["name"],
            device_name=", ".join(names[device_id] for device_id in device_ids(row)),
            source=_source_of(device, measured),
            state=JOB_LABELS[row.state],
            progress=search_progress(row, with_stage=True),
            error=row.error or "",
            age_s=now - (row.started_at or row.created_at),
        )
        for row, device, measured in found
    )


def search_rows_query(*, limit: int, owner: str | None = None) -> Select[SearchRow, DeviceRow, Source | None]:
    """The newest searches, the first device of each, and where its latencies come from; None without any."""
    return (
        select(SearchRow, DeviceRow, _measured_source())
        .join(DeviceRow, DeviceRow.id == SearchRow.device_id)
        .where(is_of(owner))
        .order_by(SearchRow.id.desc())
        .limit(limit)
    )


def _device_names(session: Session, identities: Collection[str]) -> dict[str, str]:
    query = select(DeviceRow.id, DeviceRow.name).where(DeviceRow.id.in_(identities))
    return {row.id: row.name for row in session.execute(query)}


def _measured_source() -> ScalarSelect[Source]:
    """Where a search's latencies come from. They are all of one source, on all its devices."""
    # A planner expects to find one soon in whatever it begins with, and reads all of it for a search that has none: the
    # inner limit rules measurements out, and the order, which is not dropped for a range, other indexes of tasks.
    tasks = (
        select(SearchTaskRow.task_id)
        .where(SearchTaskRow.search_id.between(SearchRow.id, SearchRow.id))
        .order_by(SearchTaskRow.search_id, SearchTaskRow.task_id)
        .limit(_ASKED_FOR_SOURCE)
        .correlate(SearchRow)
        .subquery()
    )
    return (
        select(MeasurementRow.source)
        .join(tasks, tasks.c.task_id == MeasurementRow.task_id)
        .where(MeasurementRow.status == ReportStatus.ACCEPTED)
        .correlate(SearchRow)
        .limit(1)
        .scalar_subquery()
    )


def _source_of(device: DeviceRow, measured: Source | None) -> str:
    """Of the latencies that a search has, or that its device would give it."""
    return (measured or decode(DeviceProfile, device.profile).source).value


def search_source(session: Session, search_id: str) -> str:
    """Where the latencies of a search come from."""
    device, measured = session.execute(
        select(DeviceRow, _measured_source())
        .join(SearchRow, SearchRow.device_id == DeviceRow.id)
        .where(SearchRow.id == search_id)
    ).one()
    return _source_of(device, measured)


def search_devices(session: Session, row: SearchRow) -> tuple[DeviceLink, ...]:
    """The devices of a search, in the order of its config."""
    names = _device_names(session, device_ids(row))
    return tuple(DeviceLink(device_id=device_id, name=names[device_id]) for device_id in device_ids(row))


def search_page(session: Session, search_id: str, now: float) -> SearchPage:
    """One search. Raises `NotFound`."""
    row = get_search(session, search_id)
    source, devices = search_source(session, search_id), search_devices(session, row)
    baseline, metric = baseline_of(session, row), metric_of(session, row)
    front = front_rows(session, search_id, baseline, devices)
    unit = unit_of(baseline, front)
    chosen = tuple(point for point in front if point.selected)
    others = tuple(point for point in front if not point.selected)
    evaluated = session.execute(
        select(func.count()).select_from(CandidateRow).where(CandidateRow.search_id == search_id)
    ).scalar_one()
    return SearchPage(
        search_id=row.id,
        name=row.name,
        architecture=_network_name(row),
        method=row.config["method"]["name"],
        seed=row.config["method"]["seed"],
        metric=metric,
        devices=devices,
        over_devices=over_words(row.config, len(devices)),
        source=source,
        state=JOB_LABELS[row.state],
        is_over=row.state.is_terminal,
        error=row.error or "",
        has_started=row.started_at is not None,
        age_s=now - (row.started_at or row.created_at),
        stages=_stages(session, row, now),
        progress=search_progress(row, with_stage=False),
        tiles=(
            *figure_tiles(baseline, front, evaluated, unit, metric, is_over=row.state.is_terminal),
            effort_tile(measuring_efforts(session, search_id).values(), is_over=row.state.is_terminal),
            *_excluded_tiles(session, search_id),
        ),
        chosen=chosen,
        others=others[:SHOWN_FRONT],
        hidden=max(0, len(others) - SHOWN_FRONT),
        has_trained=any(point.accuracy is not None for point in front),
        has_untrained=any(point.untrained for point in front),
        baseline_tflite_ms=baseline.tflite_ms,
        unit=unit,
        objectives=" and ".join(metric_words(item["metric"]) for item in row.config["objectives"]),
        events=_events(session, search_id, now),
        budgets=budget_rows(front, baseline.tflite_ms),
        growth=growth_picture(generation_history(session, search_id)),
        actions=_actions(row.state),
        has_result=find_document(session, search_id, RESULT) is not None,
    )


def _actions(state: JobState) -> tuple[str, ...]:
    """What can be done with a search that is not on its way there already."""
    return tuple(verb for verb, (targets, _) in STEERING.items() if targets.get(state, state) is not state)


def _network_name(row: SearchRow) -> str:
    """The architecture, or the start of the digest of an own network."""
    model = row.config["model"]
    return str(model["architecture"] or f"own network {model['network'][:10]}")


def growth_picture(history: Sequence[GenerationFigures]) -> LinePicture | None:
    """Hypervolume over evaluations; None before it is known after two generations."""
    known = [(found, found.hypervolume) for found in history if found.hypervolume is not None]
    if len(known) < 2:
        return None
    points = [
        Value(
            x=found.evaluations,
            y=volume,
            title=f"generation {found.generation}: {volume:.4f} after {found.evaluations} designs, "
            f"{found.front} on the front",
        )
        for found, volume in known
    ]
    return line_picture(
        [("hypervolume", points)],
        x_title="designs evaluated",
        y_title="hypervolume",
        x_label=lambda x: f"{x:g}",
        y_label=lambda y: f"{y:g}",
    )


def search_progress(row: SearchRow, *, with_stage: bool) -> Progress:
    """How far the present stage is, in the words of the worker: {"done", "total", "note"}."""
    if row.state is JobState.COMPLETED:
        return Progress(text="all stages done" if with_stage else "")
    if row.state is JobState.PENDING and row.epoch == 0:
        return Progress(text="waits for a worker")
    done, total = int(row.progress.get("done", 0)), int(row.progress.get("total", 0))
    note = str(row.progress.get("note", ""))
    words = ", ".join(part for part in (f"{done} of {total}" if total else "", note) if part)
    if with_stage:
        stage = STAGE_LABELS[row.stage]
        words = f"{stage}: {words}" if words else stage
    if row.state.is_terminal:
        return Progress(text=f"ended in {words}" if with_stage else "")
    return Progress(text=words, done=done, total=total)


def _stages(session: Session, row: SearchRow, now: float) -> tuple[StageView, ...]:
    """The timeline. A stage lasts from its first event to that of the next one."""
    entered: dict[str, float] = {}
    query = (
        select(EventRow.data, EventRow.created_at)
        .where(EventRow.search_id == row.id, EventRow.kind == "stage")
        .order_by(EventRow.seq)
    )
    for data, created_at in session.execute(query):
        entered.setdefault(str(data.get("stage")), created_at)
    end = row.finished_at or now
    reached = len(STAGES) if row.stage is JobStage.DONE else STAGES.index(row.stage)
    views = []
    for i, stage in enumerate(STAGES):
        later = [entered[s.value] for s in STAGES[i + 1 :] if s.value in entered]
        began = entered.get(stage.value)
        lasted = "" if began is None else span(max(0.0, min([*later, end]) - began))
        if i < reached:
            status = "done"
        elif row.state is JobState.FAILED and i == reached:
            status = "failed"
        elif i > reached or began is None:
            status, lasted = "waiting", ""
        elif row.state.is_terminal:
            status = "stopped"
        else:
            status = "current"
        views.append(StageView(label=STAGE_LABELS[stage], status=status, note=lasted))
    return tuple(views)


def over_words(config: Mapping[str, Any], num_devices: int) -> str:
    """What one latency over several devices is; "" for a single one."""
    if num_devices == 1:
        return ""
    over = LatencyOverDevices(config.get("latency_over_devices", LatencyOverDevices.MAX))
    return {
        LatencyOverDevices.MAX: "that of the slowest device",
        LatencyOverDevices.MEAN: "the mean over the devices",
        LatencyOverDevices.GEOMETRIC_MEAN: "the geometric mean over the devices",
    }[over]


def metric_words(metric: str) -> str:
    return {"latency_ms": "latency", "macs": "MACs"}.get(metric, metric)


def figure_tiles(
    baseline: Baseline, front: Sequence[FrontRow], evaluated: int, unit: LatencyUnit, metric: str, *, is_over: bool
) -> tuple[Tile, ...]:
    """The figures that a reader looks for first. Unknown ones say so. `metric` and `is_over` as in `SearchPage`."""
    accuracy = "" if baseline.accuracy is None else f"{percent(baseline.accuracy)} test {metric or 'accuracy'}"
    tiles = [
        Tile(label="Unpruned, TFLite", value=latency(baseline.tflite_ms, unit), note=accuracy),
        Tile(label="Unpruned, native", value=latency(baseline.native_ms, unit)),
    ]
    if baseline.ncnn_ms is not None:
        tiles.append(Tile(label="Unpruned, ncnn", value=latency(baseline.ncnn_ms, unit)))
    verified = [(p.measured_latency_ms, p) for p in front if p.measured_latency_ms is not None and not p.untrained]
    if verified:
        measured_ms, fastest = min(verified, key=lambda pair: pair[0])
        note = "" if fastest.speed_up is None else f"{fastest.speed_up.factor:.2f}× faster than unpruned TFLite"
        tiles.append(Tile(label="Fastest verified", value=latency(measured_ms, unit), note=note))
    elif front:
        fastest = min(front, key=lambda p: p.predicted_latency_ms)
        predicted = latency(fastest.predicted_latency_ms, unit)
        tiles.append(
            Tile(label="Fastest predicted", value=predicted, note=f"not verified on the device{_yet(is_over)}")
        )
    note = f"{len(front)} on the front, {len(verified)} verified" if front else ""
    untrained = sum(p.untrained and p.measured_latency_ms is not None for p in front)
    note += f", {untrained} measured untrained" if untrained else ""
    tiles.append(Tile(label="Designs evaluated", value=count(evaluated), note=note))
    return tuple(tiles)


def effort_tile(efforts: Iterable[MeasuringEffort], *, is_over: bool) -> Tile:
    """What the search cost its devices, all together."""
    effort = total_effort(efforts)
    if not effort.measurements:
        return Tile(label="Device time", value=MISSING, note=f"nothing was asked of the device{_yet(is_over)}")
    shared = f"{count(effort.cache_hits)} of {count(effort.measurements)} measurements from the database"
    return Tile(label="Device time", value=device_time(effort.device_minutes), note=shared)


def _yet(is_over: bool) -> str:
    return "" if is_over else " yet"


def _excluded_tiles(session: Session, search_id: str) -> tuple[Tile, ...]:
    """What the search leaves out because it does not pay; nothing where it leaves nothing out, or has not begun."""
    stored = get_document(session, search_id, EXCLUDED_CHOICES)
    if stored is None:
        return ()
    return (excluded_tile(decode(ExcludedChoices, json.loads(stored))),)


def excluded_tile(found: ExcludedChoices) -> Tile:
    note = f"of {count(found.pruned)} prunings of layers: a denser one takes no longer"
    return Tile(label="Not tried", value=count(found.excluded), note=note)


def _events(session: Session, search_id: str, now: float) -> tuple[EventView, ...]:
    """The latest events, without those that only move the progress bar."""
    query = (
        select(EventRow)
        .where(EventRow.search_id == search_id, EventRow.kind != "progress")
        .order_by(EventRow.seq.desc())
        .limit(SHOWN_EVENTS)
    )
    return tuple(
        EventView(text=_event_words(event.kind, event.data), age_s=now - event.created_at)
        for event in session.scalars(query)
    )


def _event_words(kind: str, data: Mapping[str, Any]) -> str:
    if kind == "message":
        return str(data.get("text", ""))
    if kind == "stage":
        name = str(data.get("stage"))
        return f"Stage: {STAGE_LABELS[JobStage(name)] if name in set(JobStage) else name}"
    if kind == "generation":
        figures = f"{data.get('evaluations')} designs evaluated, {data.get('front')} on the front"
        return f"Generation {data.get('generation')} of {data.get('generations')}: {figures}"
    if kind == "state":
        name = str(data.get("state"))
        return f"State: {JOB_LABELS[JobState(name)].text if name in set(JobState) else name}"
    details = ", ".join(f"{key} {_short(value)}" for key, value in data.items())
    return f"{kind.capitalize()}: {details}" if details else kind.capitalize()


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
