"""Drift checks of series in SQL: what a check is made of, what it is judged by, and where there is an alarm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.orm import Session

from device_agent.contracts import (
    DeviceProfile,
    KernelSpec,
    KernelTask,
    MeasuringSetup,
    ReportStatus,
    RuntimeInfo,
    Statistics,
    Verdict,
    decode,
    encode,
)
from search.latency.sentinels import MIN_FIGURES, Change, DriftFindings, choose_sentinels, compare_with_history
from server.columns import now_s
from server.ids import new_id
from server.latency.repository import DRIFT_CHECK, RuntimeKey, insert_tasks, new_task_row
from server.models import DeviceRow, DriftCheckRow, KernelRow, LatencyRow, MeasurementRow, SeriesRow, SetupRow, TaskRow
from server.searches.tasks import cancel_unwanted
from server.states import DriftOutcome, TaskState
from server.wire import iso

#: A check takes about as long as so many kernels.
NUM_SENTINELS = 5

#: Figures of a series that tell what is usual: enough for any median.
_HISTORY = 2000
#: Searches come first.
_PRIORITY = -1

_OVER = (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftCheckView:
    """One check. `reference` and `kernels` are ratios of now to before, with the limits within which they agree;
    `outcome` is None while it is being measured.
    """

    id: str
    outcome: DriftOutcome | None
    reference: Change | None
    kernels: dict[str, Change]
    created_at: str | None
    finished_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftView:
    """The drift state of a series: since when there is an alarm, if there is one, and its checks, the latest first."""

    alarm_since: str | None
    checks: tuple[DriftCheckView, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredCheck:
    """A check with what it found; None while it is open."""

    row: DriftCheckRow
    findings: DriftFindings | None


def is_current(series: SeriesRow, device: DeviceRow) -> bool:
    """Whether the device, as it is now, would measure in this series, as far as that is known before it does."""
    if (series.profile_id, series.agent_version) != (device.profile_id, device.agent_version):
        return False
    if device.agent_key_hash is None or series.source is not decode(DeviceProfile, device.profile).source:
        return False
    own = (series.runtime_version, series.runtime_sha256, series.isa)
    infos = (decode(RuntimeInfo, data) for data in device.runtimes)
    return any(
        info.name == series.runtime and not info.unavailable and own == (info.version, info.binary_sha256, info.isa)
        for info in infos
    )


def due_series(session: Session, device: DeviceRow, interval_s: float) -> SeriesRow | None:
    """The series of the device that has waited longest for a check, and at least `interval_s` since its last one, or
    since it began. One at a time: None while a check of the device is open.
    """
    checks = (
        select(DriftCheckRow.series_id, func.max(DriftCheckRow.created_at).label("last_at"))
        .where(DriftCheckRow.device_id == device.id)
        .group_by(DriftCheckRow.series_id)
        .subquery()
    )
    is_open = select(DriftCheckRow.id).where(DriftCheckRow.device_id == device.id, DriftCheckRow.finished_at.is_(None))
    if session.scalars(is_open.limit(1)).first() is not None:
        return None
    waited_from = func.coalesce(checks.c.last_at, SeriesRow.first_at)
    rows = session.scalars(
        select(SeriesRow)
        .outerjoin(checks, checks.c.series_id == SeriesRow.id)
        .where(SeriesRow.device_id == device.id, waited_from <= now_s() - interval_s)
        .order_by(waited_from, SeriesRow.id)
    )
    return next((row for row in rows if is_current(row, device) and _has_sentinels(session, row.id)), None)


def _has_sentinels(session: Session, series_id: str) -> bool:
    query = select(LatencyRow.kernel_id).where(LatencyRow.series_id == series_id).distinct().limit(MIN_FIGURES)
    return len(session.scalars(query).all()) == MIN_FIGURES


def make_check(session: Session, series: SeriesRow) -> str:
    """Ask for the sentinels of a series with its own setup; returns the check's identity.

    The sentinels of a series stay the same, so that each has a history.
    """
    check_id = new_id(DRIFT_CHECK)
    last = _latest_checks(session, series.id, limit=1)
    if last:
        kernel_ids = tuple(last[0].kernel_ids)
    else:
        query = select(LatencyRow.kernel_id, LatencyRow.median_ns).where(LatencyRow.series_id == series.id)
        medians = {row.kernel_id: row.median_ns for row in session.execute(query)}
        kernel_ids = choose_sentinels(medians, NUM_SENTINELS, series.id)
    setup = decode(MeasuringSetup, session.get_one(SetupRow, series.setup_id).setup)
    key = RuntimeKey(
        device_id=series.device_id,
        profile_id=series.profile_id,
        runtime=series.runtime,
        runtime_version=series.runtime_version,
        runtime_sha256=series.runtime_sha256,
        isa=series.isa,
        agent_version=series.agent_version,
    )
    specs = [decode(KernelSpec, session.get_one(KernelRow, kernel).spec) for kernel in kernel_ids]
    rows = [
        new_task_row(key, KernelTask(kernel=spec, setup=setup), repeat=check_id, priority=_PRIORITY) for spec in specs
    ]
    insert_tasks(session, rows)
    session.execute(
        insert(DriftCheckRow).values(
            id=check_id,
            series_id=series.id,
            device_id=series.device_id,
            kernel_ids=list(kernel_ids),
            task_ids=[row["id"] for row in rows],
        )
    )
    return check_id


def finished_checks(session: Session, *, max_age_s: float) -> list[DriftCheckRow]:
    """Open checks whose tasks are all over, or that have waited for longer than `max_age_s`."""
    query = select(DriftCheckRow, (DriftCheckRow.created_at < now_s() - max_age_s).label("is_late"))
    found = []
    for check, is_late in session.execute(query.where(DriftCheckRow.finished_at.is_(None))):
        waiting = select(TaskRow.id).where(TaskRow.id.in_(check.task_ids), TaskRow.state.not_in(_OVER))
        if is_late or session.scalars(waiting.limit(1)).first() is None:
            found.append(check)
    return found


def judged(session: Session, check: DriftCheckRow) -> DriftFindings:
    """What the check's measurements say against those that its series had before. Reads only."""
    series = check.series_id
    query = select(MeasurementRow).where(MeasurementRow.task_id.in_(check.task_ids))
    now: dict[str, list[Statistics]] = defaultdict(list)
    unusable = []
    for row in session.scalars(query.where(MeasurementRow.status == ReportStatus.ACCEPTED)):
        # Another key, such as another governor, is another series: it says nothing about this one.
        if row.series_id != series or row.statistics is None or row.kernel_id is None:
            continue
        statistics = decode(Statistics, row.statistics)
        if row.verdict is Verdict.REJECTED:
            unusable.append(statistics)
        else:
            now[row.kernel_id].append(statistics)
    history = _history(session, check)
    before: dict[str, list[Statistics]] = defaultdict(list)
    for kernel_id, statistics in history:
        before[kernel_id].append(statistics)
    return compare_with_history(now, before, [statistics for _, statistics in history], unusable)


