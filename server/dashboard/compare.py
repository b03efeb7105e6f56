"""Devices, runtimes or versions beside each other: the kernels that two series have in common."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from device_agent.contracts import Source
from server.dashboard.formats import MISSING, duration, short_id
from server.dashboard.latency_pages import Choice, ComparedRow, ComparePage
from server.dashboard.pages import Tile
from server.dashboard.scatter import ScatterValue, log_scatter
from server.dashboard.wording import StateLabel, kernel_words
from server.latency.compare import ComparedKernel, Comparison, compare_series
from server.latency.series import get_series
from server.models import DeviceRow, LatencyRow, SeriesRow

#: Series to choose from, points of the picture, and rows of the table.
SHOWN_SERIES = 200
SHOWN_POINTS = 300
SHOWN_ROWS = 40

_NS_PER_MS = 1e6

_TOO_FEW = (
    "This needs two series: of two devices, or of one device with two runtimes or versions. One begins when a device "
    "has timed a kernel for a search, or with an imported file."
)

_SLOWER = StateLabel(text="slower", tone="warn")
_FASTER = StateLabel(text="faster", tone="good")
_OPEN = StateLabel(text="open", tone="idle")


def compare_page(session: Session, first_id: str | None, second_id: str | None) -> ComparePage:
    """Raises `NotFound` for a series that is not there."""
    names = _series_names(session)
    for identity in (first_id, second_id):
        if identity is not None and identity not in names:
            series = get_series(session, identity)
            names[identity] = _name(series, session.get_one(DeviceRow, series.device_id).name)
    problem, found = "", None
    if len(names) < 2:
        problem = _TOO_FEW
    elif first_id is None or second_id is None:
        problem = "Choose two series: of two devices, or of one device with two runtimes or versions."
    elif first_id == second_id:
        problem = "Both sides are the same series: choose two."
    else:
        found = compare_series(
            session, get_series(session, first_id), get_series(session, second_id), limit=SHOWN_POINTS
        )
        if not found.kernels:
            problem = "The two have no kernel in common. A search over both devices measures the same kernels on each."
    return ComparePage(
        first=_choices(names, first_id),
        second=_choices(names, second_id),
        first_name=names.get(first_id or "", ""),
        second_name=names.get(second_id or "", ""),
        problem=problem,
        differing=() if found is None else found.differing_parts,
        is_sample=found is not None and found.is_sample,
        tiles=() if found is None or problem else _tiles(found),
        scatter=None if found is None else log_scatter([_point(item) for item in found.kernels]),
        num_compared=0 if found is None or found.summary is None else found.summary.count,
        rows=() if found is None else tuple(_row(item) for item in found.kernels[:SHOWN_ROWS]),
    )


def _series_names(session: Session) -> dict[str, str]:
    """The series with kernels, those that were measured in last first."""
    query = (
        select(SeriesRow, DeviceRow.name)
        .join(DeviceRow, DeviceRow.id == SeriesRow.device_id)
        .where(select(LatencyRow).where(LatencyRow.series_id == SeriesRow.id).exists())
        .order_by(SeriesRow.last_at.desc(), SeriesRow.id)
        .limit(SHOWN_SERIES)
    )
    return {row.id: _name(row, device) for row, device in session.execute(query)}


def _name(row: SeriesRow, device: str) -> str:
    """What tells series apart that people set up apart; the identity tells the rest."""
    parts = [device, f"{row.runtime} {row.runtime_version}", _counted(row.threads, "thread")]
    if row.affinity:
        parts.append(f"{'core' if len(row.affinity) == 1 else 'cores'} {' '.join(map(str, row.affinity))}")
    if row.governor:
        parts.append(f"governor {row.governor}")
    if row.source is not Source.MEASURED:
        parts.append(row.source.value)
    return f"{', '.join(parts)} ({short_id(row.id)})"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _choices(names: dict[str, str], chosen: str | None) -> tuple[Choice, ...]:
    every = Choice(value="", words="choose", is_chosen=chosen is None)
    return (every, *(Choice(value=key, words=name, is_chosen=key == chosen) for key, name in names.items()))


def _tiles(found: Comparison) -> tuple[Tile, ...]:
    summary = found.summary
    assert summary is not None
    mean = "" if summary.ci95 is None else f"{summary.ci95[0]:.3f} to {summary.ci95[1]:.3f}"
    alone = f"{found.only_first} in the first alone, {found.only_second} in the second"
    return (
        Tile(label="Second / first", value=f"{summary.geometric_mean:.3f}", note=f"geometric mean {mean}".strip()),
        Tile(label="Smallest and largest", value=f"{summary.smallest:.2f} to {summary.largest:.2f}"),
        Tile(label="Kernels in common", value=str(summary.count), note=alone),
        Tile(
            label="Differ beyond noise",
            value=str(summary.differing) if summary.with_interval else MISSING,
            note=f"of {summary.with_interval} with an interval",
        ),
    )


def _point(item: ComparedKernel) -> ScatterValue:
    what, _ = kernel_words(item.kernel)
    title = f"{what}: {duration(item.first_ns)} and {duration(item.second_ns)}"
    return ScatterValue(x_ms=item.first_ns / _NS_PER_MS, y_ms=item.second_ns / _NS_PER_MS, title=title)


def _row(item: ComparedKernel) -> ComparedRow:
    what, detail = kernel_words(item.kernel)
    verdict = _OPEN
    if item.differs:
        verdict = _SLOWER if item.ratio > 1.0 else _FASTER
    return ComparedRow(
        what=what,
        detail=detail,
        first_ns=item.first_ns,
        second_ns=item.second_ns,
        ratio=item.ratio,
        ci95=item.ratio_ci95,
        verdict=verdict,
    )
