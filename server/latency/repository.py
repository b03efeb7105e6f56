"""Measuring tasks and measurements in SQL: what makes a key, what is stored, and how the roll-up is kept."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import BindParameter, bindparam, func, insert, select, update
from sqlalchemy.orm import Session

from device_agent.contracts import (
    DeviceProfile,
    KernelSpec,
    KernelTask,
    Measurement,
    MeasurementFailure,
    MeasuringSetup,
    NetworkTask,
    ReportStatus,
    RuntimeInfo,
    Source,
    Verdict,
    content_id,
    decode,
    dumps,
    encode,
    kernel_id,
    profile_id,
    setup_id,
    why_unusable,
)
from server.columns import database_time_s, now_s
from server.errors import NotFound, Unprocessable
from server.ids import new_id
from server.latency.series import SeriesKey, ensure_series, series_id, series_key
from server.models import (
    DeviceRow,
    KernelRow,
    LatencyRow,
    MeasurementFailureRow,
    MeasurementRawRow,
    MeasurementRow,
    ProfileRow,
    SeriesRow,
    SetupRow,
    TaskRow,
)
from server.states import TaskState
from server.upsert import insert_missing

Task = KernelTask | NetworkTask

#: How identities of drift checks begin, which their tasks have as `repeat`.
DRIFT_CHECK = "drift"

#: Why a device without an agent gets no tasks; the text continues "device X".
IMPORTED_DEVICE = "is imported: it has no agent that could measure. Name a device that enrolled"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeKey:
    """The part of a measurement's key that the device's present state decides."""

    device_id: str
    profile_id: str
    runtime: str
    runtime_version: str
    runtime_sha256: str
    isa: str
    agent_version: str


def subject_id(task: Task) -> str:
    """What is measured: the kernel's identity, or that of a network's bytes and inputs (without the setup)."""
    if isinstance(task, KernelTask):
        return kernel_id(task.kernel)
    return content_id(
        "a",
        {
            "artifact_sha256": task.artifact_sha256,
            "format": task.format.value,
            "input_shape": task.input_shape,
            "num_outputs": task.num_outputs,
            "input_seed": task.input_seed,
        },
    )


def runtime_key(session: Session, device_id: str, runtime: str) -> RuntimeKey:
    """The key under which `runtime` measures on this device today.

    Raises `NotFound` for an unknown device, and `Unprocessable` where the device has no such runtime or cannot use it.
    """
    device = session.execute(
        select(
            DeviceRow.name,
            DeviceRow.profile_id,
            DeviceRow.runtimes,
            DeviceRow.agent_key_hash,
            DeviceRow.agent_version,
        ).where(DeviceRow.id == device_id)
    ).one_or_none()
    if device is None:
        raise NotFound(f"there is no device {device_id!r}: `kerf devices ls` shows those that enrolled")
    runtimes = tuple(decode(RuntimeInfo, data) for data in device.runtimes)
    reason = IMPORTED_DEVICE if device.agent_key_hash is None else why_unusable(runtimes, runtime)
    if reason is not None:
        raise Unprocessable(f"device {device.name!r} {reason}", code="runtime_unavailable")
    info = next(info for info in runtimes if info.name == runtime)
    return RuntimeKey(
        device_id=device_id,
        profile_id=device.profile_id,
        runtime=runtime,
        runtime_version=info.version,
        runtime_sha256=info.binary_sha256,
        isa=info.isa,
        agent_version=device.agent_version,
    )


def device_source(session: Session, device_id: str) -> Source:
    """Where numbers of this device come from, as it is today."""
    profile = session.execute(select(DeviceRow.profile).where(DeviceRow.id == device_id)).scalar_one()
    return decode(DeviceProfile, profile).source


def ensure_kernels(session: Session, kernels: Iterable[KernelSpec]) -> None:
    rows = {
        identity: {
            "id": identity,
            "op": k.op.value,
            "in_channels": k.in_channels,
            "out_channels": k.out_channels,
            "input_h": k.input_h,
            "input_w": k.input_w,
            "kernel_h": k.kernel_h,
            "kernel_w": k.kernel_w,
            "stride": k.stride,
            "scheme": k.pruning.scheme.value,
            "density": k.pruning.density,
            "spec": encode(k),
        }
        for k, identity in ((k, kernel_id(k)) for k in kernels)
    }
    insert_missing(session, KernelRow, list(rows.values()))


def ensure_setups(session: Session, setups: Iterable[MeasuringSetup]) -> None:
    rows = {setup_id(s): {"id": setup_id(s), "setup": encode(s)} for s in setups}
    insert_missing(session, SetupRow, list(rows.values()))


def ensure_profile(session: Session, profile: DeviceProfile) -> str:
    """Keep a hardware description for as long as measurements name it; returns its identity."""
    identity = profile_id(profile)
    insert_missing(session, ProfileRow, [{"id": identity, "profile": encode(profile)}])
    return identity


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMeasurement:
    """A measurement on its way into the database, as its task was when it was taken."""

    key: SeriesKey
    row: Mapping[str, Any]
    measurement: Measurement
    status: ReportStatus

    @classmethod
    def of(cls, result_key: str, task: TaskRow, measurement: Measurement, status: ReportStatus) -> NewMeasurement:
        p, s = measurement.provenance, measurement.statistics
        key = series_key(device_id=task.device_id, profile_id=task.profile_id, setup_id=task.setup_id, provenance=p)
        row = {
            "result_key": result_key,
            "task_id": task.id,
            "series_id": series_id(key),
            "status": status,
            **provenance_values(key, p.mode),
            "kernel_id": task.kernel_id,
            "artifact_sha256": task.artifact_sha256,
            "verdict": measurement.verdict,
            "reasons": encode(measurement.reasons),
            "median_ns": s.median_ns,
            "ci95_low_ns": s.ci95_low_ns,
            "ci95_high_ns": s.ci95_high_ns,
            "statistics": encode(s),
            "before": encode(measurement.before),
            "after": encode(measurement.after),
            "output_sha256": measurement.output_sha256,
            "memory_bytes": measurement.memory_bytes,
            "duration_s": measurement.duration_s,
        }
        return cls(key=key, row=row, measurement=measurement, status=status)


def store_measurements(session: Session, new: Sequence[NewMeasurement]) -> None:
    """Store measurements with their samples, and take those that are accepted and usable into the roll-up.

    One statement a table for all of them: to build and run one for each measurement is most of what it costs.
    """
    if not new:
        return
    ensure_series(session, [item.key for item in new])
    session.execute(insert(MeasurementRow.__table__), [dict(item.row) for item in new])  # type: ignore[arg-type]
    raw = [{"result_key": item.row["result_key"], "measurement": dumps(item.measurement)} for item in new]
    session.execute(insert(MeasurementRawRow.__table__), raw)  # type: ignore[arg-type]
    count_measurements(session, Counter(item.row["series_id"] for item in new))
    entries: dict[tuple[str, str, str], Latest] = {}
    for item in new:
        row = item.row
        if item.status is not ReportStatus.ACCEPTED or item.measurement.verdict is Verdict.REJECTED:
            continue
        if row["kernel_id"] is None:
            continue
        place = (row["series_id"], row["kernel_id"], row["mode"])
        entry = Latest(
            result_key=row["result_key"],
            verdict=item.measurement.verdict,
            median_ns=row["median_ns"],
            ci95_low_ns=row["ci95_low_ns"],
            ci95_high_ns=row["ci95_high_ns"],
        )
        entries[place] = entries[place].followed_by(entry) if place in entries else entry
    roll_up(session, entries)


def provenance_values(key: SeriesKey, mode: str) -> dict[str, Any]:
    """The columns of a measurement that say where it comes from."""
    values = {field.name: getattr(key, field.name) for field in fields(SeriesKey)}
    return {**values, "affinity": list(key.affinity), "mode": mode}


def count_measurements(session: Session, counts: Mapping[str, int]) -> None:
    """Add to how many measurements each series has."""
    for identity, count in sorted(counts.items()):
        session.execute(
            update(SeriesRow)
            .where(SeriesRow.id == identity)
            .values(num_measurements=SeriesRow.num_measurements + count, last_at=now_s())
            .execution_options(synchronize_session=False)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Latest:
    """The latest of the measurements that go into one row of the roll-up, and how many they are."""

    result_key: str
    verdict: Verdict
    median_ns: float
    ci95_low_ns: float | None
    ci95_high_ns: float | None
    count: int = 1
    min_median_ns: float | None = None
    max_median_ns: float | None = None

    def followed_by(self, later: Latest) -> Latest:
        """Both in one row: the later figure, and the extremes of the two."""
        return dataclasses.replace(
            later,
            count=self.count + later.count,
            min_median_ns=min(self.least_ns, later.least_ns),
            max_median_ns=max(self.greatest_ns, later.greatest_ns),
        )

    @property
    def least_ns(self) -> float:
        return self.median_ns if self.min_median_ns is None else self.min_median_ns

    @property
    def greatest_ns(self) -> float:
        return self.median_ns if self.max_median_ns is None else self.max_median_ns


def roll_up(session: Session, entries: Mapping[tuple[str, str, str], Latest]) -> None:
    """Take usable measurements into the roll-up; keys are (series, kernel, mode)."""
    if not entries:
        return
    names = ("series_id", "kernel_id", "mode")
    rows = [
        {
            **dict(zip(names, key, strict=True)),
            "result_key": entry.result_key,
            "verdict": entry.verdict,
            "median_ns": entry.median_ns,
            "ci95_low_ns": entry.ci95_low_ns,
            "ci95_high_ns": entry.ci95_high_ns,
            "min_median_ns": entry.least_ns,
            "max_median_ns": entry.greatest_ns,
            "num_measurements": entry.count,
        }
        for key, entry in sorted(entries.items())
    ]
    # Reports of one task queue up on its row, but two tasks with `repeat` may share a roll-up row: insert first.
    insert_missing(session, LatencyRow, [{**row, "num_measurements": 0} for row in rows])
    least = func.min if session.get_bind().dialect.name == "sqlite" else func.least
    greatest = func.max if session.get_bind().dialect.name == "sqlite" else func.greatest
    table = LatencyRow.__table__
    latest = ("result_key", "verdict", "median_ns", "ci95_low_ns", "ci95_high_ns")

    def given(name: str) -> BindParameter[Any]:
        return bindparam(f"new_{name}", type_=table.c[name].type)

    session.connection().execute(
        update(LatencyRow.__table__)  # type: ignore[arg-type]
        .where(*(table.c[name] == given(name) for name in names))
        .values(
            **{name: given(name) for name in latest},
            updated_at=now_s(),
            num_measurements=table.c.num_measurements + given("num_measurements"),
            min_median_ns=least(table.c.min_median_ns, given("min_median_ns")),
            max_median_ns=greatest(table.c.max_median_ns, given("max_median_ns")),
        ),
        [{f"new_{name}": value for name, value in row.items()} for row in rows],
    )


def store_failure(
    session: Session, *, task_id: str, attempt: int, failure: MeasurementFailure, status: ReportStatus
) -> None:
    """Keep a failed attempt."""
    session.execute(
        insert(MeasurementFailureRow).values(
            id=new_id("failure"),
            task_id=task_id,
            attempt=attempt,
            status=status,
            reason=failure.reason.value,
            detail=failure.detail,
        )
    )


def raw_measurement(session: Session, result_key: str) -> str | None:
    """A whole measurement as JSON text."""
    return session.execute(
        select(MeasurementRawRow.measurement).where(MeasurementRawRow.result_key == result_key)
    ).scalar_one_or_none()


def existing_tasks(
    session: Session, keys: Mapping[str, RuntimeKey], wanted: Sequence[tuple[str, str]]
) -> list[TaskRow]:
    """Tasks of today's keys for (subject, setup_id) pairs; `keys` maps a runtime's name to its key."""
    setups = {setup for _, setup in wanted}
    found: list[TaskRow] = []
    for key in keys.values():
        subjects = sorted({subject for subject, _ in wanted})
        for start in range(0, len(subjects), 5000):
            found += session.scalars(
                select(TaskRow)
                .where(
                    TaskRow.device_id == key.device_id,
                    TaskRow.profile_id == key.profile_id,
                    TaskRow.subject.in_(subjects[start : start + 5000]),
                    TaskRow.setup_id.in_(setups),
                    TaskRow.runtime == key.runtime,
                    TaskRow.runtime_version == key.runtime_version,
                    TaskRow.runtime_sha256 == key.runtime_sha256,
                )
                .order_by(TaskRow.id)
                .execution_options(populate_existing=True)
            )
    return found


def new_task_row(key: RuntimeKey, task: Task, *, repeat: str, priority: int) -> dict[str, Any]:
    """The columns of a waiting task that is measured under `key`."""
    return {
        "id": new_id("task"),
        "device_id": key.device_id,
        "profile_id": key.profile_id,
        "subject": subject_id(task),
        "kernel_id": kernel_id(task.kernel) if isinstance(task, KernelTask) else None,
        "artifact_sha256": None if isinstance(task, KernelTask) else task.artifact_sha256,
        "setup_id": setup_id(task.setup),
        "runtime": key.runtime,
        "runtime_version": key.runtime_version,
        "runtime_sha256": key.runtime_sha256,
        "repeat": repeat,
        "task": encode(task),
        "priority": priority,
    }


def insert_tasks(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert tasks whose key is not there yet; of two workers that ask at once, one makes the task."""
    insert_missing(session, TaskRow, rows)


def insert_failed_tasks(session: Session, rows: Sequence[tuple[Mapping[str, Any], MeasurementFailure]]) -> None:
    """Insert tasks that are not tried, each with the reason."""
    if not rows:
        return
    now = database_time_s(session)
    failed = [
        {
            **row,
            "state": TaskState.FAILED,
            "failure_reason": failure.reason.value,
            "failure_detail": failure.detail,
            "finished_at": now,
        }
        for row, failure in rows
    ]
    insert_missing(session, TaskRow, failed)