def _history(session: Session, check: DriftCheckRow) -> list[tuple[str, Statistics]]:
    """Usable figures of the series from before the check. Those of checks that did not agree are none: a drift that
    lasts would become the rule that it is judged by.
    """
    agreed = select(DriftCheckRow.id).where(
        DriftCheckRow.series_id == check.series_id, DriftCheckRow.outcome == DriftOutcome.AGREES
    )
    query = (
        select(MeasurementRow.kernel_id, MeasurementRow.statistics)
        .join(TaskRow, TaskRow.id == MeasurementRow.task_id)
        .where(
            MeasurementRow.series_id == check.series_id,
            MeasurementRow.status == ReportStatus.ACCEPTED,
            MeasurementRow.verdict != Verdict.REJECTED,
            MeasurementRow.kernel_id.is_not(None),
            MeasurementRow.created_at <= check.created_at,
            or_(TaskRow.repeat.not_like(f"{DRIFT_CHECK}%"), TaskRow.repeat.in_(agreed)),
        )
        # The sentinels' own figures first: the limit must not cut them off.
        .order_by(MeasurementRow.kernel_id.in_(check.kernel_ids).desc(), MeasurementRow.result_key.desc())
        .limit(_HISTORY)
    )
    return [(str(kernel), decode(Statistics, data)) for kernel, data in session.execute(query) if data is not None]


