"""Reading the roll-up by filters, and pairing the kernels of two series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Select, select, tuple_
from sqlalchemy.orm import Session

from device_agent.contracts import Source, Verdict
from server.errors import NotFound, Unprocessable
from server.latency.series import differing_parts, get_series, key_of
from server.models import DeviceRow, KernelRow, LatencyRow, SeriesRow

#: Series that are named where a choice is asked for.
_NAMED_SERIES = 10
#: Kernels of one series that are compared: above any that was seen.
MAX_COMPARED = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyFilter:
    """Which figures are wanted; None does not filter. Densities are inclusive."""

    device_id: str | None = None
    series_id: str | None = None
    runtime: str | None = None
    runtime_version: str | None = None
    source: Source | None = None
    verdict: Verdict | None = None
    op: str | None = None
    in_channels: int | None = None
    out_channels: int | None = None
    input_h: int | None = None
    kernel_h: int | None = None
    stride: int | None = None
    scheme: str | None = None
    min_density: float | None = None
    max_density: float | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """For a query that joins series and kernels, and has the column `verdict` of its own."""
        equal = {
            SeriesRow: ("device_id", "runtime", "runtime_version", "source"),
            KernelRow: ("op", "in_channels", "out_channels", "input_h", "kernel_h", "stride", "scheme"),
        }
        found = [
            getattr(table, name) == getattr(self, name)
            for table, names in equal.items()
            for name in names
            if getattr(self, name) is not None
        ]
        if self.series_id is not None:
            found.append(SeriesRow.id == self.series_id)
        if self.min_density is not None:
            found.append(KernelRow.density >= self.min_density)
        if self.max_density is not None:
            found.append(KernelRow.density <= self.max_density)
        return found


#: The place of a row in the listing.
Place = tuple[str, str, str]
#: Between the parts of a place in a cursor: in no identity and no mode.
PLACE_SEPARATOR = "|"

ListedLatency = tuple[LatencyRow, SeriesRow, KernelRow, str]


def place_key(row: LatencyRow) -> str:
    """The place of a row as a cursor holds it."""
    return PLACE_SEPARATOR.join((row.kernel_id, row.series_id, row.mode))


def list_latencies(
    session: Session, wanted: LatencyFilter, *, after: Place | None, limit: int
) -> Sequence[ListedLatency]:
    """Figures with their series, kernel and device name, in the order of (kernel, series, mode)."""
    query = listing_query(wanted, after=after, limit=limit)
    return [(row[0], row[1], row[2], row[3]) for row in session.execute(query)]


def listing_query(
    wanted: LatencyFilter, *, after: Place | None, limit: int
) -> Select[LatencyRow, SeriesRow, KernelRow, str]:
    place = (LatencyRow.kernel_id, LatencyRow.series_id, LatencyRow.mode)
    query = (
        select(LatencyRow, SeriesRow, KernelRow, DeviceRow.name)
        .join(SeriesRow, SeriesRow.id == LatencyRow.series_id)
        .join(KernelRow, KernelRow.id == LatencyRow.kernel_id)
        .join(DeviceRow, DeviceRow.id == SeriesRow.device_id)
        .where(*wanted.conditions())
        .order_by(*place)
        .limit(limit)
    )
    if wanted.verdict is not None:
        query = query.where(LatencyRow.verdict == wanted.verdict)
    if wanted.series_id is not None:
        # Of the roll-up itself: its primary key then has the rows in their order.
        query = query.where(LatencyRow.series_id == wanted.series_id)
    if after is not None:
        query = query.where(tuple_(*place) > tuple_(*after))
        if wanted.series_id is not None:
            # What follows of the kernel, for a database that uses no index for a comparison of rows.
            query = query.where(LatencyRow.kernel_id >= after[0])
    return query


def find_device(session: Session, name: str) -> DeviceRow:
    """The device with this id or name. Raises `NotFound`."""
    row = session.scalars(select(DeviceRow).where((DeviceRow.id == name) | (DeviceRow.name == name))).first()
    if row is None:
        raise NotFound(f"there is no device {name!r}: GET /v1/devices lists them")
    return row


def one_series(
    session: Session, side: str, *, series: str | None, device: str | None, runtime: str | None
) -> SeriesRow:
    """The one series that a side of a comparison means.

    Raises `Unprocessable` where several fit, naming them and what tells them apart: which one is the caller's choice.
    """
    if series is not None:
        return get_series(session, series)
    if device is None:
        raise Unprocessable(f"{side}: name a series or a device")
    row = find_device(session, device)
    query = select(SeriesRow).where(SeriesRow.device_id == row.id)
    if runtime is not None:
        query = query.where(SeriesRow.runtime == runtime)
    # A series of whole networks alone has no kernels to compare.
    query = query.where(select(LatencyRow).where(LatencyRow.series_id == SeriesRow.id).exists())
    found = list(session.scalars(query.order_by(SeriesRow.last_at.desc(), SeriesRow.id).limit(_NAMED_SERIES)))
    if not found:
        with_runtime = "" if runtime is None else f" with the runtime {runtime!r}"
        raise Unprocessable(f"{side}: device {row.name!r} has no kernels measured{with_runtime}")
    if len(found) > 1:
        parts = sorted({part for other in found[1:] for part in differing_parts(key_of(found[0]), key_of(other))})
        raise Unprocessable(
            f"{side}: {len(found)} series of device {row.name!r} fit, which differ in {', '.join(parts)}; name one as "
            f"series, the latest first: {', '.join(item.id for item in found)}",
            code="several_series",
        )
    return found[0]


def medians(session: Session, series_id: str) -> dict[str, LatencyRow | None]:
    """The figure of each kernel of a series; None for a kernel that was measured in several modes, which is no one
    figure.
    """
    rows: dict[str, list[LatencyRow]] = defaultdict(list)
    query = select(LatencyRow).where(LatencyRow.series_id == series_id).order_by(LatencyRow.kernel_id)
    for row in session.scalars(query.limit(MAX_COMPARED)):
        rows[row.kernel_id].append(row)
    return {kernel: found[0] if len(found) == 1 else None for kernel, found in rows.items()}
