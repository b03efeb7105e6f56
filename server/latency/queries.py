"""Reading the latency database. Every query is bounded and uses an index; none scans raw samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from device_agent.contracts import ReportStatus, Source, Verdict
from server.models import KernelRow, LatencyRow, MeasurementRow


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
    query = select(KernelRow).order_by(KernelRow.id).limit(limit)
    for name in ("op", "scheme", "in_channels", "out_channels"):
        value = getattr(wanted, name)
        if value is not None:
            query = query.where(getattr(KernelRow, name) == value)
    if after is not None:
        query = query.where(KernelRow.id > after)
    return session.scalars(query).all()


def list_measurements(
    session: Session, wanted: MeasurementFilter, *, before: str | None, limit: int
) -> Sequence[tuple[MeasurementRow, KernelRow | None]]:
    """Measurements and their kernels, the newest first: result keys are in the order of time."""
    query = (
        select(MeasurementRow, KernelRow)
        .outerjoin(KernelRow, KernelRow.id == MeasurementRow.kernel_id)
        .order_by(MeasurementRow.result_key.desc())
        .limit(limit)
    )
    for name in ("device_id", "kernel_id", "task_id", "setup_id", "runtime", "verdict", "source", "status"):
        value = getattr(wanted, name)
        if value is not None:
            query = query.where(getattr(MeasurementRow, name) == value)
    if before is not None:
        query = query.where(MeasurementRow.result_key < before)
    return [(row[0], row[1]) for row in session.execute(query)]


def latencies(session: Session, series_id: str, kernel_ids: Sequence[str]) -> list[LatencyRow]:
    """The roll-up rows of these kernels in one series, the latest first for each kernel."""
    query = select(LatencyRow).where(LatencyRow.series_id == series_id, LatencyRow.kernel_id.in_(kernel_ids))
    return list(session.scalars(query.order_by(LatencyRow.kernel_id, LatencyRow.updated_at.desc())))
