"""What the pages of the latency database show, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from server.dashboard.pages import DeviceLink, MeasurementView, SeriesView, Tile
from server.dashboard.pictures import LinePicture, Scatter
from server.dashboard.wording import StateLabel


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An entry of a select."""

    value: str
    words: str
    is_chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesLink:
    """A series to choose; `query` is the address of the page with it, behind the "?"."""

    series: SeriesView
    device_name: str
    query: str
    is_chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyLine:
    """The latest figure of one kernel in one series."""

    kernel_id: str
    what: str
    detail: str
    mode: str
    median_ns: float
    ci95_ns: tuple[float, float] | None
    verdict: StateLabel
    num_measurements: int
    age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplorerPage:
    """The latency database by filters, one series at a time: figures of two are never in one table.

    `numbers` are the texts of the form's number fields by name. `looked_through` is how many kernels were looked at for
    this part, where too few of them fit to fill it; None otherwise. `query` is the address of the page without its
    place in the list, behind the "?"; `next_query` that of the next part, "" on the last.
    """

    choices: Mapping[str, tuple[Choice, ...]]
    numbers: Mapping[str, str]
    series: tuple[SeriesLink, ...]
    more_series: bool
    chosen: SeriesLink | None
    rows: tuple[LatencyLine, ...]
    is_first: bool
    looked_through: int | None
    query: str
    next_query: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveValue:
    """A point of a curve as its table shows it."""

    x: str
    line: str
    median_ns: float
    ci95_ns: tuple[float, float] | None
    verdict: StateLabel
    kernel_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Latency over one property of a kernel, the rest kept."""

    title: str
    x_title: str
    picture: LinePicture
    values: tuple[CurveValue, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPage:
    """One kernel in one series: its figures (one for each mode), its curves, and what they were made from."""

    series: SeriesView
    device: DeviceLink
    kernel_id: str
    what: str
    detail: str
    figures: tuple[LatencyLine, ...]
    curves: tuple[Curve, ...]
    measurements: tuple[MeasurementView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRow:
    """A kernel in two series; `ratio` is second / first. `verdict` says what the intervals tell."""

    what: str
    detail: str
    first_ns: float
    second_ns: float
    ratio: float
    ci95: tuple[float, float] | None
    verdict: StateLabel


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparePage:
    """Two series beside each other; `problem` says why there is nothing to compare. `is_sample`: of a part of their
    kernels, drawn by chance.
    """

    first: tuple[Choice, ...]
    second: tuple[Choice, ...]
    first_name: str
    second_name: str
    problem: str
    differing: tuple[str, ...]
    is_sample: bool
    tiles: tuple[Tile, ...]
    scatter: Scatter | None
    num_compared: int
    rows: tuple[ComparedRow, ...]
