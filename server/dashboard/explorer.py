"""The latency database by filters, and one kernel of it with its curves."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from urllib.parse import urlencode

from sqlalchemy import select
from sqlalchemy.orm import Session

from device_agent.contracts import KernelSpec, Op, PruningScheme, Verdict, decode
from search.lowering import KEEPS_CHANNELS
from server.dashboard.formats import axis_duration, duration
from server.dashboard.latency_pages import Choice, Curve, CurveValue, ExplorerPage, KernelPage, LatencyLine, SeriesLink
from server.dashboard.lines import NUM_COLOURS, Value, line_picture
from server.dashboard.pages import DeviceLink
from server.dashboard.queries import measurement_views
from server.dashboard.series import series_views
from server.dashboard.wording import OP_NAMES, SCHEME_NAMES, VERDICT_LABELS, kernel_words
from server.errors import NotFound
from server.latency.listing import LatencyFilter, ListedPart, Place, list_latencies, place_key
from server.latency.neighbours import Neighbour, Varied, by_scheme, neighbours
from server.latency.queries import LOOKED_THROUGH
from server.latency.series import get_series
from server.models import DeviceRow, KernelRow, LatencyRow, SeriesRow
from server.wire import encode_cursor

#: Rows of one part of the table, series and devices to choose from, and measurements of one kernel.
SHOWN_ROWS = 50
SHOWN_SERIES = 12
SHOWN_DEVICES = 500
SHOWN_MEASUREMENTS = 15

#: Filters that are numbers, in the order of the form.
NUMBER_FILTERS = ("in_channels", "out_channels", "input_h", "kernel_h", "min_density", "max_density")


def explorer_page(session: Session, wanted: LatencyFilter, *, after: Place | None, now: float) -> ExplorerPage:
    """A part of the figures of one series: that of the filter, or of those that fit the one that was measured in last.

    The list goes by the roll-up's primary key, so its cost does not grow with how far one has paged.
    """
    asked = _asked(wanted)
    found = _series(session, wanted)
    chosen_id = wanted.series_id or (found[0][0].id if found else None)
    links = tuple(
        SeriesLink(
            series=series_views([row], now)[0],
            device_name=name,
            query=urlencode({**asked, "series": row.id}),
            is_chosen=row.id == chosen_id,
        )
        for row, name in found[:SHOWN_SERIES]
    )
    part = ListedPart(rows=(), following=None)
    if chosen_id is not None:
        # One series is looked through: what its device or runtime is has been said by choosing it.
        within = replace(wanted, series_id=chosen_id, device_id=None, runtime=None, runtime_version=None, source=None)
        part = list_latencies(session, within, after=after, limit=SHOWN_ROWS)
        asked["series"] = chosen_id
    return ExplorerPage(
        choices=_choices(session, wanted),
        numbers={name: _number(getattr(wanted, name)) for name in NUMBER_FILTERS},
        series=links,
        more_series=len(found) > SHOWN_SERIES,
        chosen=next((link for link in links if link.is_chosen), None),
        rows=tuple(_line(row, decode(KernelSpec, kernel.spec), now) for row, _, kernel, _ in part.rows),
        is_first=after is None,
        looked_through=LOOKED_THROUGH if part.following is not None and len(part.rows) < SHOWN_ROWS else None,
        query=urlencode(asked),
        next_query=""
        if part.following is None
        else urlencode({**asked, "cursor": encode_cursor(place_key(part.following))}),
    )


def kernel_page(session: Session, series_id: str, kernel_id: str, now: float) -> KernelPage:
    """One kernel in one series. Raises `NotFound` where it was not measured there."""
    series = get_series(session, series_id)
    device = session.get_one(DeviceRow, series.device_id)
    query = select(LatencyRow).where(LatencyRow.series_id == series_id, LatencyRow.kernel_id == kernel_id)
    figures = session.scalars(query.order_by(LatencyRow.mode)).all()
    if not figures:
        raise NotFound(f"There is no usable measurement of kernel {kernel_id!r} in series {series_id!r}.")
    kernel = decode(KernelSpec, session.get_one(KernelRow, kernel_id).spec)
    what, detail = kernel_words(kernel)
    return KernelPage(
        series=series_views([series], now)[0],
        device=DeviceLink(device_id=device.id, name=device.name),
        kernel_id=kernel_id,
        what=what,
        detail=detail,
        figures=tuple(_line(row, kernel, now) for row in figures),
        curves=tuple(_curves(session, series_id, kernel)),
        measurements=measurement_views(
            session, now, limit=SHOWN_MEASUREMENTS, series_id=series_id, kernel_id=kernel_id
        ),
    )


def _series(session: Session, wanted: LatencyFilter) -> list[tuple[SeriesRow, str]]:
    """Series with kernels that fit device, runtime and source, the latest first; one more than is shown."""
    query = select(SeriesRow, DeviceRow.name).join(DeviceRow, DeviceRow.id == SeriesRow.device_id)
    if wanted.series_id is not None and wanted.device_id is None and wanted.runtime is None:
        query = query.where(SeriesRow.id == wanted.series_id)
    for name in ("device_id", "runtime", "runtime_version", "source"):
        if getattr(wanted, name) is not None:
            query = query.where(getattr(SeriesRow, name) == getattr(wanted, name))
    # A series of whole networks alone has no kernels.
    query = query.where(select(LatencyRow).where(LatencyRow.series_id == SeriesRow.id).exists())
    found = session.execute(query.order_by(SeriesRow.last_at.desc(), SeriesRow.id).limit(SHOWN_SERIES + 1)).all()
    rows = [(row, name) for row, name in found]
    if wanted.series_id is not None and wanted.series_id not in {row.id for row, _ in rows}:
        row = get_series(session, wanted.series_id)
        rows.insert(0, (row, session.get_one(DeviceRow, row.device_id).name))
    return rows


def _asked(wanted: LatencyFilter) -> dict[str, str]:
    """The filters as an address has them, without the series."""
    names = ("runtime", "runtime_version", "source", "verdict", "op", "scheme", *NUMBER_FILTERS, "stride")
    found = {"device": wanted.device_id, **{name: getattr(wanted, name) for name in names}}
    return {
        name: _number(value) if isinstance(value, float) else str(value)
        for name, value in found.items()
        if value is not None
    }


def _choices(session: Session, wanted: LatencyFilter) -> Mapping[str, tuple[Choice, ...]]:
    devices = session.execute(select(DeviceRow.id, DeviceRow.name).order_by(DeviceRow.name).limit(SHOWN_DEVICES))
    runtimes = session.scalars(select(SeriesRow.runtime).distinct().order_by(SeriesRow.runtime))
    schemes = {PruningScheme(scheme): words for scheme, words in SCHEME_NAMES.items()}
    return {
        "device": _select("any device", ((row.id, row.name) for row in devices), wanted.device_id),
        "runtime": _select("any runtime", ((name, name) for name in runtimes), wanted.runtime),
        "op": _select("any operator", ((op.value, OP_NAMES[op]) for op in Op), wanted.op),
        "scheme": _select("any scheme", ((s.value, words) for s, words in schemes.items()), wanted.scheme),
        "verdict": _select(
            "any verdict",
            # What was rejected is in no figure: the device's page lists it.
            ((v.value, VERDICT_LABELS[v].text) for v in Verdict if v is not Verdict.REJECTED),
            wanted.verdict,
        ),
    }


def _select(words: str, entries: Iterable[tuple[str, str]], chosen: str | None) -> tuple[Choice, ...]:
    every = Choice(value="", words=words, is_chosen=chosen is None)
    return (every, *(Choice(value=value, words=text, is_chosen=value == chosen) for value, text in entries))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _line(row: LatencyRow, kernel: KernelSpec, now: float) -> LatencyLine:
    what, detail = kernel_words(kernel)
    return LatencyLine(
        kernel_id=row.kernel_id,
        what=what,
        detail=detail,
        mode=row.mode,
        median_ns=row.median_ns,
        ci95_ns=_interval(row),
        verdict=VERDICT_LABELS[row.verdict],
        num_measurements=row.num_measurements,
        age_s=now - row.updated_at,
    )


def _interval(row: LatencyRow) -> tuple[float, float] | None:
    low, high = row.ci95_low_ns, row.ci95_high_ns
    return None if low is None or high is None else (low, high)


def _curves(session: Session, series_id: str, kernel: KernelSpec) -> list[Curve]:
    """Curves with at least two places; the line of the kernel's own scheme is always among those drawn."""
    curves = []
    if kernel.op.has_weights:
        found = by_scheme(neighbours(session, series_id, kernel, Varied.DENSITY))
        lines = dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))[:NUM_COLOURS])
        curves.append(_curve("Over density", "density, %", lines, lambda k: 100 * k.pruning.density, _label))
    channels = {Varied.OUT_CHANNELS: "output channels", Varied.IN_CHANNELS: "input channels"}
    if kernel.op in KEEPS_CHANNELS:
        channels = {Varied.OUT_CHANNELS: "channels"}
    for varied, words in channels.items():
        line = {"": neighbours(session, series_id, kernel, varied)}
        curves.append(_curve(f"Over {words}", words, line, operator.attrgetter(varied.value), _label))
    return [curve for curve in curves if curve is not None]


