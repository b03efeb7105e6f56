"""The state of the device, read from /proc and /sys. The root is injectable: tests read recorded trees.

Whatever cannot be read is None; nothing here raises because a file is missing or odd.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from device_agent.contracts.measurement import Conditions

#: Thermal zones whose type holds one of these words measure the processor (ARM boards, phones, x86, in this order).
_CPU_ZONES = ("cpu", "soc", "x86_pkg_temp", "tsens", "core", "package")

#: Sensors that are switched off report nonsense; silicon works in this range.
_PLAUSIBLE_CELSIUS = (-40.0, 150.0)

#: Above this a device is throttled or about to be: a measurement would show the heat, not the kernel.
MAX_START_CELSIUS = 75.0
#: Below this phones save power and lower their clock.
MIN_BATTERY_PERCENT = 15.0


class ConditionsReader:
    """Reads the conditions of the core that a measurement runs on.

    `involuntary_switches` counts those of the calling thread, so it is read by the thread that measures.
    """

    def __init__(self, *, root: Path = Path("/"), core: int = 0) -> None:
        self._root = root
        self._core = core

    def read(self) -> Conditions:
        return Conditions(
            frequency_hz=self._frequency_hz(),
            governor=_read_text(self._cpufreq / "scaling_governor"),
            temperature_celsius=read_temperature_celsius(self._root),
            load_1min=_first_number(self._root / "proc/loadavg"),
            battery_percent=_battery_percent(self._root),
            involuntary_switches=_involuntary_switches(),
        )

    @property
    def _cpufreq(self) -> Path:
        return self._root / f"sys/devices/system/cpu/cpu{self._core}/cpufreq"

    def _frequency_hz(self) -> int | None:
        # `cpuinfo_cur_freq` asks the hardware, but only root may read it; `scaling_cur_freq` is the governor's word.
        for name in ("cpuinfo_cur_freq", "scaling_cur_freq"):
            kilohertz = _first_number(self._cpufreq / name)
            if kilohertz is not None and kilohertz > 0:
                return int(kilohertz * 1000)
        return None


def why_not_ready(conditions: Conditions) -> str | None:
    """Why the device should not measure now: too hot, or its battery too low. None when it may."""
    celsius, battery = conditions.temperature_celsius, conditions.battery_percent
    if celsius is not None and celsius > MAX_START_CELSIUS:
        return f"the processor is at {celsius:.0f} °C; measuring starts at {MAX_START_CELSIUS:.0f} °C or below"
    if battery is not None and battery < MIN_BATTERY_PERCENT:
        return f"the battery is at {battery:.0f} %; measuring needs {MIN_BATTERY_PERCENT:.0f} %"
    return None


def read_temperature_celsius(root: Path = Path("/")) -> float | None:
    """The hottest processor zone, or the hottest of all where none is named after the processor."""
    by_rank: dict[int, float] = {}
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        value = _first_number(zone / "temp")
        if value is None:
            continue
        # The kernel's unit is 1/1000 degree; a few old drivers give whole degrees.
        celsius = value / 1000 if abs(value) > 200 else value
        if not _PLAUSIBLE_CELSIUS[0] <= celsius <= _PLAUSIBLE_CELSIUS[1]:
            continue
        kind = (_read_text(zone / "type") or "").lower()
        rank = 0 if any(word in kind for word in _CPU_ZONES) else 1
        by_rank[rank] = max(celsius, by_rank.get(rank, celsius))
    return by_rank[min(by_rank)] if by_rank else None


def fastest_cores(allowed: Sequence[int], root: Path = Path("/")) -> tuple[int, ...]:
    """The cores of `allowed` with the highest capacity, by `cpu_capacity`, else by highest frequency.

    All of `allowed` where the kernel tells neither.
    """
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        speeds = {core: _first_number(root / f"sys/devices/system/cpu/cpu{core}/{name}") for core in allowed}
        known = [speed for speed in speeds.values() if speed is not None]
        if known:
            return tuple(sorted(core for core, speed in speeds.items() if speed == max(known)))
    return tuple(sorted(allowed))


def choose_cores(num_threads: int, root: Path = Path("/")) -> tuple[int, ...]:
    """The cores to pin a measurement to: the last ones of the fastest cluster, since the first serves interrupts.

    Always the same for the same device, so that measurements compare. Empty where the system cannot pin.
    """
    if not hasattr(os, "sched_getaffinity"):
        return ()
    return fastest_cores(sorted(os.sched_getaffinity(0)), root)[-num_threads:]


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Run the calling thread on `cores` only, and restore what was before.

    Yields the cores that it really runs on; empty where the system cannot pin or refuses these cores.
    """
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield ()
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        # A container may own fewer cores than the machine shows: run unpinned, and say so by the empty affinity.
        yield ()
        return
    try:
        yield tuple(sorted(os.sched_getaffinity(0)))
    finally:
        os.sched_setaffinity(0, before)


def _battery_percent(root: Path) -> float | None:
    for supply in sorted(root.glob("sys/class/power_supply/*")):
        if (_read_text(supply / "type") or "").lower() == "battery":
            percent = _first_number(supply / "capacity")
            if percent is not None and 0 <= percent <= 100:
                return percent
    return None


def _involuntary_switches() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    scope = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
    return int(resource.getrusage(scope).ru_nivcsw)


def _first_number(path: Path) -> float | None:
    text = _read_text(path)
    if not text:
        return None
    try:
        return float(text.split()[0])
    except ValueError:
        return None


def _read_text(path: Path) -> str | None:
    # Sensors may fail with EIO, EAGAIN or EACCES at any time, and hold bytes that are no text.
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
