"""The figures of one series as a latency model takes them: one for each kernel, at one speed of the machine; and which
series have new ones.
"""

from __future__ import annotations

from collections import Counter

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from device_agent.contracts import KernelSpec, Statistics, decode, kernel_id
from search.latency.drift import at_usual_speed, usual_references
from search.latency.families import without_seed
from search.latency.table import KernelLatency, kernel_latency
from server.columns import now_s
from server.models import CardRow, KernelRow, LatencyModelRow, LatencyRow, MeasurementRow, SeriesRow

#: A series that was measured in less than this ago is still growing.
QUIET_S = 5.0


def due_series(
    session: Session, kept: type[CardRow] | type[LatencyModelRow], *is_old: ColumnElement[bool], quiet_s: float
) -> str | None:
    """A series with kernels of which `kept` has nothing, or what is of other measurements or `is_old`."""
    query = (
        select(SeriesRow.id)
        .outerjoin(kept, kept.series_id == SeriesRow.id)
        .where(
            SeriesRow.last_at <= now_s() - quiet_s,
            # A series of whole networks alone has nothing to predict with.
            select(LatencyRow.kernel_id).where(LatencyRow.series_id == SeriesRow.id).exists(),
            or_(kept.series_id.is_(None), kept.num_measurements != SeriesRow.num_measurements, *is_old),
        )
        .order_by(SeriesRow.last_at.desc(), SeriesRow.id)
        .limit(1)
    )
    return session.scalars(query).first()


def series_kernels(session: Session, series_id: str) -> tuple[KernelLatency, ...]:
    """The latest figure of each kernel, brought to one speed of the machine. A kernel that was measured in several
    modes is no one figure, and left out.
    """
    query = (
        select(LatencyRow, KernelRow.spec, MeasurementRow.statistics)
        .join(KernelRow, KernelRow.id == LatencyRow.kernel_id)
        .join(MeasurementRow, MeasurementRow.result_key == LatencyRow.result_key)
        .where(LatencyRow.series_id == series_id)
        .order_by(LatencyRow.updated_at, LatencyRow.kernel_id)
    )
    found = [
        (row, decode(KernelSpec, spec), None if data is None else decode(Statistics, data))
        for row, spec, data in session.execute(query)
    ]
    modes = Counter(row.kernel_id for row, _, _ in found)
    usual = usual_references(statistics for _, _, statistics in found if statistics is not None)
    entries: dict[str, KernelLatency] = {}
    for row, kernel, statistics in found:
        if modes[row.kernel_id] > 1:
            continue
        bare = without_seed(kernel)
        entries[kernel_id(bare)] = (
            _imported(bare, row) if statistics is None else kernel_latency(bare, at_usual_speed(statistics, usual))
        )
    return tuple(entries.values())


def _imported(kernel: KernelSpec, row: LatencyRow) -> KernelLatency:
    """A figure that came without statistics; its interval is one of 95 % of a normal distribution."""
    low, high = row.ci95_low_ns, row.ci95_high_ns
    std_ns = 0.0 if low is None or high is None else (high - low) / (2 * 1.96)
    return KernelLatency(kernel=kernel, latency_ns=row.median_ns, std_ns=std_ns)