def close_check(session: Session, check: DriftCheckRow, findings: DriftFindings) -> DriftOutcome | None:
    """Store how a check ended; None where another process did so before."""
    outcome = {True: DriftOutcome.DRIFTED, False: DriftOutcome.AGREES, None: DriftOutcome.INCONCLUSIVE}[
        findings.has_drifted
    ]
    earlier = [row for row in _latest_checks(session, check.series_id, limit=2) if row.id != check.id]
    before = earlier[0].alarm_since if earlier else None
    since = {DriftOutcome.AGREES: None, DriftOutcome.INCONCLUSIVE: before}
    alarm_since = since[outcome] if outcome in since else (now_s() if before is None else before)
    closed = session.execute(
        update(DriftCheckRow)
        .where(DriftCheckRow.id == check.id, DriftCheckRow.finished_at.is_(None))
        .values(outcome=outcome, findings=encode(findings), alarm_since=alarm_since, finished_at=now_s())
        .returning(DriftCheckRow.id)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    cancel_unwanted(session, check.task_ids)
    return None if closed is None else outcome


def alarms(session: Session, device_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """By device, those of its present series that have drifted. A series that nothing is measured in any more has no
    alarm: it could never be cleared.
    """
    latest = (
        select(func.max(DriftCheckRow.id))
        .where(DriftCheckRow.device_id.in_(device_ids), DriftCheckRow.finished_at.is_not(None))
        .group_by(DriftCheckRow.series_id)
    )
    query = (
        select(SeriesRow, DeviceRow)
        .join(DriftCheckRow, DriftCheckRow.series_id == SeriesRow.id)
        .join(DeviceRow, DeviceRow.id == SeriesRow.device_id)
        .where(DriftCheckRow.id.in_(latest), DriftCheckRow.alarm_since.is_not(None))
        .order_by(SeriesRow.id)
    )
    found: dict[str, tuple[str, ...]] = {}
    for series, device in session.execute(query):
        if is_current(series, device):
            found[device.id] = (*found.get(device.id, ()), series.id)
    return found


def drift_view(session: Session, series_id: str, *, limit: int = 10) -> DriftView:
    """The drift state of a series with its latest checks."""
    checks = checks_of(session, series_id, limit=limit)
    finished = [check.row for check in checks if check.row.finished_at is not None]
    views = tuple(
        DriftCheckView(
            id=check.row.id,
            outcome=check.row.outcome,
            reference=None if check.findings is None else check.findings.reference,
            kernels={} if check.findings is None else dict(check.findings.kernels),
            created_at=iso(check.row.created_at),
            finished_at=iso(check.row.finished_at),
        )
        for check in checks
    )
    return DriftView(alarm_since=iso(finished[0].alarm_since) if finished else None, checks=views)


def checks_of(session: Session, series_id: str, *, limit: int) -> list[StoredCheck]:
    """The checks of a series, the latest first."""
    return [
        StoredCheck(row=row, findings=None if row.findings is None else decode(DriftFindings, row.findings))
        for row in _latest_checks(session, series_id, limit=limit)
    ]


def _latest_checks(session: Session, series_id: str, *, limit: int) -> list[DriftCheckRow]:
    """Identities are in the order of time."""
    query = select(DriftCheckRow).where(DriftCheckRow.series_id == series_id)
    return list(session.scalars(query.order_by(DriftCheckRow.id.desc()).limit(limit)))
