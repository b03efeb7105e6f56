"""Running under load until the device is in the state that it stays in: the beginning of the thermal mode SUSTAINED."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from device_agent.contracts.measurement import Clock
from device_agent.measuring.benchmark import Repeatable, SampleClock, Stopwatch, take_sample

#: The load is looked at in windows of this part of its longest duration.
WINDOWS = 30
#: It is steady once so many windows in a row agree: over a fifth of the longest duration nothing moved.
STEADY_WINDOWS = 6
#: Agreement of latencies (as for warming up) and of temperatures: sensors step by 0.5 to 1 degree.
STEADY_WITHIN = 0.02
STEADY_CELSIUS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One stretch of load: the median time of a run in it, and the temperature at its end."""

    median_ns: float
    celsius: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a device did under load. `steady` says whether it reached its state within the time."""

    windows: tuple[Window, ...]
    steady: bool
    runs: int


def is_steady(windows: Sequence[Window]) -> bool:
    """Whether the last windows agree in latency, and in temperature where that can be read."""
    last = windows[-STEADY_WINDOWS:]
    if len(last) < STEADY_WINDOWS:
        return False
    medians = [window.median_ns for window in last]
    if max(medians) - min(medians) > STEADY_WITHIN * median(medians):
        return False
    degrees = [window.celsius for window in last if window.celsius is not None]
    return not degrees or max(degrees) - min(degrees) <= STEADY_CELSIUS


def load_until_steady(
    executable: Repeatable,
    iterations: int,
    clock: SampleClock,
    *,
    read: Clock,
    load_s: float,
    read_celsius: Callable[[], float | None],
) -> Load:
    """Run `executable` without a pause until it is steady, at most for `load_s`.

    A sample is `iterations` runs, read on the clock `read`; a window lasts `load_s` / 30, and one sample at least.
    """
    windows: list[Window] = []
    runs = 0
    watch = Stopwatch(clock, load_s)
    while watch.left_s > 0 and not is_steady(windows):
        window = Stopwatch(clock, load_s / WINDOWS)
        times: list[float] = []
        while window.left_s > 0 or not times:
            times.append(take_sample(executable, clock, iterations).read(read))
            runs += iterations
        windows.append(Window(median_ns=median(times), celsius=read_celsius()))
    return Load(windows=tuple(windows), steady=is_steady(windows), runs=runs)
