"""Numbers as the pages print them. Each function is a filter of the templates."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from search.latency_axis import LatencyUnit

if TYPE_CHECKING:
    from server.dashboard.pages import SpeedUp

#: Shown in place of a number that is not known (yet).
MISSING = "–"

_NS_UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))


def duration(value_ns: float | None) -> str:
    """Nanoseconds with three significant digits, in the unit that suits them: 6214000 is "6.21 ms"."""
    if value_ns is None:
        return MISSING
    factor, unit = _ns_unit(value_ns)
    return f"{_three_digits(value_ns / factor)} {unit}"


def axis_duration(largest_ns: float) -> Callable[[float], str]:
    """How to write times along an axis up to `largest_ns`: all in its unit, and 0 without one."""
    factor, unit = _ns_unit(largest_ns)
    return lambda value_ns: f"{value_ns / factor:.4g} {unit}" if value_ns else "0"


def interval(bounds_ns: tuple[float, float] | None) -> str:
    """Both ends in the unit of the larger: "6.18 to 6.25 ms". One digit more than `duration`, to tell them apart."""
    if bounds_ns is None:
        return MISSING
    factor, unit = _ns_unit(max(bounds_ns))
    low, high = bounds_ns
    return f"{_ends((low / factor, high / factor))} {unit}"


def latency(value_ms: float | None, unit: LatencyUnit) -> str:
    return MISSING if value_ms is None else f"{_three_digits(value_ms * unit.per_ms)} {unit.name}"


def latency_interval(bounds_ms: tuple[float, float] | None, unit: LatencyUnit) -> str:
    """Both ends without the unit, for a place beside the figure itself."""
    if bounds_ms is None:
        return MISSING
    low, high = bounds_ms
    return _ends((low * unit.per_ms, high * unit.per_ms))


def percent(value: float | None) -> str:
    """A part of 1 as per cent with two decimals."""
    return MISSING if value is None else f"{100 * value:.2f} %"


def percent_interval(bounds: tuple[float, float] | None) -> str:
    """Both ends of an interval of a part of 1, for a place beside the figure itself."""
    return MISSING if bounds is None else f"{100 * bounds[0]:.2f} to {100 * bounds[1]:.2f}"


def times(speed_up: SpeedUp | None) -> str:
    if speed_up is None:
        return MISSING
    return f"{'≈ ' if speed_up.predicted else ''}{speed_up.factor:.2f}×"


def count(value: int | None) -> str:
    """A large count with three digits and a unit: 41234567 is "41.2 M"."""
    if value is None:
        return MISSING
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{_three_digits(value / factor)} {unit}"
    return str(value)


def byte_count(value: int | None) -> str:
    """Bytes in binary units."""
    if value is None:
        return MISSING
    for factor, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= factor:
            return f"{_three_digits(value / factor)} {unit}"
    return f"{value} B"


def age(seconds: float) -> str:
    """How long ago, in one unit: "just now", "40 s ago", "3 min ago", "2 h ago", "5 days ago"."""
    seconds = max(0.0, seconds)
    if seconds < 5:
        return "just now"
    if seconds < 90:
        return f"{seconds:.0f} s ago"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min ago"
    if seconds < 36 * 3600:
        return f"{seconds / 3600:.0f} h ago"
    return f"{seconds / 86400:.0f} days ago"


def span(seconds: float) -> str:
    """How long something took: "0.8 s", "42 s", "12 min 5 s", "3 h 20 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def device_time(minutes: float) -> str:
    """What measuring took on devices, which results tell in minutes: as `span`."""
    return span(60.0 * minutes)


def short_id(identity: str) -> str:
    """The prefix and the first eight digits of an identity: enough to recognise it in a list."""
    head, mark, tail = identity.partition("_")
    return f"{head}{mark}{tail[:8]}"


def error(value: float | None) -> str:
    """A small difference in powers of ten: "3.1e-06"."""
    return MISSING if value is None else f"{value:.1e}"


FILTERS: dict[str, Callable[..., Any]] = {
    "age": age,
    "bytes": byte_count,
    "count": count,
    "duration": duration,
    "error": error,
    "interval": interval,
    "latency": latency,
    "latency_interval": latency_interval,
    "percent": percent,
    "percent_interval": percent_interval,
    "short_id": short_id,
    "span": span,
    "times": times,
}


def _ns_unit(value_ns: float) -> tuple[float, str]:
    for factor, unit in _NS_UNITS:
        if abs(value_ns) >= factor:
            return factor, unit
    return _NS_UNITS[-1]


def _three_digits(value: float) -> str:
    return _digits(value, 3)


def _digits(value: float, digits: int) -> str:
    """`digits` significant digits without an exponent, zeros at their end too, so that columns align; never fewer than
    the whole part has.
    """
    if 0 < abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{_decimals(value, digits)}f}"


def _decimals(value: float, digits: int) -> int:
    """How many there are behind the point of `digits` significant digits."""
    if not value:
        return digits - 1
    # Rounding may add a digit in front: 0.9996 is 1.00.
    _, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return max(0, digits - 1 - int(exponent))


def _ends(bounds: tuple[float, float]) -> str:
    """Both with the decimals of the larger."""
    largest = max(bounds, key=abs)
    if 0 < abs(largest) < 1e-4:
        return " to ".join(_digits(bound, 4) for bound in bounds)
    return " to ".join(f"{bound:.{_decimals(largest, 4)}f}" for bound in bounds)
