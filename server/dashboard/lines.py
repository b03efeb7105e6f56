"""Line pictures that a template draws by itself: places worked out here, colours in the style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.dashboard.pictures import Line, LinePicture, LinePoint, Tick

#: The picture inside its axes, in its own units.
_WIDTH, _HEIGHT = 560.0, 240.0
_MAX_TICKS = 6
#: Colours that the style sheet has for lines.
NUM_COLOURS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A point before it is placed; `interval` is on the y axis."""

    x: float
    y: float
    interval: tuple[float, float] | None = None
    title: str = ""


def line_picture(
    lines: Sequence[tuple[str, Sequence[Value]]],
    *,
    x_title: str,
    y_title: str,
    x_label: Callable[[float], str],
    y_label: Callable[[float], str],
) -> LinePicture | None:
    """Lines by name over two linear axes that begin at 0; None without a point.

    Points are joined in the order of x, and have a band of their intervals where all of a line have one.
    """
    values = [value for _, points in lines for value in points]
    if not values:
        return None
    x_ticks = round_ticks(max(value.x for value in values))
    y_ticks = round_ticks(max(max(value.y, value.interval[1] if value.interval else 0.0) for value in values))

    def place_x(x: float) -> float:
        return round(_WIDTH * x / x_ticks[-1], 1)

    def place_y(y: float) -> float:
        return round(_HEIGHT * (1.0 - y / y_ticks[-1]), 1)

    drawn = []
    for place, (name, points) in enumerate(lines):
        ordered = sorted(points, key=lambda value: value.x)
        upper = [(value.x, value.interval[1]) for value in ordered if value.interval]
        lower = [(value.x, value.interval[0]) for value in ordered if value.interval]
        band = [*upper, *reversed(lower)] if len(upper) == len(ordered) > 1 else []
        drawn.append(
            Line(
                name=name,
                colour=place % NUM_COLOURS,
                path=_path([(place_x(v.x), place_y(v.y)) for v in ordered]),
                band=_path([(place_x(x), place_y(y)) for x, y in band]),
                points=tuple(LinePoint(x=place_x(v.x), y=place_y(v.y), title=v.title) for v in ordered),
            )
        )
    return LinePicture(
        width=_WIDTH,
        height=_HEIGHT,
        x_title=x_title,
        y_title=y_title,
        x_ticks=tuple(Tick(place=place_x(x), label=x_label(x)) for x in x_ticks),
        y_ticks=tuple(Tick(place=place_y(y), label=y_label(y)) for y in y_ticks),
        lines=tuple(drawn),
    )


def round_ticks(largest: float) -> tuple[float, ...]:
    """From 0 to at least `largest` in at most `_MAX_TICKS` equal, round steps."""
    if largest <= 0.0:
        return (0.0, 1.0)
    power = 10.0 ** math.floor(math.log10(largest / _MAX_TICKS))
    step = next(s for s in (power * factor for factor in (1, 2, 2.5, 5, 10, 20)) if s * _MAX_TICKS >= largest)
    count = math.ceil(largest / step - 1e-9)
    return tuple(float(f"{i * step:.12g}") for i in range(count + 1))


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "".join(f"{'L' if i else 'M'}{x:g} {y:g}" for i, (x, y) in enumerate(points))
