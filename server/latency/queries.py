"""Reading the latency database. Every query is bounded and uses an index; none scans raw samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from device_agent.contracts import ReportStatus, Source, Verdict
from server.models import KernelRow, LatencyRow, MeasurementRow

#: Measurements, or figures of the roll-up, that one part of a list looks through at most, where few of them fit.
LOOKED_THROUGH = 20_000
#: Kernels that fit a filter and are looked up one by one; where more fit, they are met often enough on the way.
FEW_KERNELS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFilter:
    op: str | None = None
    scheme: str | None = None
    in_channels: int | None = None
    out_channels: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementFilter:
    device_id: str | None = None
    kernel_id: str | None = None
    task_id: str | None = None
    setup_id: str | None = None
    runtime: str | None = None
    verdict: Verdict | None = None
    source: Source | None = None
    status: ReportStatus | None = None


def list_kernels(session: Session, wanted: KernelFilter, *, after: str | None, limit: int) -> Sequence[KernelRow]:
    """Kernels in the order of their identity."""
    names = ("op", "scheme", "in_channels", "out_channels")
    conditions = [
        getattr(KernelRow, name) == getattr(wanted, name) for name in names if getattr(wanted, name) is not None
    ]
    query = select(KernelRow).order_by(KernelRow.id).limit(limit)
    if after is not None:
        query = query.where(KernelRow.id > after)
    if conditions:
        # Few are looked up one by one. More of them are met often on the way, as identities are hashes.
        few = session.scalars(select(KernelRow.id).where(*conditions).limit(FEW_KERNELS + 1)).all()
        query = query.where(KernelRow.id.in_(few)) if len(few) <= FEW_KERNELS else query.where(*conditions)
    return session.scalars(query).all()


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementPart:
    """Measurements with their kernels, and the result key to go on below, None at the end.

    There may be fewer than were asked for, even none, and yet one to go on from: a part looks through at most
    `LOOKED_THROUGH` measurements.
    """

    rows: tuple[tuple[MeasurementRow, KernelRow | None], ...]
    following: str | None


def list_measurements(
    session: Session, wanted: MeasurementFilter, *, before: str | None, limit: int
) -> MeasurementPart:
    """Up to `limit` measurements, the newest first: result keys are in the order of time."""
    names = ("task_id", "kernel_id", "device_id", "setup_id", "runtime", "verdict", "source", "status")
    given = {name: getattr(wanted, name) for name in names if getattr(wanted, name) is not None}
    # These have an index; the first of them narrows most.
    leading = next((name for name in names[:3] if name in given), None)
    keys = select(MeasurementRow.result_key).order_by(MeasurementRow.result_key.desc())
    if leading is not None:
        keys = keys.where(getattr(MeasurementRow, leading) == given.pop(leading))
    if before is not None:
        keys = keys.where(MeasurementRow.result_key < before)
    last = session.scalar(keys.offset(LOOKED_THROUGH - 1).limit(1)) if given else None
    query = keys.with_only_columns(MeasurementRow, KernelRow).outerjoin(
        KernelRow, KernelRow.id == MeasurementRow.kernel_id
    )
    for name, value in given.items():
        column = getattr(MeasurementRow, name)
        # A device has many more than a kernel or a task: its index must not be taken in place of theirs.
        query = query.where((column.concat("") if name == "device_id" else column) == value)
    if last is not None:
        query = query.where(MeasurementRow.result_key >= last)
    found = [(row[0], row[1]) for row in session.execute(query.limit(limit + 1))]
    if len(found) > limit:
        return MeasurementPart(rows=tuple(found[:limit]), following=found[limit - 1][0].result_key)
    return MeasurementPart(rows=tuple(found), following=last)


def latencies(session: Session, series_id: str, kernel_ids: Sequence[str]) -> list[LatencyRow]:
    """The roll-up rows of these kernels in one series, the latest first for each kernel."""
    query = select(LatencyRow).where(LatencyRow.series_id == series_id, LatencyRow.kernel_id.in_(kernel_ids))
    return list(session.scalars(query.order_by(LatencyRow.kernel_id, LatencyRow.updated_at.desc())))
