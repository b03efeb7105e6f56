"""Which core a measurement runs on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from device_agent.measuring.sysfs import first_number


def fastest_cores(allowed: Sequence[int], root: Path = Path("/")) -> tuple[int, ...]:
    """The cores of `allowed` with the highest capacity, by `cpu_capacity`, else by highest frequency.

    All of `allowed` where the kernel tells neither.
    """
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        speeds = {core: first_number(root / f"sys/devices/system/cpu/cpu{core}/{name}") for core in allowed}
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
