"""What pruning gains on a device: the stored kernels of one series beside their dense ones."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from sqlalchemy.orm import Session

from device_agent.contracts import KernelSpec, Verdict
from search.latency.comparison import Figure
from search.latency.profit import Profit, count_profits, profits
from server.latency.figures import StoredFigure, stored_figures
from server.latency.listing import MAX_COMPARED
from server.latency.schemas import SeriesView


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
    found: dict[KernelSpec, list[StoredFigure]] = defaultdict(list)
    for item in stored_figures(session, series_id, limit=MAX_COMPARED):
        found[item.kernel].append(item)
    figures, noisy = {}, set()
    for kernel, items in found.items():
        if len({item.row.mode for item in items}) > 1:
            continue
        row = items[-1].row
        usually = items[-1].statistics or row
        figures[kernel] = Figure.of(usually.median_ns, usually.ci95_low_ns, usually.ci95_high_ns)
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
