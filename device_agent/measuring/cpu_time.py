"""Who had the core: counters of /proc/stat, and the control group that may hold the process back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from device_agent.measuring.sysfs import first_number, read_text

#: Columns of a cpu line in /proc/stat (proc(5)) in which the core works: user, nice, system, irq, softirq, and steal,
#: which the hypervisor took. Idle and waiting for I/O are not; guest time is part of user.
_BUSY_COLUMNS = (0, 1, 2, 5, 6, 7)

#: Where the two versions of control groups are mounted.
_V2_MOUNT = "sys/fs/cgroup"
_V1_MOUNTS = ("sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup/cpu", "dev/cpuctl")


def read_uptime_s(root: Path = Path("/")) -> float | None:
    """Seconds since the device started."""
    return first_number(root / "proc/uptime")


def read_core_busy_s(core: int, root: Path = Path("/")) -> float | None:
    """Seconds since the start in which `core` worked for anybody. Its step is one tick, most often 10 ms."""
    for line in (read_text(root / "proc/stat") or "").splitlines():
        name, *columns = line.split()
        if name == f"cpu{core}":
            try:
                ticks = sum(int(columns[i]) for i in _BUSY_COLUMNS if i < len(columns))
            except ValueError:
                return None
            return ticks / _ticks_per_s()
    return None


def read_cpu_quota(root: Path = Path("/")) -> float | None:
    """How many CPUs the control groups grant this process; None where they set no limit or cannot be read."""
    limits = [quota for folder in _groups(root) if (quota := _quota(folder)) is not None]
    return min(limits, default=None)


def read_quota_throttled_s(root: Path = Path("/")) -> float | None:
    """For how long the control groups have held their processes back so far; None where that is not counted."""
    held = [seconds for folder in _groups(root) if (seconds := _throttled_s(folder)) is not None]
    return max(held, default=None)


def _groups(root: Path) -> Iterator[Path]:
    """Folders of this process's control groups, the own one and all above it. In a container the path is often "/"."""
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mounts: tuple[str, ...] = (_V2_MOUNT,)
        elif "cpu" in controllers.split(","):
            mounts = _V1_MOUNTS
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for mount in mounts:
            for depth in range(len(parts), -1, -1):
                folder = (root / mount).joinpath(*parts[:depth])
                if folder.is_dir():
                    yield folder


def _quota(folder: Path) -> float | None:
    words = (read_text(folder / "cpu.max") or "").split()
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
        return int(words[0]) / int(words[1])
    quota, period = (first_number(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return quota / period if quota is not None and period and quota > 0 else None


def _throttled_s(folder: Path) -> float | None:
    for line in (read_text(folder / "cpu.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        per_s = {"throttled_usec": 1e6, "throttled_time": 1e9}.get(name)
        if per_s is not None and value.strip().isdigit():
            return int(value) / per_s
    return None


def _ticks_per_s() -> int:
    try:
        return os.sysconf("SC_CLK_TCK")
    except (AttributeError, ValueError, OSError):
        return 100
