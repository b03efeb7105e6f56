"""The state of the device, read from /proc and /sys. The root is injectable: tests read recorded trees.

Whatever cannot be read is None; nothing here raises because a file is missing or odd.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from device_agent.contracts.measurement import Conditions
from device_agent.measuring.cpu_time import read_core_busy_s, read_cpu_quota, read_quota_throttled_s, read_uptime_s
from device_agent.measuring.power import read_battery_percent, read_charging, read_screen_on
from device_agent.measuring.sysfs import first_number, read_text
from device_agent.measuring.thermal import read_temperature_celsius, read_throttle_count, read_throttled


class ConditionsReader:
    """Reads the conditions of the core that a measurement runs on.

    `involuntary_switches` counts those of the calling thread, so it is read by the thread that measures. Whose time a
    core spends is only read where the process has it `alone`: is pinned to this one core.
    """

    def __init__(
        self,
        *,
        root: Path = Path("/"),
        core: int = 0,
        alone: bool = False,
        process_cpu_s: Callable[[], float] = time.process_time,
    ) -> None:
        self._root = root
        self._core = core
        self._alone = alone
        self._process_cpu_s = process_cpu_s

    def read(self) -> Conditions:
        root = self._root
        return Conditions(
            frequency_hz=self.frequency_hz(),
            governor=read_text(self._cpufreq / "scaling_governor"),
            temperature_celsius=read_temperature_celsius(root),
            load_1min=first_number(root / "proc/loadavg"),
            battery_percent=read_battery_percent(root),
            involuntary_switches=_involuntary_switches(),
            frequency_limit_hz=self._hz("scaling_max_freq"),
            throttled=read_throttled(root),
            throttle_count=read_throttle_count(self._core, root),
            uptime_s=read_uptime_s(root) if self._alone else None,
            core_busy_s=read_core_busy_s(self._core, root) if self._alone else None,
            process_cpu_s=self._process_cpu_s() if self._alone else None,
            cpu_quota=read_cpu_quota(root),
            quota_throttled_s=read_quota_throttled_s(root),
            screen_on=read_screen_on(root),
            charging=read_charging(root),
            cpuset=read_text(root / "proc/self/cpuset"),
        )

    def frequency_hz(self) -> int | None:
        """The core's frequency now: cheap enough to be read before and after every block."""
        # `cpuinfo_cur_freq` asks the hardware, but only root may read it; `scaling_cur_freq` is the governor's word.
        return self._hz("cpuinfo_cur_freq") or self._hz("scaling_cur_freq")

    @property
    def _cpufreq(self) -> Path:
        return self._root / f"sys/devices/system/cpu/cpu{self._core}/cpufreq"

    def _hz(self, name: str) -> int | None:
        kilohertz = first_number(self._cpufreq / name)
        return int(kilohertz * 1000) if kilohertz is not None and kilohertz > 0 else None


def _involuntary_switches() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    scope = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
    return int(resource.getrusage(scope).ru_nivcsw)
