"""/metrics in the form of Prometheus.

Counters are of this process, counted as things happen. Gauges are of the whole service, read from the database when
somebody asks: a handful of statements on indices of what is open, whose cost does not grow with what was ever measured.
With several API processes, each exports the same gauges: take `max`, and `sum` of the counters. Only room on the disk
is each process's own: take `min`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.security.utils import get_authorization_scheme_param
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from sqlalchemy import ColumnElement, case, func, literal_column, select
from sqlalchemy.orm import Session

from server.accounts.service import Scope
from server.columns import database_time_s, now_s
from server.context import Context, ContextDep, admitted
from server.dashboard.session import is_local
from server.errors import Forbidden, Unauthorized
from server.fleet.devices import MISSED_HEARTBEATS, DeviceState
from server.models import DeviceRow, SearchRow, TaskRow
from server.searches.visibility import is_of, sees_only
from server.workers.endpoints import state_of
from server.workers.repository import list_workers

router = APIRouter(include_in_schema=False)

#: Of each; more would make a scrape slow, and nobody reads so many lines.
MAX_WORKERS = 10_000
MAX_SEARCHES = 200

#: Written out, not bound: a partial index serves only a query that says its condition as the index does.
_PENDING: ColumnElement[Any] = literal_column("'pending'")
_LEASED: ColumnElement[Any] = literal_column("'leased'")


class DatabaseGauges(Collector):
    """The whole service as the database has it now, with the searches of `owner` one by one; None is everybody."""

    def __init__(self, context: Context, owner: str | None) -> None:
        self._context = context
        self._owner = owner

    def collect(self) -> Iterator[Metric]:
        free_bytes = shutil.disk_usage(self._context.settings.data_dir).free
        yield GaugeMetricFamily(
            "kerf_data_free_bytes", "Room where this process keeps its data", value=float(free_bytes)
        )
        with self._context.database.read() as session:
            yield from _tasks(session, self._context.settings.lease_duration_s)
            yield from _devices(session, self._context.settings.heartbeat_interval_s)
            yield from _workers(session)
            yield from _searches(session, self._owner)


def _devices(session: Session, heartbeat_interval_s: float) -> Iterator[Metric]:
    is_silent = DeviceRow.last_seen_at < now_s() - MISSED_HEARTBEATS * heartbeat_interval_s
    state = case(
        (DeviceRow.agent_key_hash.is_(None), DeviceState.IMPORTED.value),
        (DeviceRow.enabled.is_(False), DeviceState.DISABLED.value),
        (is_silent, DeviceState.OFFLINE.value),
        else_=DeviceState.ONLINE.value,
    ).label("state")
    found = dict.fromkeys((state.value for state in DeviceState), 0)
    for name, count in session.execute(select(state, func.count()).group_by("state")):
        found[name] = count
    yield _counted(GaugeMetricFamily("kerf_devices", "Devices by their state", labels=["state"]), found)


def _tasks(session: Session, lease_duration_s: float) -> Iterator[Metric]:
    now = database_time_s(session)
    is_pending, is_leased = TaskRow.state == _PENDING, TaskRow.state == _LEASED
    # Identities are in the order of making, and are in the index.
    num_pending, first = session.execute(select(func.count(), func.min(TaskRow.id)).where(is_pending)).one()
    oldest = None if first is None else session.scalar(select(TaskRow.created_at).where(TaskRow.id == first))
    num_leased, first_end, overdue = session.execute(
        select(
            func.count(),
            func.min(TaskRow.lease_expires_at),
            func.count().filter(TaskRow.lease_expires_at < now_s()),
        ).where(is_leased)
    ).one()
    family = GaugeMetricFamily("kerf_tasks", "Measuring tasks that are open, by their state", labels=["state"])
    yield _counted(family, {"pending": num_pending, "leased": num_leased})
    yield GaugeMetricFamily(
        "kerf_oldest_pending_task_age_seconds",
        "How long ago the oldest waiting task was asked for; 0 without any",
        value=0.0 if oldest is None else max(0.0, now - oldest),
    )
    yield GaugeMetricFamily(
        "kerf_lease_next_end_seconds",
        "When the next lease ends unless it is renewed, below 0 where it is over; 0 without any",
        value=0.0 if first_end is None else first_end - now,
    )
    yield GaugeMetricFamily(
        "kerf_oldest_lease_age_seconds",
        "How long ago the lease that ends next was lent or renewed; 0 without any",
        value=0.0 if first_end is None else max(0.0, now - first_end + lease_duration_s),
    )
    yield GaugeMetricFamily("kerf_leases_overdue", "Leases that are over and not collected yet", value=float(overdue))


def _workers(session: Session) -> Iterator[Metric]:
    family = GaugeMetricFamily("kerf_workers", "Workers by their state", labels=["state"])
    found = {"idle": 0, "busy": 0, "silent": 0}
    for status in list_workers(session, limit=MAX_WORKERS):
        found[state_of(status).value] += 1
    yield _counted(family, found)


def _searches(session: Session, owner: str | None) -> Iterator[Metric]:
    now = database_time_s(session)
    states = GaugeMetricFamily("kerf_searches", "Searches that are not over, by their state", labels=["state"])
    found: dict[str, int] = {}
    query = select(SearchRow.state, func.count()).where(SearchRow.finished_at.is_(None)).group_by(SearchRow.state)
    for state, count in session.execute(query):
        found[state.value] = count
    yield _counted(states, found)
    labels = ["search_id", "stage"]
    progress = GaugeMetricFamily(
        "kerf_search_stage_progress_ratio", "How much of its present stage an open search has done", labels=labels
    )
    silence = GaugeMetricFamily(
        "kerf_search_heartbeat_age_seconds", "How long the worker of a running search is silent", labels=labels
    )
    rows = session.execute(
        select(SearchRow.id, SearchRow.stage, SearchRow.progress, SearchRow.heartbeat_at, SearchRow.worker)
        .where(SearchRow.finished_at.is_(None), is_of(owner))
        .order_by(SearchRow.id)
        .limit(MAX_SEARCHES)
    )
    for row in rows:
        total = float(row.progress.get("total", 0) or 0)
        if total > 0:
            progress.add_metric([row.id, row.stage.value], min(1.0, float(row.progress.get("done", 0)) / total))
        if row.worker is not None and row.heartbeat_at is not None:
            silence.add_metric([row.id, row.stage.value], max(0.0, now - row.heartbeat_at))
    yield progress
    yield silence


def _counted(family: GaugeMetricFamily, counts: dict[str, int]) -> GaugeMetricFamily:
    for name, count in counts.items():
        family.add_metric([name], float(count))
    return family


def _require_reader(request: Request, context: Context) -> str | None:
    """Whoever reads /metrics has a token that may read, or is on this machine, or the setting lets all. Raises.

    Returns the user whose searches alone are named; None for all.
    """
    if context.settings.open_metrics:
        return None
    scheme, token = get_authorization_scheme_param(request.headers.get("authorization"))
    if scheme.lower() == "bearer":
        principal = admitted(request, context, token)
        if not principal.may(Scope.READ):
            raise Forbidden("this needs the scope 'read'")
        return sees_only(context.settings, principal)
    if not is_local(request):
        raise Unauthorized(
            "send a token with the scope 'read', or set KERF_OPEN_METRICS=1 in a network that only Prometheus reaches",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return None


@router.get("/metrics")
def metrics(request: Request, context: ContextDep) -> Response:
    """Counters of this process and gauges of the whole service, for Prometheus."""
    owner = _require_reader(request, context)
    gauges = CollectorRegistry()
    gauges.register(DatabaseGauges(context, owner))
    content = generate_latest(context.counters.registry) + generate_latest(gauges)
    return Response(content, media_type=CONTENT_TYPE_LATEST)
