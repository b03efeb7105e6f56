"""Two latencies of each thing against each other, as a picture that a template draws by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from server.dashboard.formats import duration
from server.dashboard.pictures import Scatter, ScatterPoint, Tick

#: The side of the picture's square, in its own units.
_SIZE = 400.0
_NS_PER_MS = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class ScatterValue:
    """A point before it is placed. Networks are drawn larger than kernels."""

    x_ms: float
    y_ms: float
    title: str
    is_network: bool = False


def log_scatter(values: Sequence[ScatterValue]) -> Scatter | None:
    """Both axes are one, logarithmic, and in whole powers of ten; None without a positive time."""
    times = [time for value in values for time in (value.x_ms, value.y_ms) if time > 0]
    if not times:
        return None
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    high = max(high, low + 1)

    def place(time_ms: float) -> float:
        return round(_SIZE * (math.log10(max(time_ms, 10.0**low)) - low) / (high - low), 1)

    return Scatter(
        size=_SIZE,
        ticks=tuple(
            Tick(place=place(10.0**power), label=duration(10.0**power * _NS_PER_MS)) for power in range(low, high + 1)
        ),
        points=tuple(
            ScatterPoint(
                x=place(value.x_ms),
                y=round(_SIZE - place(value.y_ms), 1),
                is_network=value.is_network,
                title=value.title,
            )
            for value in values
        ),
    )
