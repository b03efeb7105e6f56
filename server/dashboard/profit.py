"""The profit map of a series as its page shows it: a table of shapes and densities, one scheme at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from server.dashboard.formats import count
from server.dashboard.pages import DeviceLink, ProfitCell, ProfitPage, ProfitRow, SchemeLink, Tile
from server.dashboard.series import series_views
from server.dashboard.wording import scheme_words, shape_words
from server.errors import NotFound
from server.latency.profit import FoundProfit, KernelProfit, dense_of, find_profit
from server.latency.series import get_series
from server.models import DeviceRow

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
    found = find_profit(session, series)
    schemes = () if found is None else found.summary.schemes
    names = [summary.name for summary in schemes]
    if scheme is not None and found is not None and scheme not in names:
        raise NotFound(f"There is no kernel of the scheme {scheme!r} beside a dense one in the series {series_id}.")
    shown = next((summary for summary in schemes if scheme in (None, summary.name)), None)
    links = tuple(
        SchemeLink(
            name=summary.name,
            words=scheme_words(summary.pruning),
            num_kernels=summary.num_kernels,
            is_shown=summary is shown,
        )
        for summary in schemes
    )
    columns = Columns.of(())
    rows: tuple[ProfitRow, ...] = ()
    if found is not None and shown is not None:
        page = min(page, shown.num_parts)
        columns = Columns.of(shown.densities)
        rows = heat_rows(found.read_part((shown.name, page)), columns)
    return ProfitPage(
        series=series_views([series], now)[0],
        device=DeviceLink(device_id=device.id, name=device.name),
        is_made=found is not None,
        is_stale=found is not None and found.is_stale,
        made_s=None if found is None or found.computed_at is None else now - found.computed_at,
        tiles=() if found is None else _tiles(found),
        schemes=links,
        scheme=next((link for link in links if link.is_shown), None),
        columns=columns.labels,
        rows=rows,
        num_shapes=0 if shown is None else shown.num_shapes,
        page=page,
        num_pages=1 if shown is None else shown.num_parts,
    )


def _tiles(found: FoundProfit) -> tuple[Tile, ...]:
    counts, ambiguous = found.summary.counts, found.summary.ambiguous
    return (
        Tile(label="Faster than dense", value=count(counts.paying), note="beyond noise"),
        Tile(label="Slower than dense", value=count(counts.costing), note="beyond noise"),
        Tile(label="Open", value=count(counts.undecided), note="within noise, or without an interval"),
        Tile(
            label="No ratio",
            value=count(counts.without_dense + ambiguous),
            note=f"{count(counts.without_dense)} without a dense kernel, {count(ambiguous)} in several modes",
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns of the map, ascending in density: each density, or each tenth where they are many."""

    labels: tuple[str, ...]
    places: tuple[float, ...]
    by_tenths: bool

    @classmethod
    def of(cls, densities: Sequence[float]) -> Columns:
        if len(densities) <= MAX_COLUMNS:
            labels = tuple(f"{100 * density:.3g} %" for density in densities)
            return cls(labels=labels, places=tuple(densities), by_tenths=False)
        tenths = sorted({_tenth(density) for density in densities})
        labels = tuple(f"{10 * tenth} to {10 * tenth + 10} %" for tenth in tenths)
        return cls(labels=labels, places=tuple(tenths), by_tenths=True)

    def place_of(self, density: float) -> int:
        return self.places.index(_tenth(density) if self.by_tenths else density)


def _tenth(density: float) -> int:
    return min(int(density * _TENTHS), _TENTHS - 1)


def heat_rows(kernels: Sequence[KernelProfit], columns: Columns) -> tuple[ProfitRow, ...]:
    """A row for each shape, in the order of `kernels`, which all have a dense one; those of a shape come together."""
    rows = []
    for dense, same in itertools.groupby(kernels, key=dense_of):
        cells: dict[int, list[KernelProfit]] = {}
        for item in same:
            cells.setdefault(columns.place_of(item.kernel.pruning.density), []).append(item)
        dense_ns = next(iter(cells.values()))[0].dense_ns
        assert dense_ns is not None
        drawn = tuple(_cell(cells[c]) if c in cells else None for c in range(len(columns.labels)))
        rows.append(ProfitRow(shape=shape_words(dense), dense_ns=dense_ns, cells=drawn))
    return tuple(rows)


def _cell(items: Sequence[KernelProfit]) -> ProfitCell:
    ratios = [item.speed_up for item in items if item.speed_up is not None]
    speed_up = math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))
    is_open = all(item.pays is None and item.speed_up_ci95 is not None for item in items)
    return ProfitCell(
        speed_up=speed_up,
        ci95=items[0].speed_up_ci95 if len(items) == 1 else None,
        level="open" if is_open else _level(speed_up),
        is_noisy=any(item.is_noisy for item in items),
        num_kernels=len(items),
    )


def _level(speed_up: float) -> str:
    """The colour of a ratio; equal factors up and down are equally strong."""
    factor = max(speed_up, 1.0 / speed_up)
    return ("up" if speed_up > 1.0 else "down") + str(1 + sum(factor >= bound for bound in _STRONGER))
