"""Heat, and what the device does about it: zones, trip points, cooling devices and throttle counters.

Names and units are those of the kernel's driver-api/thermal/sysfs-api and of the drivers named below.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from device_agent.measuring.sysfs import first_integer, first_number, read_text

#: Thermal zones whose type holds one of these words measure the processor (ARM boards, phones, x86, in this order).
_CPU_ZONES = ("cpu", "soc", "x86_pkg_temp", "tsens", "core", "package")

#: Cooling devices that lower the processor's clock: thermal-cpufreq-0, cpufreq-cpu0, and ACPI's Processor.
_CPU_COOLERS = re.compile(r"cpufreq|^processor$", re.IGNORECASE)

#: Sensors that are switched off report nonsense; silicon works in this range.
_PLAUSIBLE_CELSIUS = (-40.0, 150.0)
#: Trip points below this are unset (0 or -274 on x86) or of a fan.
_LOWEST_TRIP_CELSIUS = 45.0

#: The Raspberry Pi's firmware: bits 0 to 3 say what is so now (too little voltage, clock capped, throttled, soft
#: limit), bits 16 to 19 what was so since it started.
_RASPBERRY_PI = "sys/devices/platform/soc/soc:firmware/get_throttled"
_NOW_BITS = 0xF
_SINCE_START_BITS = 0xF0000


def read_temperature_celsius(root: Path = Path("/")) -> float | None:
    """The hottest processor zone, or the hottest of all where none is named after the processor."""
    by_rank: dict[int, float] = {}
    for zone, rank in _zones(root):
        celsius = _celsius(zone / "temp")
        if celsius is not None:
            by_rank[rank] = max(celsius, by_rank.get(rank, celsius))
    return by_rank[min(by_rank)] if by_rank else None


def throttling_starts_celsius(root: Path = Path("/")) -> float | None:
    """The lowest passive trip point of the processor's zones: there the kernel begins to lower the clock."""
    found = []
    for zone, rank in _zones(root):
        if rank > 0:
            continue
        for kind in sorted(zone.glob("trip_point_*_type")):
            celsius = _celsius(kind.with_name(kind.name.replace("_type", "_temp")))
            if read_text(kind) == "passive" and celsius is not None and celsius >= _LOWEST_TRIP_CELSIUS:
                found.append(celsius)
    return min(found, default=None)


def read_throttled(root: Path = Path("/")) -> bool | None:
    """Whether the device says that it lowers the processor's clock now; None where it says nothing about it."""
    signs = []
    firmware = _raspberry_pi(root)
    if firmware is not None:
        signs.append(bool(firmware & _NOW_BITS))
    for monitor in sorted(root.glob("sys/class/hwmon/hwmon*")):
        # raspberrypi-hwmon: an alarm of too little voltage, upon which the firmware caps the clock.
        if read_text(monitor / "name") == "rpi_volt":
            alarm = first_integer(monitor / "in0_lcrit_alarm")
            signs += [] if alarm is None else [alarm != 0]
    for cooler in sorted(root.glob("sys/class/thermal/cooling_device*")):
        if _CPU_COOLERS.search(read_text(cooler / "type") or ""):
            state = first_integer(cooler / "cur_state")
            signs += [] if state is None else [state > 0]
    return any(signs) if signs else None


def read_throttle_count(core: int, root: Path = Path("/")) -> int | None:
    """How often `core` was throttled since the start: x86 counts it, a Raspberry Pi keeps what kinds it saw."""
    counters = root / f"sys/devices/system/cpu/cpu{core}/thermal_throttle"
    counts = [first_integer(counters / name) for name in ("core_throttle_count", "package_throttle_count")]
    firmware = _raspberry_pi(root)
    if firmware is not None:
        counts.append((firmware & _SINCE_START_BITS).bit_count())
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _zones(root: Path) -> Iterator[tuple[Path, int]]:
    """Thermal zones; rank 0 are those of the processor."""
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        kind = (read_text(zone / "type") or "").lower()
        yield zone, 0 if any(word in kind for word in _CPU_ZONES) else 1


def _celsius(path: Path) -> float | None:
    value = first_number(path)
    if value is None:
        return None
    # The kernel's unit is 1/1000 degree; a few old drivers give whole degrees.
    celsius = value / 1000 if abs(value) > 200 else value
    return celsius if _PLAUSIBLE_CELSIUS[0] <= celsius <= _PLAUSIBLE_CELSIUS[1] else None


def _raspberry_pi(root: Path) -> int | None:
    text = read_text(root / _RASPBERRY_PI)
    try:
        return None if text is None else int(text, 16)
    except ValueError:
        return None
