"""Whether a device may start, waiting until it may, and what is said about it beforehand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.contracts import Conditions, ThermalMode
from device_agent.measuring.conditions import ConditionsReader
from device_agent.measuring.preflight import (
    CoolingGate,
    Limits,
    boost_enabled,
    checks,
    is_cold,
    limits_of,
    why_not_ready,
)
from tests.unit.device_agent.agent.running_agent import ManualClock

TREES = Path(__file__).parents[3] / "fixtures" / "sysfs"
LIMITS = Limits(start_celsius=70.0, cold_celsius=40.0)
ANY, COLD, SUSTAINED = ThermalMode.ANY, ThermalMode.COLD, ThermalMode.SUSTAINED


def at(celsius: float | None, **more: object) -> Conditions:
    return Conditions(temperature_celsius=celsius, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("conditions", "mode", "words"),
    [
        (at(None), COLD, None),
        (at(40), COLD, None),
        (at(41), COLD, "41 °C; measuring starts at 40 °C"),
        (at(41), ANY, None),
        (at(71), ANY, "measuring starts at 70 °C"),
        (at(71), SUSTAINED, None),
        (at(86), SUSTAINED, "measuring starts at 85 °C"),
        (at(30, battery_percent=29), ANY, "the battery is at 29 %"),
        (at(30, throttled=True), ANY, "lowers its clock"),
        (at(30, throttled=True), COLD, "lowers its clock"),
        (at(30, throttled=True), SUSTAINED, None),
        (at(30, throttled=True), None, None),
    ],
)
def test_when_a_task_may_start(conditions: Conditions, mode: ThermalMode | None, words: str | None) -> None:
    reason = why_not_ready(conditions, LIMITS, mode)
    assert (reason is None) if words is None else (words in (reason or ""))


def test_cold_is_only_what_is_known_to_be() -> None:
    assert is_cold(at(43), LIMITS)  # starting the process warms it up by some degrees
    assert not is_cold(at(44), LIMITS)
    assert not is_cold(at(None), LIMITS)


def falling(*celsius: float) -> Iterator[Conditions]:
    yield from (at(value) for value in celsius)
    while True:
        yield at(celsius[-1])


def test_the_gate_waits_until_the_device_has_cooled() -> None:
    clock, readings = ManualClock(), falling(60, 52, 45, 39)
    assert CoolingGate(lambda: next(readings), LIMITS, clock).wait(COLD) is None
    assert clock.waits == [2.0] * 3


def test_the_gate_gives_up_after_its_limit() -> None:
    clock = ManualClock()
    reason = CoolingGate(lambda: at(60), LIMITS, clock, limit_s=10.0).wait(COLD)
    assert "60 °C" in (reason or "")
    assert sum(clock.waits) == 10.0


def test_an_interruption_ends_the_wait() -> None:
    interrupt = threading.Event()
    interrupt.set()
    clock = ManualClock()
    assert CoolingGate(lambda: at(60), LIMITS, clock).wait(COLD, interrupt) is not None
    assert clock.waits == []


def found_on(tree: str) -> dict[str, bool | None]:
    now = ConditionsReader(root=TREES / tree, core=0, alone=True).read()
    return {check.name: check.ok for check in checks(now, now, limits_of(now, TREES / tree), (3,))}


def test_what_is_good_and_bad_about_devices() -> None:
    board, container = found_on("raspberry-pi-4"), found_on("container-without-sysfs")
    assert (board["temperature"], board["throttling"], board["governor"], board["quota"]) == (True, True, False, True)
    assert (container["temperature"], container["throttling"], container["governor"]) == (None, None, None)
    assert container["quota"] is False


def test_what_is_bad_has_a_remedy() -> None:
    before = Conditions(uptime_s=100.0, core_busy_s=50.0, process_cpu_s=0.0)
    after = Conditions(
        uptime_s=101.0,
        core_busy_s=50.9,
        process_cpu_s=0.1,
        temperature_celsius=90.0,
        battery_percent=5.0,
        throttled=True,
        governor="ondemand",
        cpu_quota=0.5,
    )
    found = checks(before, after, LIMITS, (), boost=True)
    bad = {check.name for check in found if check.ok is False}
    assert bad == {"temperature", "throttling", "battery", "governor", "boost", "pinning", "quota", "other load"}
    assert all(check.remedy for check in found if check.ok is False)
    assert "80%" in next(check.found for check in found if check.name == "other load")


@pytest.mark.parametrize(
    ("file", "text", "boosts"),
    [
        ("intel_pstate/no_turbo", "0\n", True),
        ("intel_pstate/no_turbo", "1\n", False),
        ("cpufreq/boost", "1\n", True),
        ("cpufreq/boost", "0\n", False),
        ("cpufreq/boost", "", None),
        ("none", "", None),
    ],
)
def test_whether_the_processor_boosts(tmp_path: Path, file: str, text: str, boosts: bool | None) -> None:
    path = tmp_path / "sys/devices/system/cpu" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert boost_enabled(tmp_path) is boosts
