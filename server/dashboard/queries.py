"""Reads what the pages show. Everything is bounded: a page's cost does not grow with the size of the database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from device_agent.contracts import KernelSpec, NetworkTask, Verdict, VerdictReason, decode
from server.columns import database_time_s
from server.dashboard.devices import condition_facts, described, device_view, hardware_facts
from server.dashboard.pages import DevicePage, MeasurementView, OverviewPage
from server.dashboard.searches import search_rows
from server.dashboard.series import series_views
from server.dashboard.wording import VERDICT_LABELS, kernel_words, network_words, reason_texts
from server.fleet.repository import get_device, list_devices
from server.latency.series import series_of_device
from server.models import DeviceRow, KernelRow, MeasurementRow, TaskRow

#: Rows of each list: about what a reader takes in; REST has the rest.
SHOWN_SEARCHES = 20
SHOWN_DEVICES = 60
SHOWN_MEASUREMENTS = 15
SHOWN_DEVICE_MEASUREMENTS = 30
SHOWN_SERIES = 12
#: Of each device, for how far it can be trusted at present.
JUDGED_MEASUREMENTS = 100


def overview(session: Session, *, heartbeat_interval_s: float, owner: str | None = None) -> OverviewPage:
    """Searches (of `owner`) and measurements, the latest first, and the devices by name."""
    now = database_time_s(session)
    searches = search_rows(session, now, limit=SHOWN_SEARCHES + 1, owner=owner)
    devices = list_devices(session, after=None, limit=SHOWN_DEVICES + 1)
    shown = devices[:SHOWN_DEVICES]
    judged = latest_verdicts(session, [status.row.id for status in shown])
    views = [
        device_view(status, described(status.row), heartbeat_interval_s, judged[status.row.id]) for status in shown
    ]
    return OverviewPage(
        searches=searches[:SHOWN_SEARCHES],
        more_searches=len(searches) > SHOWN_SEARCHES,
        devices=tuple(sorted(views, key=lambda view: view.name.lower())),
        more_devices=len(devices) > SHOWN_DEVICES,
        measurements=measurement_views(session, now, limit=SHOWN_MEASUREMENTS),
    )


def device_page(session: Session, device_id: str, *, heartbeat_interval_s: float) -> DevicePage:
    """One device. Raises `NotFound`."""
    status = get_device(session, device_id)
    now = database_time_s(session)
    series = series_of_device(session, device_id, limit=SHOWN_SERIES + 1)
    said = described(status.row)
    return DevicePage(
        device=device_view(status, said, heartbeat_interval_s),
        hardware=hardware_facts(said.profile),
        conditions=condition_facts(said.conditions, status.row.spooled_reports),
        series=series_views(series[:SHOWN_SERIES], now),
        more_series=len(series) > SHOWN_SERIES,
        measurements=measurement_views(session, now, limit=SHOWN_DEVICE_MEASUREMENTS, device_id=device_id),
    )


def latest_verdicts(session: Session, device_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """For each device, how many of its latest `JUDGED_MEASUREMENTS` are trusted, and how many there are."""
    latest = (
        select(MeasurementRow.verdict)
        .where(MeasurementRow.device_id == DeviceRow.id)
        .order_by(MeasurementRow.result_key.desc())
        .limit(JUDGED_MEASUREMENTS)
        .correlate(DeviceRow)
        .subquery()
    )
    count = select(func.count()).select_from(latest)
    trusted = count.where(latest.c.verdict == Verdict.TRUSTED)
    query = select(DeviceRow.id, trusted.scalar_subquery(), count.scalar_subquery()).where(DeviceRow.id.in_(device_ids))
    return {device_id: (num_trusted, num_all) for device_id, num_trusted, num_all in session.execute(query)}


def measurement_views(
    session: Session,
    now: float,
    *,
    limit: int,
    device_id: str | None = None,
    series_id: str | None = None,
    kernel_id: str | None = None,
) -> tuple[MeasurementView, ...]:
    """The latest measurements that fit."""
    query = latest_measurements_query(limit=limit, device_id=device_id, series_id=series_id, kernel_id=kernel_id)
    return tuple(
        _measurement_view(measurement, device_name, spec, task, now)
        for measurement, device_name, spec, task in session.execute(query)
    )


def latest_measurements_query(
    *, limit: int, device_id: str | None = None, series_id: str | None = None, kernel_id: str | None = None
) -> Select[MeasurementRow, str, dict[str, Any], dict[str, Any]]:
    # Result keys are ordered by the time that the agent made them, and are the one index in the order of time.
    query = (
        select(MeasurementRow, DeviceRow.name, KernelRow.spec, TaskRow.task)
        .join(DeviceRow, DeviceRow.id == MeasurementRow.device_id)
        .outerjoin(TaskRow, TaskRow.id == MeasurementRow.task_id)
        .outerjoin(KernelRow, KernelRow.id == MeasurementRow.kernel_id)
        .order_by(MeasurementRow.result_key.desc())
        .limit(limit)
    )
    if device_id is not None:
        query = query.where(MeasurementRow.device_id == device_id)
    if series_id is not None:
        query = query.where(MeasurementRow.series_id == series_id)
    if kernel_id is not None:
        query = query.where(MeasurementRow.kernel_id == kernel_id)
    return query


def _measurement_view(
    measurement: MeasurementRow, device_name: str, spec: dict[str, Any] | None, task: dict[str, Any], now: float
) -> MeasurementView:
    what, detail = network_words(decode(NetworkTask, task)) if spec is None else kernel_words(decode(KernelSpec, spec))
    low, high = measurement.ci95_low_ns, measurement.ci95_high_ns
    return MeasurementView(
        what=what,
        detail=detail,
        device_id=measurement.device_id,
        device_name=device_name,
        runtime=measurement.runtime,
        runtime_version=measurement.runtime_version,
        source=measurement.source.value,
        median_ns=measurement.median_ns,
        ci95_ns=None if low is None or high is None else (low, high),
        verdict=VERDICT_LABELS[measurement.verdict],
        reasons=reason_texts(tuple(VerdictReason(reason) for reason in measurement.reasons)),
        age_s=now - measurement.created_at,
    )
