"""What pruning gains on a device: the stored kernels of one series beside their dense ones."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from device_agent.contracts import KernelSpec, Statistics, Verdict, decode
from search.latency.comparison import Figure
from search.latency.drift import at_usual_speed, usual_references
from search.latency.families import without_seed
from search.latency.profit import Profit, count_profits, profits
from server.latency.listing import MAX_COMPARED
from server.latency.schemas import SeriesView
from server.models import KernelRow, LatencyRow, MeasurementRow


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelProfit:
    """`speed_up` is dense / pruned. `pays` is null where the interval leaves both open, or there is none; `dense_ns` is
    null where no dense kernel of this shape was measured in the series. Noisy figures are told as such.
    """

    kernel: KernelSpec
    pruned_ns: float
    dense_ns: float | None
    speed_up: float | None
    speed_up_ci95: tuple[float, float] | None
    pays: bool | None
    is_noisy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfitMap:
    """Pruned kernels of one series. Counts say how many pay, cost and are open beyond noise, and for how many there is
    no dense kernel; `ambiguous` kernels were measured in several modes and are in none of them.
    """

    series: SeriesView
    paying: int
    costing: int
    undecided: int
    without_dense: int
    ambiguous: int
    kernels: tuple[KernelProfit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesFigures:
    """Medians at the usual speed of the series, kernels with seed 0; those of several modes are counted only."""

    figures: dict[KernelSpec, Figure]
    noisy: frozenset[KernelSpec]
    ambiguous: int


def series_figures(session: Session, series_id: str) -> SeriesFigures:
    """The latest usable figure of each kernel of a series, brought to one speed of the machine by the reference kernel
    in each measurement. One that was imported without statistics stays as it is.
    """
    query = (
        select(LatencyRow, MeasurementRow.statistics, KernelRow.spec)
        .join(MeasurementRow, MeasurementRow.result_key == LatencyRow.result_key)
        .join(KernelRow, KernelRow.id == LatencyRow.kernel_id)
        .where(LatencyRow.series_id == series_id)
        .order_by(LatencyRow.updated_at, LatencyRow.kernel_id, LatencyRow.mode)
        .limit(MAX_COMPARED)
    )
    found: dict[KernelSpec, list[tuple[LatencyRow, Statistics | None]]] = defaultdict(list)
    for row, statistics, spec in session.execute(query):
        kernel = without_seed(decode(KernelSpec, spec))
        found[kernel].append((row, None if statistics is None else decode(Statistics, statistics)))
    usual = usual_references(s for rows in found.values() for _, s in rows if s is not None)
    figures, noisy = {}, set()
    for kernel, rows in found.items():
        if len({row.mode for row, _ in rows}) > 1:
            continue
        row, statistics = rows[-1]
        if statistics is None:
            figures[kernel] = _figure(row.median_ns, row.ci95_low_ns, row.ci95_high_ns)
        else:
            usually = at_usual_speed(statistics, usual)
            figures[kernel] = _figure(usually.median_ns, usually.ci95_low_ns, usually.ci95_high_ns)
        if row.verdict is Verdict.NOISY:
            noisy.add(kernel)
    return SeriesFigures(figures=figures, noisy=frozenset(noisy), ambiguous=len(found) - len(figures))


def profit_map(series: SeriesView, found: SeriesFigures) -> ProfitMap:
    """The map of a series, by shape, then scheme, then density."""
    items = profits(found.figures)
    counts = count_profits(items)
    return ProfitMap(
        series=series,
        paying=counts.paying,
        costing=counts.costing,
        undecided=counts.undecided,
        without_dense=counts.without_dense,
        ambiguous=found.ambiguous,
        kernels=tuple(_view(item, found) for item in items),
    )


def _view(item: Profit, found: SeriesFigures) -> KernelProfit:
    return KernelProfit(
        kernel=item.kernel,
        pruned_ns=item.pruned.median,
        dense_ns=None if item.dense is None else item.dense.median,
        speed_up=None if item.speed_up is None else item.speed_up.ratio,
        speed_up_ci95=None if item.speed_up is None else item.speed_up.ci95,
        pays=item.pays,
        is_noisy=not found.noisy.isdisjoint({item.kernel, item.dense_kernel}),
    )


def _figure(median_ns: float, low_ns: float | None, high_ns: float | None) -> Figure:
    return Figure(median=median_ns, ci95=None if low_ns is None or high_ns is None else (low_ns, high_ns))
