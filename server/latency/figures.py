"""The figures of one series as a latency model takes them: one for each kernel, at one speed of the machine; and which
series have new ones.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from device_agent.contracts import KernelSpec, Statistics, decode, kernel_id
from search.latency.drift import at_usual_speed, usual_references
from search.latency.families import without_seed
from search.latency.table import KernelLatency, kernel_latency
from search.normal import SIGMAS_OF_95_PERCENT
from server.columns import now_s
from server.models import CardRow, KernelRow, LatencyModelRow, LatencyRow, MeasurementRow, ProfitRow, SeriesRow

#: A series that was measured in less than this ago is still growing.
QUIET_S = 5.0
#: Figures of a series that a card or a model is made of: ten times what a model takes, and seconds of a worker's time.
MAX_FIGURES = 20_000


def due_series(
    session: Session,
    kept: type[CardRow] | type[LatencyModelRow] | type[ProfitRow],
    *is_old: ColumnElement[bool],
    quiet_s: float,
    only: ColumnElement[bool] | None = None,
) -> str | None:
    """A series with kernels of which `kept` has nothing, or what is of other measurements or `is_old`; `only` of those
    that fit.
    """
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
    return session.scalars(query if only is None else query.where(only)).first()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFigure:
    """A figure of a kernel (seed 0). `statistics` are at the usual speed of the series; None where it was imported
    without.
    """

    kernel: KernelSpec
    row: LatencyRow
    statistics: Statistics | None


def stored_figures(session: Session, series_id: str, *, limit: int = MAX_FIGURES) -> list[StoredFigure]:
    """The latest usable figures of a series, one for each kernel and mode, the latest last; brought to one speed of the
    machine by the reference kernel in each measurement. Of more than `limit` a part drawn by chance.
    """
    # Identities of kernels are hashes: the first of them are drawn by chance.
    drawn = (
        select(LatencyRow.kernel_id, LatencyRow.mode)
        .where(LatencyRow.series_id == series_id)
        .order_by(LatencyRow.kernel_id, LatencyRow.mode)
        .limit(limit)
        .subquery()
    )
    query = (
        select(LatencyRow, KernelRow.spec, MeasurementRow.statistics)
        .join(drawn, (drawn.c.kernel_id == LatencyRow.kernel_id) & (drawn.c.mode == LatencyRow.mode))
        .join(KernelRow, KernelRow.id == LatencyRow.kernel_id)
        .join(MeasurementRow, MeasurementRow.result_key == LatencyRow.result_key)
        .where(LatencyRow.series_id == series_id)
        .order_by(LatencyRow.updated_at, LatencyRow.kernel_id, LatencyRow.mode)
    )
    found = [
        (row, without_seed(decode(KernelSpec, spec)), None if data is None else decode(Statistics, data))
        for row, spec, data in session.execute(query)
    ]
    usual = usual_references(statistics for _, _, statistics in found if statistics is not None)
    return [
        StoredFigure(
            kernel=kernel, row=row, statistics=None if statistics is None else at_usual_speed(statistics, usual)
        )
        for row, kernel, statistics in found
    ]


def series_kernels(session: Session, series_id: str) -> tuple[KernelLatency, ...]:
    """The latest figure of each kernel, of at most `MAX_FIGURES` drawn by chance. A kernel that was measured in several
    modes is no one figure, and left out.
    """
    found = stored_figures(session, series_id)
    modes = Counter(item.row.kernel_id for item in found)
    entries: dict[str, KernelLatency] = {}
    for item in found:
        if modes[item.row.kernel_id] > 1:
            continue
        entries[kernel_id(item.kernel)] = (
            _imported(item.kernel, item.row)
            if item.statistics is None
            else kernel_latency(item.kernel, item.statistics)
        )
    return tuple(entries.values())


def _imported(kernel: KernelSpec, row: LatencyRow) -> KernelLatency:
    """A figure that came without statistics; its interval is one of 95 % of a normal distribution."""
    low, high = row.ci95_low_ns, row.ci95_high_ns
    std_ns = 0.0 if low is None or high is None else (high - low) / (2 * SIGMAS_OF_95_PERCENT)
    return KernelLatency(kernel=kernel, latency_ns=row.median_ns, std_ns=std_ns)
