"""Conditions from trees of /proc and /sys, and pinning."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from device_agent.contracts import Conditions
from device_agent.measuring.conditions import ConditionsReader
from device_agent.measuring.pinning import choose_cores, fastest_cores, pinned
from device_agent.measuring.preflight import why_not_ready
from device_agent.measuring.thermal import read_temperature_celsius

TREES = Path(__file__).parents[3] / "fixtures" / "sysfs"


def test_a_board_tells_everything_but_a_battery() -> None:
    conditions = ConditionsReader(root=TREES / "rk3588-board", core=4).read()
    assert conditions.frequency_hz == 2_256_000_000
    assert conditions.governor == "performance"
    assert conditions.temperature_celsius == 49.0  # the hottest processor zone, not the GPU
    assert conditions.load_1min == 0.42
    assert conditions.battery_percent is None
    assert conditions.involuntary_switches is not None


def test_a_phone_has_a_battery_and_odd_sensors() -> None:
    conditions = ConditionsReader(root=TREES / "android-phone", core=7).read()
    assert conditions.battery_percent == 63
    assert conditions.governor == "sched_pixel"
    assert conditions.temperature_celsius == 31.5  # one zone is in whole degrees, one switched off
    assert conditions.load_1min is None


def test_a_virtual_machine_tells_little() -> None:
    conditions = ConditionsReader(root=TREES / "x86-virtual-machine").read()
    assert (conditions.frequency_hz, conditions.governor, conditions.temperature_celsius) == (None, None, None)
    assert conditions.load_1min == 1.7


def test_files_that_cannot_be_understood_are_none(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/loadavg").write_bytes(b"\xff\xfe nonsense")
    cpufreq = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq"
    cpufreq.mkdir(parents=True)
    (cpufreq / "scaling_cur_freq").write_text("<unknown>\n")
    (tmp_path / "sys/class/thermal/thermal_zone0/temp").mkdir(parents=True)
    conditions = ConditionsReader(root=tmp_path).read()
    assert (conditions.load_1min, conditions.frequency_hz, conditions.temperature_celsius) == (None, None, None)


def test_fastest_cores_by_capacity_then_by_frequency() -> None:
    assert fastest_cores(range(8), TREES / "rk3588-board") == (4, 5, 6, 7)
    assert fastest_cores(range(4), TREES / "rk3588-board") == (0, 1, 2, 3)
    assert fastest_cores(range(8), TREES / "android-phone") == (7,)


def test_all_cores_are_fastest_where_nothing_is_known(tmp_path: Path) -> None:
    assert fastest_cores([3, 1, 2], tmp_path) == (1, 2, 3)


def test_the_choice_of_a_core_is_repeatable() -> None:
    chosen = choose_cores(1)
    assert len(chosen) == 1
    assert choose_cores(1) == chosen


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin")
def test_pinning_is_restored() -> None:
    before = os.sched_getaffinity(0)
    core = max(before)
    with pinned((core,)) as cores:
        assert cores == (core,)
        assert os.sched_getaffinity(0) == {core}
    assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin")
def test_pinning_is_restored_after_an_error() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(KeyError), pinned((max(before),)):
        raise KeyError("x")
    assert os.sched_getaffinity(0) == before


def test_a_core_that_does_not_exist_leaves_the_thread_unpinned() -> None:
    with pinned((4095,)) as cores:
        assert cores == ()
    with pinned(()) as cores:
        assert cores == ()


def test_readiness() -> None:
    assert why_not_ready(Conditions()) is None
    assert why_not_ready(Conditions(temperature_celsius=60, battery_percent=50)) is None
    assert "76 °C" in (why_not_ready(Conditions(temperature_celsius=76)) or "")
    assert "9 %" in (why_not_ready(Conditions(battery_percent=9)) or "")


def test_temperature_of_a_whole_machine() -> None:
    assert read_temperature_celsius(TREES / "x86-virtual-machine") is None
