"""The profit map of a series as its page shows it: a table of shapes and densities, one scheme at a time."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from device_agent.contracts import KernelSpec
from search.domain.space import SchemeChoice
from search.latency.profit import Profit, count_profits, profits
from server.dashboard.pages import DeviceLink, ProfitCell, ProfitPage, ProfitRow, SchemeLink, Tile
from server.dashboard.series import series_views
from server.dashboard.wording import scheme_words, shape_words
from server.errors import NotFound
from server.latency.profit import SeriesFigures, series_figures
from server.latency.series import get_series
from server.models import DeviceRow

#: Rows of one page of the map.
SHOWN_SHAPES = 40
#: More densities than this are put together by tenths.
MAX_COLUMNS = 12
_TENTHS = 10

#: Speed-ups, and their inverses, from which on a cell has the next stronger colour.
_STRONGER = (1.25, 2.0)


def profit_page(session: Session, series_id: str, now: float, *, scheme: str | None, page: int) -> ProfitPage:
    """One page of the map of `scheme`, of the one with most kernels where it is None; the last one for a larger number.

    Raises `NotFound`, also for a scheme that no kernel of the series has.
    """
    series = get_series(session, series_id)
    device = session.get_one(DeviceRow, series.device_id)
    figures = series_figures(session, series_id)
    items = profits(figures.figures)
    counts = count_profits(items)
    by_scheme: dict[str, list[Profit]] = defaultdict(list)
    for item in items:
        if item.speed_up is not None:
            by_scheme[scheme_name(item.kernel)].append(item)
    names = sorted(by_scheme, key=lambda name: (-len(by_scheme[name]), name))
    if scheme is not None and scheme not in by_scheme:
        raise NotFound(f"There is no kernel of the scheme {scheme!r} beside a dense one in the series {series_id}.")
    shown = scheme or (names[0] if names else None)
    links = tuple(
        SchemeLink(
            name=name,
            words=scheme_words(by_scheme[name][0].kernel.pruning),
            num_kernels=len(by_scheme[name]),
            is_shown=name == shown,
        )
        for name in names
    )
    heat = heat_map(by_scheme[shown] if shown else ())
    num_pages = max(1, math.ceil(len(heat.shapes) / SHOWN_SHAPES))
    page = min(page, num_pages)
    return ProfitPage(
        series=series_views([series], now)[0],
        device=DeviceLink(device_id=device.id, name=device.name),
        tiles=(
            Tile(label="Faster than dense", value=str(counts.paying), note="beyond noise"),
            Tile(label="Slower than dense", value=str(counts.costing), note="beyond noise"),
            Tile(label="Open", value=str(counts.undecided), note="within noise, or without an interval"),
            Tile(
                label="No ratio",
                value=str(counts.without_dense + figures.ambiguous),
                note=f"{counts.without_dense} without a dense kernel, {figures.ambiguous} in several modes",
            ),
        ),
        schemes=links,
        scheme=next((link for link in links if link.is_shown), None),
        columns=heat.columns,
        rows=heat.rows(figures, (page - 1) * SHOWN_SHAPES, SHOWN_SHAPES),
        num_shapes=len(heat.shapes),
        page=page,
        num_pages=num_pages,
    )


def scheme_name(kernel: KernelSpec) -> str:
    """The scheme with its block as configs write it, such as "group:4x1"."""
    return str(SchemeChoice.of(kernel.pruning))


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """Columns ascend in density; of each dense kernel the pruned ones of its shape, by column."""

    columns: tuple[str, ...]
    shapes: Mapping[KernelSpec, Mapping[int, Sequence[Profit]]]

    def rows(self, found: SeriesFigures, first: int, count: int) -> tuple[ProfitRow, ...]:
        return tuple(
            ProfitRow(
                shape=shape_words(dense),
                dense_ns=found.figures[dense].median,
                cells=tuple(_cell(cells[c], found) if c in cells else None for c in range(len(self.columns))),
            )
            for dense, cells in itertools.islice(self.shapes.items(), first, first + count)
        )


def heat_map(items: Sequence[Profit]) -> HeatMap:
    """Shapes in the order of `items`, which all have a dense kernel."""
    densities = sorted({item.kernel.pruning.density for item in items})
    if len(densities) <= MAX_COLUMNS:
        column_of = {density: column for column, density in enumerate(densities)}
        columns = tuple(f"{100 * density:.3g} %" for density in densities)
    else:
        tenths = {density: min(int(density * _TENTHS), _TENTHS - 1) for density in densities}
        kept = sorted(set(tenths.values()))
        column_of = {density: kept.index(tenth) for density, tenth in tenths.items()}
        columns = tuple(f"{10 * tenth} to {10 * tenth + 10} %" for tenth in kept)
    shapes: dict[KernelSpec, dict[int, list[Profit]]] = {}
    for item in items:
        cells = shapes.setdefault(item.dense_kernel, {})
        cells.setdefault(column_of[item.kernel.pruning.density], []).append(item)
    return HeatMap(columns=columns, shapes=shapes)


def _cell(items: Sequence[Profit], found: SeriesFigures) -> ProfitCell:
    ratios = [item.speed_up for item in items if item.speed_up is not None]
    speed_up = math.exp(sum(math.log(r.ratio) for r in ratios) / len(ratios))
    return ProfitCell(
        speed_up=speed_up,
        ci95=ratios[0].ci95 if len(ratios) == 1 else None,
        level="open" if all(r.differs is False for r in ratios) else _level(speed_up),
        is_noisy=any(not found.noisy.isdisjoint({item.kernel, item.dense_kernel}) for item in items),
        num_kernels=len(items),
    )


def _level(speed_up: float) -> str:
    """The colour of a ratio; equal factors up and down are equally strong."""
    factor = max(speed_up, 1.0 / speed_up)
    return ("up" if speed_up > 1.0 else "down") + str(1 + sum(factor >= bound for bound in _STRONGER))
