"""Faults that are put into a measurement while it runs, each with the reason that has to be in its verdict.

The device is a copy of a recorded tree; what happens to it happens at the beginning of a chosen block, so that the
measurement meets it as it would on hardware: through its own readings.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from device_agent.contracts import VerdictReason
from device_agent.measuring.benchmark import Repeatable
from device_agent.measuring.reference_kernel import ReferenceKernel
from device_agent.runtimes.base import Executable, FloatArray

TREES = Path(__file__).parents[2] / "tests" / "fixtures" / "sysfs"

#: The reference kernel is run this often in a block.
_REFERENCES_IN_A_BLOCK = 3

#: What files hold from the beginning of a block on, by the block's number.
Script = Mapping[int, Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFault:
    """Something that happens to the device `tree` during a measurement. In paths {core} is the measuring core."""

    name: str
    tree: str
    script: Script
    expected: frozenset[VerdictReason]


def _frequency(kilohertz: int) -> dict[str, str]:
    folder = "sys/devices/system/cpu/cpu{core}/cpufreq/"
    return {folder + name: str(kilohertz) for name in ("scaling_cur_freq", "cpuinfo_cur_freq")}


_ZONE = "sys/class/thermal/thermal_zone0/temp"
_THROTTLED = frozenset({VerdictReason.THROTTLED})
_MOVED = frozenset({VerdictReason.FREQUENCY_MOVED})

DEVICE_FAULTS = (
    DeviceFault(
        name="throttling: a hot zone, and a lower clock",
        tree="raspberry-pi-4",
        script={3: {_ZONE: "82000", **_frequency(1_000_000)}},
        expected=_THROTTLED,
    ),
    DeviceFault(
        name="throttling: the firmware says so",
        tree="raspberry-pi-4",
        script={2: {"sys/devices/platform/soc/soc:firmware/get_throttled": "80008"}},
        expected=_THROTTLED,
    ),
    DeviceFault(
        name="throttling: too little voltage for a moment",
        tree="raspberry-pi-4",
        script={
            2: {"sys/devices/platform/soc/soc:firmware/get_throttled": "50005"},
            3: {"sys/devices/platform/soc/soc:firmware/get_throttled": "50000"},
        },
        expected=_THROTTLED,
    ),
    DeviceFault(
        name="throttling: a counter of the core",
        tree="x86-server",
        script={4: {"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count": "4"}},
        expected=_THROTTLED,
    ),
    DeviceFault(
        name="throttling: a cooling device",
        tree="big-little-phone",
        script={1: {"sys/class/thermal/cooling_device2/cur_state": "3"}},
        expected=_THROTTLED,
    ),
    DeviceFault(
        name="throttling: a lower limit",
        tree="big-little-phone",
        script={3: {"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_max_freq": "1200000"}},
        expected=_THROTTLED,
    ),
    DeviceFault(
        name="heat: a zone above 85 degrees",
        tree="raspberry-pi-4",
        script={1: {_ZONE: "91000"}},
        expected=frozenset({VerdictReason.TOO_HOT}),
    ),
    DeviceFault(
        name="frequency: lower until the end", tree="raspberry-pi-4", script={4: _frequency(1_500_000)}, expected=_MOVED
    ),
    DeviceFault(
        name="frequency: lower for two blocks",
        tree="raspberry-pi-4",
        script={2: _frequency(1_500_000), 4: _frequency(1_800_000)},
        expected=_MOVED,
    ),
    DeviceFault(name="frequency: a boost", tree="x86-server", script={3: _frequency(3_400_000)}, expected=_MOVED),
    DeviceFault(
        name="frequency: another governor",
        tree="raspberry-pi-4",
        script={3: {"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor": "powersave"}},
        expected=_MOVED,
    ),
    DeviceFault(
        name="run mode: unplugged",
        tree="big-little-phone",
        script={0: {"sys/class/power_supply/battery/status": "Charging"}},
        expected=frozenset({VerdictReason.RUN_MODE_CHANGED}),
    ),
    DeviceFault(
        name="run mode: into the background",
        tree="big-little-phone",
        script={2: {"proc/self/cpuset": "/background"}},
        expected=frozenset({VerdictReason.RUN_MODE_CHANGED}),
    ),
)


class Stage:
    """A copy of a tree to which a script happens, block by block."""

    def __init__(self, tree: str, folder: Path, core: int, script: Script) -> None:
        self.root = folder / "root"
        shutil.copytree(TREES / tree, self.root)
        self._core = core
        self._script = script
        self._candidate_ran = False
        self._references = 0

    def candidate_runs(self) -> None:
        """To be told before every run of the candidate."""
        self._candidate_ran = True

    def reference_runs(self) -> None:
        """To be told before every run of the reference kernel: it is warmed up first, so that after the candidate has
        run, each third of its runs begins a block.
        """
        if not self._candidate_ran:
            return
        block, position = divmod(self._references, _REFERENCES_IN_A_BLOCK)
        self._references += 1
        if position == 0:
            for path, text in self._script.get(block, {}).items():
                (self.root / path.format(core=self._core)).write_text(text + "\n")


class StagedReference:
    """A reference kernel that tells a stage when it runs."""

    def __init__(self, kernel: ReferenceKernel, stage: Stage) -> None:
        self.name = kernel.name
        self._kernel = kernel
        self._stage = stage

    def repeat(self, count: int) -> None:
        self._stage.reference_runs()
        self._kernel.repeat(count)


class StagedExecutable:
    """A candidate that tells when it runs, and whose outputs may be spoilt."""

    def __init__(
        self,
        executable: Executable,
        on_repeat: Callable[[], None] = lambda: None,
        spoil: Callable[[FloatArray], FloatArray] = lambda output: output,
    ) -> None:
        self._executable: Repeatable = executable
        self._run = executable.run
        self._on_repeat = on_repeat
        self._spoil = spoil
        self.mode = executable.mode
        self.memory_bytes = executable.memory_bytes
        self.findings = executable.findings
        self.op_ns = executable.op_ns

    def run(self, x: FloatArray, residual: FloatArray | None = None) -> FloatArray:
        return self._spoil(self._run(x, residual))

    def repeat(self, count: int) -> None:
        self._on_repeat()
        self._executable.repeat(count)
