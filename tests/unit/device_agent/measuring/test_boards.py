"""What is read from the trees of four kinds of device: heat, throttling, quota, power, cores and limits."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from device_agent.contracts import Conditions, ThermalMode
from device_agent.measuring.conditions import ConditionsReader
from device_agent.measuring.pinning import fastest_cores
from device_agent.measuring.preflight import Limits, limits_of
from device_agent.measuring.thermal import read_throttle_count, read_throttled, throttling_starts_celsius

TREES = Path(__file__).parents[3] / "fixtures" / "sysfs"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def read(tree: str, core: int = 0, *, alone: bool = True) -> Conditions:
    return ConditionsReader(root=TREES / tree, core=core, alone=alone, process_cpu_s=lambda: 2.5).read()


def limits(tree: str) -> Limits:
    return limits_of(read(tree), TREES / tree)


def copy_of(tree: str, to: Path, **changes: str) -> Path:
    """A copy of a tree in which some files hold something else."""
    root = to / tree
    shutil.copytree(TREES / tree, root)
    for path, text in changes.items():
        (root / path).write_text(text)
    return root


def test_a_raspberry_pi_4() -> None:
    found = read("raspberry-pi-4", core=3)
    assert (found.frequency_hz, found.frequency_limit_hz, found.governor) == (1_800_000_000, 1_800_000_000, "ondemand")
    assert found.temperature_celsius == pytest.approx(46.738)
    assert (found.throttled, found.throttle_count) == (False, 0)  # the fan is no sign of it
    assert found.core_busy_s == pytest.approx((800 + 350 + 10) / TICKS_PER_S)
    assert (found.uptime_s, found.process_cpu_s) == (5021.37, 2.5)
    assert (found.cpu_quota, found.quota_throttled_s) == (None, 0.0)
    assert (found.battery_percent, found.charging, found.screen_on) == (None, None, None)
    assert limits("raspberry-pi-4") == Limits(start_celsius=75.0, cold_celsius=50.0)
    assert fastest_cores(range(4), TREES / "raspberry-pi-4") == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("bits", "throttled", "count"),
    [
        ("0", False, 0),
        ("50000", False, 2),
        ("50005", True, 2),
        ("0x80008", True, 1),
        ("1", True, 0),
        ("junk", False, None),
    ],
)
def test_what_the_firmware_of_a_raspberry_pi_says(
    tmp_path: Path, bits: str, throttled: bool, count: int | None
) -> None:
    root = copy_of("raspberry-pi-4", tmp_path, **{"sys/devices/platform/soc/soc:firmware/get_throttled": bits})
    assert read_throttled(root) is throttled
    assert read_throttle_count(0, root) == count


def test_too_little_voltage_is_throttling(tmp_path: Path) -> None:
    root = copy_of("raspberry-pi-4", tmp_path, **{"sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1"})
    assert read_throttled(root) is True


def test_a_big_little_phone(tmp_path: Path) -> None:
    found = read("big-little-phone", core=7)
    assert (found.frequency_hz, found.frequency_limit_hz, found.governor) == (1_977_600_000, 3_187_200_000, "walt")
    assert found.temperature_celsius == pytest.approx(40.1)
    assert (found.battery_percent, found.charging, found.screen_on, found.cpuset) == (82, False, False, "/top-app")
    assert (found.throttled, found.throttle_count) == (False, None)  # the GPU's cooling is its own affair
    assert (found.core_busy_s, found.cpu_quota) == (None, None)  # Android keeps /proc/stat from apps
    assert fastest_cores(range(8), TREES / "big-little-phone") == (7,)
    assert fastest_cores(range(7), TREES / "big-little-phone") == (4, 5, 6)
    assert throttling_starts_celsius(TREES / "big-little-phone") == 95.0
    assert limits("big-little-phone") == Limits(start_celsius=75.0, cold_celsius=37.0)
    capped = copy_of("big-little-phone", tmp_path, **{"sys/class/thermal/cooling_device2/cur_state": "3"})
    assert read_throttled(capped) is True


def test_a_low_trip_point_lowers_the_limits(tmp_path: Path) -> None:
    changes = {f"sys/class/thermal/thermal_zone{i}/trip_point_0_temp": "55000" for i in (1, 2, 3)}
    root = copy_of("big-little-phone", tmp_path, **changes)
    found = limits_of(Conditions(), root)
    assert found == Limits(start_celsius=50.0, cold_celsius=35.0)
    assert (found.of(ThermalMode.COLD), found.of(ThermalMode.ANY), found.of(ThermalMode.SUSTAINED)) == (35, 50, 85)


def test_an_x86_server() -> None:
    found = read("x86-server", core=2)
    assert (found.frequency_hz, found.governor, found.temperature_celsius) == (2_902_000_000, "performance", 44.0)
    assert (found.throttled, found.throttle_count) == (False, 17)
    assert found.core_busy_s == pytest.approx((2280000 + 300 + 553000 + 4000) / TICKS_PER_S)
    assert (found.cpu_quota, found.quota_throttled_s) == (2.5, 1.5)  # of the group above
    assert throttling_starts_celsius(TREES / "x86-server") is None  # its trip points are unset


def test_a_container_without_sysfs() -> None:
    found = read("container-without-sysfs")
    assert (found.frequency_hz, found.governor, found.temperature_celsius, found.throttled) == (None,) * 4
    assert (found.cpu_quota, found.quota_throttled_s) == (0.5, 7.312001)
    assert limits("container-without-sysfs") == Limits(start_celsius=75.0, cold_celsius=50.0)


def test_counters_of_a_core_are_read_only_where_the_process_is_bound_to_it() -> None:
    found = read("x86-server", alone=False)
    assert (found.uptime_s, found.core_busy_s, found.process_cpu_s) == (None, None, None)


def test_an_old_control_group(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup/cpu,cpuacct/docker/ab"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n")
    (group / "cpu.cfs_quota_us").write_text("150000\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    (group / "cpu.stat").write_text("nr_periods 5\nnr_throttled 2\nthrottled_time 250000000\n")
    found = ConditionsReader(root=tmp_path).read()
    assert (found.cpu_quota, found.quota_throttled_s) == (1.5, 0.25)
