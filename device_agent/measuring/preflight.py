"""Whether the device may measure now, and what about it will make the numbers worse.

What passes by itself (heat, an empty battery, a lowered clock) is waited for: it makes a measurement later, not failed.
What does not (a quota, an unknown governor) only shows in the verdict; `checks` says it beforehand, with the remedy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from device_agent.clock import Clock
from device_agent.contracts.measurement import Conditions, ThermalMode
from device_agent.contracts.verdict import CONTENDED_SHARE, TOO_HOT_CELSIUS, foreign_share
from device_agent.measuring.sysfs import first_number
from device_agent.measuring.thermal import throttling_starts_celsius

#: Above this a device is throttled or about to be: a measurement would show the heat, not the kernel.
MAX_START_CELSIUS = 75.0
#: Likewise, this close to where its kernel begins to lower the clock.
START_BELOW_TRIP = 5.0

#: Below this phones save power and lower their clock (FAI-PEP's monitor waits for the same).
MIN_BATTERY_PERCENT = 30.0

#: Cold is what a device has at rest. A phone in a room: up to 37 degrees (react-native-executorch holds until then).
#: A board without a fan idles at 45 to 50.
COLD_HANDHELD_CELSIUS = 37.0
COLD_BOARD_CELSIUS = 50.0
#: But well below the first trip point, so that a cold run is over before the device feels it.
COLD_BELOW_TRIP = 20.0
#: Starting a process warms a small device up by about this.
COLD_TOLERANCE = 3.0

#: A device that does not cool within this time gives the task back: something else heats it.
COOLING_LIMIT_S = 300.0
POLL_INTERVAL_S = 2.0

#: Governors that keep one frequency.
_STEADY_GOVERNORS = frozenset({"performance", "userspace", "powersave"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Temperatures in degrees Celsius at or below which a measurement may start, of one device."""

    start_celsius: float
    cold_celsius: float

    def of(self, mode: ThermalMode) -> float:
        """The limit for a thermal mode. A sustained run heats the device anyway."""
        if mode is ThermalMode.COLD:
            return self.cold_celsius
        return TOO_HOT_CELSIUS if mode is ThermalMode.SUSTAINED else self.start_celsius


def limits_of(conditions: Conditions, root: Path = Path("/")) -> Limits:
    """The limits of the device whose trees are under `root`: handhelds are told by their battery."""
    trip = throttling_starts_celsius(root)
    start = MAX_START_CELSIUS
    cold = COLD_BOARD_CELSIUS if conditions.battery_percent is None else COLD_HANDHELD_CELSIUS
    if trip is not None:
        start = min(start, trip - START_BELOW_TRIP)
        cold = min(cold, trip - COLD_BELOW_TRIP)
    return Limits(start_celsius=start, cold_celsius=cold)


def why_not_ready(conditions: Conditions, limits: Limits | None = None, mode: ThermalMode | None = None) -> str | None:
    """Why the device should not measure now: too hot, throttled, or its battery too low. None when it may.

    Without a `mode` this is about taking any task at all: whether the clock is lowered counts for single tasks only.
    """
    celsius, battery = conditions.temperature_celsius, conditions.battery_percent
    limit = MAX_START_CELSIUS if limits is None else limits.of(mode or ThermalMode.ANY)
    if celsius is not None and celsius > limit:
        return f"the processor is at {celsius:.0f} °C; measuring starts at {limit:.0f} °C or below"
    if battery is not None and battery < MIN_BATTERY_PERCENT:
        return f"the battery is at {battery:.0f} %; measuring needs {MIN_BATTERY_PERCENT:.0f} %"
    if mode in (ThermalMode.ANY, ThermalMode.COLD) and conditions.throttled:
        return "the device says that it lowers its clock now, for heat or for lack of voltage"
    return None


def is_cold(conditions: Conditions, limits: Limits) -> bool:
    """Whether a run that starts now is a cold one. Where no temperature can be read, nobody knows."""
    celsius = conditions.temperature_celsius
    return celsius is not None and celsius <= limits.cold_celsius + COLD_TOLERANCE


