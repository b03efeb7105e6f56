"""Pictures that templates draw by themselves, as places in their own units."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ScatterPoint:
    """A place in the picture, and what it is."""

    x: float
    y: float
    is_network: bool
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    place: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LinePoint:
    """A place in the picture, and what it is."""

    x: float
    y: float
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line: `path` and `band` (of its intervals, or "") as SVG writes them; `colour` is a number of the sheet."""

    name: str
    colour: int
    path: str
    band: str
    points: tuple[LinePoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinePicture:
    """Lines over two linear axes; the origin is above on the left, as in SVG."""

    width: float
    height: float
    x_title: str
    y_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scatter:
    """Predicted against measured latency, both on the same logarithmic axis: `size` is the side of the square."""

    size: float
    ticks: tuple[Tick, ...]
    points: tuple[ScatterPoint, ...]
