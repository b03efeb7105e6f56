"""The device's fixed description, read from /proc, /sys and, on Android, its properties.

Nothing here needs root. What cannot be read is left out, never guessed.
"""

from __future__ import annotations

import logging
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from device_agent.arm_cores import core_name
from device_agent.contracts import CpuCluster, DeviceProfile
from device_agent.emulation import emulation_signs
from device_agent.log import log_event

logger = logging.getLogger(__name__)

#: Reads one Android property; "" where it is not set.
ReadProperty = Callable[[str], str]

#: Of the hundred-odd x86 flags, those that the kernels of a network can use.
_X86_FEATURES = re.compile(r"(sse|ssse|avx|amx|fma|f16c|bmi)[0-9a-z_]*")
_GETPROP_TIMEOUT_S = 5.0


def probe_device(
    root: Path = Path("/"),
    *,
    machine: str | None = None,
    kernel_release: str | None = None,
    read_property: ReadProperty | None = None,
    simulated: bool = False,
    emulated: bool = False,
    parent: int | None = None,
) -> DeviceProfile:
    """Describe the device whose file systems are mounted under `root`.

    `machine` and `kernel_release` are those of `uname` unless given; `read_property` runs getprop where there is one.
    A device is emulated where `emulated` says so or `device_agent.emulation` finds it out, with the help of the
    process `parent` that started this one.
    """
    machine = machine if machine is not None else platform.machine()
    release = kernel_release if kernel_release is not None else platform.release()
    read_property = read_property if read_property is not None else _getprop_reader()
    processors = _processors(_text(root / "proc/cpuinfo"))
    general = processors.get(None, {})
    first = next((fields for number, fields in sorted(processors.items(), key=_by_number) if number is not None), {})
    is_android = bool(read_property("ro.build.version.release"))
    signs = emulation_signs(root, machine, first, read_property if is_android else None, parent=parent)
    for sign in signs:
        log_event(logger, logging.WARNING, "emulated_device", sign=sign)
    return DeviceProfile(
        machine=machine,
        system="Android" if is_android else "Linux",
        os_build=_os_build(root, release, read_property if is_android else None),
        cpu_model=_cpu_model(root, general, first, read_property if is_android else None) or machine,
        clusters=_clusters(root, processors),
        isa_features=_isa_features(first),
        memory_bytes=_memory_bytes(_text(root / "proc/meminfo")),
        governors=_governors(root),
        emulated=emulated or bool(signs),
        simulated=simulated,
    )


def _processors(cpuinfo: str) -> dict[int | None, dict[str, str]]:
    """The fields of /proc/cpuinfo by processor number; those outside any processor under None."""
    processors: dict[int | None, dict[str, str]] = {None: {}}
    current: int | None = None
    for line in cpuinfo.splitlines():
        if not line.strip():
            current = None
            continue
        name, _, value = (part.strip() for part in line.partition(":"))
        if name == "processor" and value.isdigit():
            current = int(value)
            processors[current] = {}
        else:
            processors.setdefault(current, {})[name] = value
    return processors


def _clusters(root: Path, processors: Mapping[int | None, Mapping[str, str]]) -> tuple[CpuCluster, ...]:
    """Cores grouped by kind and highest frequency, in the order of their first core."""
    groups: dict[tuple[str, int | None], list[int]] = {}
    for core in _core_ids(root, processors):
        cpu = root / f"sys/devices/system/cpu/cpu{core}"
        model = _core_model(processors.get(core, {}))
        # Documented in the kernel's admin-guide/pm/cpufreq: kHz.
        frequency_khz = _integer(cpu / "cpufreq/cpuinfo_max_freq")
        groups.setdefault((model, frequency_khz * 1000 if frequency_khz else None), []).append(core)
    return tuple(
        CpuCluster(model=model, core_ids=tuple(cores), max_frequency_hz=frequency_hz)
        for (model, frequency_hz), cores in groups.items()
    )


def _core_ids(root: Path, processors: Mapping[int | None, Mapping[str, str]]) -> list[int]:
    """All present cores, also those that are switched off just now."""
    present = _text(root / "sys/devices/system/cpu/present").strip()
    if re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", present):
        cores: list[int] = []
        for part in present.split(","):
            first, _, last = part.partition("-")
            cores.extend(range(int(first), int(last or first) + 1))
        return cores
    return sorted(number for number in processors if number is not None)


def _core_model(fields: Mapping[str, str]) -> str:
    if "CPU implementer" in fields and "CPU part" in fields:
        # Before "model name", which on ARM says no more than "ARMv8 Processor rev 3 (v8l)".
        return core_name(fields["CPU implementer"], fields["CPU part"])
    return fields.get("model name") or "unknown"


def _cpu_model(
    root: Path, general: Mapping[str, str], first: Mapping[str, str], read_property: ReadProperty | None
) -> str:
    """The chip or board as a person would call it."""
    if read_property is not None:
        maker, chip = read_property("ro.soc.manufacturer"), read_property("ro.soc.model")
        name = f"{maker} {chip}".strip() or read_property("ro.board.platform")
        if name:
            return name
    device_tree = _text(root / "proc/device-tree/model").rstrip("\0").strip()
    return device_tree or general.get("Hardware", "") or _core_model(first)


def _isa_features(first: Mapping[str, str]) -> tuple[str, ...]:
    if "Features" in first:  # ARM: a short list, all of it about instructions.
        return tuple(sorted(set(first["Features"].split())))
    return tuple(sorted({flag for flag in first.get("flags", "").split() if _X86_FEATURES.fullmatch(flag)}))


def _os_build(root: Path, kernel_release: str, read_property: ReadProperty | None) -> str:
    if read_property is not None:
        build = read_property("ro.build.fingerprint") or f"Android {read_property('ro.build.version.release')}"
    else:
        found = re.search(r'^PRETTY_NAME="?([^"\n]*)"?$', _text(root / "etc/os-release"), re.MULTILINE)
        build = found.group(1) if found else "Linux"
    return f"{build} ({kernel_release})"


def _memory_bytes(meminfo: str) -> int:
    found = re.search(r"^MemTotal:\s*(\d+) kB$", meminfo, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def _governors(root: Path) -> tuple[str, ...]:
    found: set[str] = set()
    for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_available_governors"):
        found.update(_text(path).split())
    return tuple(sorted(found))


def _getprop_reader() -> ReadProperty:
    program = shutil.which("getprop")
    if program is None:
        return lambda name: ""

    def read(name: str) -> str:
        try:
            done = subprocess.run(
                [program, name], capture_output=True, text=True, timeout=_GETPROP_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip()

    return read


def _by_number(item: tuple[int | None, object]) -> int:
    return -1 if item[0] is None else item[0]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _integer(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None