def _label(x: float) -> str:
    return f"{x:.4g}"


def _curve(
    title: str,
    x_title: str,
    lines: Mapping[str, Sequence[Neighbour]],
    x_of: Callable[[KernelSpec], float],
    x_label: Callable[[float], str],
) -> Curve | None:
    """None where all of it is at one place."""
    items = [(name, item) for name, found in lines.items() for item in found]
    if len({x_of(item.kernel) for _, item in items}) < 2:
        return None
    picture = line_picture(
        [
            (
                name,
                [
                    Value(
                        x=x_of(item.kernel),
                        y=item.row.median_ns,
                        interval=_interval(item.row),
                        title=f"{x_title} {x_label(x_of(item.kernel))}: {duration(item.row.median_ns)}",
                    )
                    for item in found
                ],
            )
            for name, found in lines.items()
        ],
        x_title=x_title,
        y_title="median latency",
        x_label=x_label,
        y_label=axis_duration(max(item.row.median_ns for _, item in items)),
    )
    assert picture is not None
    ordered = sorted(items, key=lambda pair: (pair[0], x_of(pair[1].kernel)))
    return Curve(
        title=title,
        x_title=x_title,
        picture=picture,
        values=tuple(
            CurveValue(
                x=x_label(x_of(item.kernel)),
                line=name,
                median_ns=item.row.median_ns,
                ci95_ns=_interval(item.row),
                verdict=VERDICT_LABELS[item.row.verdict],
                kernel_id=item.row.kernel_id,
            )
            for name, item in ordered
        ),
    )
