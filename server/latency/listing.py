"""Reading the roll-up by filters, and finding the one series that is meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Select, func, select, tuple_
from sqlalchemy.orm import Session

from device_agent.contracts import Source, Verdict
from server.errors import NotFound, Unprocessable
from server.latency.queries import FEW_KERNELS, LOOKED_THROUGH
from server.latency.series import differing_parts, get_series, key_of
from server.models import DeviceRow, KernelRow, LatencyRow, SeriesRow

#: Series that are named where a choice is asked for.
_NAMED_SERIES = 10


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
        found = [*self.series_conditions(), *self.kernel_conditions()]
        if self.series_id is not None:
            found.append(SeriesRow.id == self.series_id)
        return found

    def series_conditions(self) -> list[ColumnElement[bool]]:
        """What a series must be, but for its identity."""
        names = ("device_id", "runtime", "runtime_version", "source")
        return [getattr(SeriesRow, name) == getattr(self, name) for name in names if getattr(self, name) is not None]

    def kernel_conditions(self) -> list[ColumnElement[bool]]:
        """What a kernel must be."""
        names = ("op", "in_channels", "out_channels", "input_h", "kernel_h", "stride", "scheme")
        found = [getattr(KernelRow, name) == getattr(self, name) for name in names if getattr(self, name) is not None]
        if self.min_density is not None:
            found.append(KernelRow.density >= self.min_density)
        if self.max_density is not None:
            found.append(KernelRow.density <= self.max_density)
        return found


#: The place of a row in the listing: (series, kernel, mode), the primary key.
Place = tuple[str, str, str]
#: Between the parts of a place in a cursor: in no identity and no mode.
PLACE_SEPARATOR = "|"

ListedLatency = tuple[LatencyRow, SeriesRow, KernelRow, str]

#: What looking into a series costs by itself, in rows.
_SERIES_COST = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedPart:
    """Rows that fit, and the place to go on after, None at the end.

    There may be fewer rows than were asked for, even none, and yet a place to go on from: a part looks through at most
    `LOOKED_THROUGH` rows, so that it takes the same time however large the database is and however few rows fit.
    """

    rows: tuple[ListedLatency, ...]
    following: Place | None


def place_of(row: LatencyRow) -> Place:
    return (row.series_id, row.kernel_id, row.mode)


def place_key(place: Place) -> str:
    """A place as a cursor holds it."""
    return PLACE_SEPARATOR.join(place)


def list_latencies(session: Session, wanted: LatencyFilter, *, after: Place | None, limit: int) -> ListedPart:
    """Up to `limit` figures with their series, kernel and device name, in the order of (series, kernel, mode)."""
    few = _few_kernels(session, wanted)
    is_filtered = wanted.verdict is not None or bool(wanted.kernel_conditions())
    rows: list[ListedLatency] = []
    left = LOOKED_THROUGH
    for series_id in _fitting_series(session, wanted, after):
        begin = after if after is not None and after[0] == series_id else None
        end = None
        if few is not None:
            left -= len(few)
        elif is_filtered:
            looked = session.scalar(select(func.count()).select_from(_places(series_id, begin).limit(left).subquery()))
            if looked == left:
                found = session.execute(_places(series_id, begin).offset(left - 1).limit(1)).one()
                end = (series_id, found[0], found[1])
            left -= looked or 0
        query = listing_query(wanted, series_id, kernel_ids=few, after=begin, until=end, limit=limit + 1 - len(rows))
        rows += [(row[0], row[1], row[2], row[3]) for row in session.execute(query)]
        if len(rows) > limit:
            return ListedPart(rows=tuple(rows[:limit]), following=place_of(rows[limit - 1][0]))
        left -= _SERIES_COST
        if end is not None or left <= 0:
            return ListedPart(rows=tuple(rows), following=end or (series_id, _BEYOND, ""))
    return ListedPart(rows=tuple(rows), following=None)


#: Behind every kernel's identity.
_BEYOND = "~"


def listing_query(
    wanted: LatencyFilter,
    series_id: str,
    *,
    kernel_ids: Sequence[str] | None = None,
    after: Place | None = None,
    until: Place | None = None,
    limit: int,
) -> Select[LatencyRow, SeriesRow, KernelRow, str]:
    """The figures of one series behind `after`, up to and with `until`; of `kernel_ids` where they are known."""
    place = (LatencyRow.kernel_id, LatencyRow.mode)
    query = (
        select(LatencyRow, SeriesRow, KernelRow, DeviceRow.name)
        .join(SeriesRow, SeriesRow.id == LatencyRow.series_id)
        .join(KernelRow, KernelRow.id == LatencyRow.kernel_id)
        .join(DeviceRow, DeviceRow.id == SeriesRow.device_id)
        .where(LatencyRow.series_id == series_id)
        .order_by(*place)
        .limit(limit)
    )
    # Kernels that were looked up fit already.
    query = (
        query.where(*wanted.kernel_conditions())
        if kernel_ids is None
        else query.where(LatencyRow.kernel_id.in_(kernel_ids))
    )
    if wanted.verdict is not None:
        query = query.where(LatencyRow.verdict == wanted.verdict)
    if after is not None:
        # The first of both alone would do, but for a database that uses no index for a comparison of rows.
        query = query.where(LatencyRow.kernel_id >= after[1], tuple_(*place) > tuple_(*after[1:]))
    if until is not None:
        query = query.where(LatencyRow.kernel_id <= until[1], tuple_(*place) <= tuple_(*until[1:]))
    return query


def _places(series_id: str, after: Place | None) -> Select[str, str]:
    """The places of a series behind one of them, from the primary key alone."""
    place = (LatencyRow.kernel_id, LatencyRow.mode)
    query = select(*place).where(LatencyRow.series_id == series_id).order_by(*place)
    if after is not None:
        query = query.where(LatencyRow.kernel_id >= after[1], tuple_(*place) > tuple_(*after[1:]))
    return query


def _fitting_series(session: Session, wanted: LatencyFilter, after: Place | None) -> Sequence[str]:
    """The series of the filter, from that of `after` on."""
    query = select(SeriesRow.id).where(*wanted.series_conditions()).order_by(SeriesRow.id)
    if wanted.series_id is not None:
        query = query.where(SeriesRow.id == wanted.series_id)
    if after is not None:
        query = query.where(SeriesRow.id >= after[0])
    # Each costs some rows, so that no part comes to more.
    return session.scalars(query.limit(LOOKED_THROUGH // _SERIES_COST + 1)).all()


def _few_kernels(session: Session, wanted: LatencyFilter) -> Sequence[str] | None:
    """The kernels that fit, where they are few; None where they are many, or where any kernel fits."""
    conditions = wanted.kernel_conditions()
    if not conditions:
        return None
    found = session.scalars(select(KernelRow.id).where(*conditions).limit(FEW_KERNELS + 1)).all()
    return found if len(found) <= FEW_KERNELS else None


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