class CoolingGate:
    """Waits until the device may start a task of some thermal mode."""

    def __init__(
        self, read: Callable[[], Conditions], limits: Limits, clock: Clock, limit_s: float = COOLING_LIMIT_S
    ) -> None:
        self._read = read
        self._limits = limits
        self._clock = clock
        self._limit_s = limit_s

    def wait(self, mode: ThermalMode, interrupt: threading.Event | None = None) -> str | None:
        """Wait while the device is not ready, at most for the limit, and not once `interrupt` is set.

        None when it is ready; else the reason why it still is not.
        """
        event = interrupt or threading.Event()
        ends_at = self._clock.monotonic() + self._limit_s
        while True:
            reason = why_not_ready(self._read(), self._limits, mode)
            if reason is None or event.is_set() or self._clock.monotonic() >= ends_at:
                return reason
            self._clock.wait(event, POLL_INTERVAL_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One look at the device. `ok` is None where it does not tell."""

    name: str
    ok: bool | None
    found: str
    remedy: str | None = None


def boost_enabled(root: Path = Path("/")) -> bool | None:
    """Whether the processor may run above its nominal frequency for a while (turbo); None where the system does not
    tell. Linux: Documentation/admin-guide/pm/intel_pstate.rst and cpufreq.rst.
    """
    cpu = root / "sys/devices/system/cpu"
    no_turbo = first_number(cpu / "intel_pstate/no_turbo")
    if no_turbo is not None:
        return no_turbo == 0
    boost = first_number(cpu / "cpufreq/boost")
    return None if boost is None else boost != 0


def checks(
    before: Conditions, after: Conditions, limits: Limits, affinity: tuple[int, ...], boost: bool | None = None
) -> tuple[Check, ...]:
    """What is good and bad about measuring on this device, from conditions before and after a moment of rest, and from
    whether its processor boosts.
    """
    return (
        _temperature(after, limits),
        _throttling(before, after),
        _battery(after),
        _governor(after),
        _boost(boost),
        Check(
            name="pinning",
            ok=bool(affinity),
            found=f"core {', '.join(map(str, affinity))}" if affinity else "the system refuses to pin",
            remedy=None if affinity else "allow the agent its fastest core: taskset, CPUAffinity, or the cpuset",
        ),
        _quota(after),
        _load(before, after),
        Check(
            name="run mode",
            ok=None if after.cpuset is None and after.screen_on is None else True,
            found=f"cpuset {after.cpuset or 'unknown'}, screen {_word(after.screen_on, 'on', 'off')}, "
            f"charger {_word(after.charging, 'on', 'off')}",
        ),
    )


def _temperature(now: Conditions, limits: Limits) -> Check:
    gates = f"starts at {limits.start_celsius:.0f} °C or below, cold runs at {limits.cold_celsius:.0f} °C"
    if now.temperature_celsius is None:
        return Check(
            name="temperature",
            ok=None,
            found=f"no sensor can be read ({gates})",
            remedy="only the reference kernel will show throttling; cold runs are marked not_cold",
        )
    ok = now.temperature_celsius <= limits.start_celsius
    return Check(
        name="temperature",
        ok=ok,
        found=f"{now.temperature_celsius:.0f} °C ({gates})",
        remedy=None if ok else "let it cool, or give it a heat sink: the agent waits",
    )


def _throttling(before: Conditions, after: Conditions) -> Check:
    if after.throttled is None and after.throttle_count is None:
        return Check(name="throttling", ok=None, found="the device does not tell")
    now = bool(after.throttled) or (after.throttle_count or 0) > (before.throttle_count or 0)
    since = f", {after.throttle_count} times since it started" if after.throttle_count else ""
    return Check(
        name="throttling",
        ok=not now,
        found=f"{'now' if now else 'not now'}{since}",
        remedy="cool it, or use a stronger power supply" if now else None,
    )


def _battery(now: Conditions) -> Check:
    if now.battery_percent is None:
        return Check(name="battery", ok=True, found="none")
    ok = now.battery_percent >= MIN_BATTERY_PERCENT
    return Check(
        name="battery", ok=ok, found=f"{now.battery_percent:.0f} %", remedy=None if ok else "charge it: the agent waits"
    )


def _governor(now: Conditions) -> Check:
    if now.governor is None:
        return Check(name="governor", ok=None, found="not known: nothing tells the frequency")
    ok = now.governor in _STEADY_GOVERNORS
    return Check(
        name="governor",
        ok=ok,
        found=now.governor,
        remedy=None if ok else "set one that keeps the frequency, at one that the device keeps when warm",
    )


def _boost(enabled: bool | None) -> Check:
    return Check(
        name="boost",
        ok=None if enabled is None else not enabled,
        found=f"turbo is {_word(enabled, 'on', 'off')}",
        remedy="turn it off while measuring: echo 1 > /sys/devices/system/cpu/intel_pstate/no_turbo, or "
        "echo 0 > /sys/devices/system/cpu/cpufreq/boost"
        if enabled
        else None,
    )


def _quota(now: Conditions) -> Check:
    if now.cpu_quota is None:
        return Check(name="quota", ok=True, found="none")
    ok = now.cpu_quota >= 1
    return Check(
        name="quota",
        ok=ok,
        found=f"{now.cpu_quota:g} CPUs",
        remedy=None if ok else "raise the control group's cpu.max to one CPU for each thread",
    )


def _load(before: Conditions, after: Conditions) -> Check:
    share = foreign_share(before, after)
    if share is None:
        return Check(name="other load", ok=None, found="the core's counters cannot be read")
    ok = share <= CONTENDED_SHARE
    return Check(
        name="other load",
        ok=ok,
        found=f"others have {share:.0%} of the core",
        remedy=None if ok else "stop them, or keep them off the core (isolcpus, cpuset)",
    )


def _word(value: bool | None, yes: str, no: str) -> str:
    return "unknown" if value is None else yes if value else no
