"""Whether an emulator translates this program's instructions: then its times mean nothing for the real hardware.

An emulator answers for what programs usually ask (`uname`, /proc/self/exe, and since qemu 8 /proc/cpuinfo), but the
kernel below it still tells the truth elsewhere. Any single sign is enough, as none of them occurs on a real board or
phone; what cannot be read is no sign at all, since boards, phones and containers hide much. A virtual machine that
shows its host's processor runs at the host's speed and is not emulated; one that shows qemu's own model counts as
emulated, since nothing readable tells whether the host's processor runs it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

#: ELF's e_machine (System V ABI, and the supplements of each architecture): 32 and 64 bits of a family run on one chip.
_FAMILY_OF_ELF_MACHINE = {3: "x86", 62: "x86", 40: "arm", 183: "arm", 243: "riscv", 21: "ppc", 22: "s390"}
_FAMILY_OF_MACHINE = {
    "x86_64": "x86", "amd64": "x86", "i386": "x86", "i686": "x86", "aarch64": "arm", "arm64": "arm", "riscv64": "riscv",
    "ppc64le": "ppc", "s390x": "s390",
}  # fmt: skip
#: The word of /sys/devices/system/cpu/modalias ("cpu:type:aarch64:feature:...").
_FAMILY_OF_MODALIAS = {"x86": "x86", "aarch64": "arm", "arm": "arm"}
#: Executables as the kernel sees them: this program's (emulators answer for /proc/self, not for these), the first
#: process's and the parent's.
_EXECUTABLES = ("proc/thread-self/exe", "proc/1/exe")


def emulation_signs(
    root: Path,
    machine: str,
    cpu_fields: Mapping[str, str],
    read_property: Callable[[str], str] | None = None,
    *,
    parent: int | None = None,
) -> tuple[str, ...]:
    """What gives an emulator away, in words; empty on real hardware.

    Args:
        root: Where the file systems of the device are mounted.
        machine: As `platform.machine()` names it.
        cpu_fields: The fields of the first processor in /proc/cpuinfo.
        read_property: Reads an Android property; None elsewhere.
        parent: The id of the process that started this one.
    """
    family = "arm" if machine.startswith("arm") else _FAMILY_OF_MACHINE.get(machine)
    executables = (*_EXECUTABLES, *([f"proc/{parent}/exe"] if parent is not None else []))
    signs = (
        _emulator_in_place(root),
        *(_foreign_executable(root / path, path, family) for path in executables),
        _foreign_modalias(root, family),
        _foreign_cpuinfo(cpu_fields, family),
        _software_cpu(cpu_fields),
        _android_emulator(read_property) if read_property is not None else None,
    )
    return tuple(sign for sign in signs if sign is not None)


def _emulator_in_place(root: Path) -> str | None:
    """qemu's user mode hides behind /proc/self/exe, but the calling thread's own link leads to it."""
    try:
        name = os.path.basename(os.readlink(root / _EXECUTABLES[0]))
    except OSError:
        return None  # An older kernel, or a recorded tree.
    return f"the kernel runs {name} in place of this program" if name.startswith("qemu-") else None


def _foreign_executable(path: Path, name: str, family: str | None) -> str | None:
    """A program for another architecture that the kernel runs directly: it is the kernel's, and this one is not."""
    found = _elf_family(path)
    if family is None or found is None or found == family:
        return None
    return f"/{name} is a program for {found}, but this machine calls itself {family}"


def _elf_family(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            header = file.read(20)
    except OSError:
        return None
    if len(header) < 20 or header[:4] != b"\x7fELF" or header[5] not in (1, 2):
        return None
    return _FAMILY_OF_ELF_MACHINE.get(int.from_bytes(header[18:20], "little" if header[5] == 1 else "big"))


def _foreign_modalias(root: Path, family: str | None) -> str | None:
    try:
        found = re.match(r"cpu:type:(\w+)", (root / "sys/devices/system/cpu/modalias").read_text(errors="replace"))
    except OSError:
        return None
    kernel = _FAMILY_OF_MODALIAS.get(found[1]) if found is not None else None
    if family is None or kernel is None or kernel == family:
        return None
    return f"the kernel's processor is of type {kernel}, but this machine calls itself {family}"


def _foreign_cpuinfo(fields: Mapping[str, str], family: str | None) -> str | None:
    """qemu 7 shows an ARM guest the host's x86 /proc/cpuinfo."""
    if family == "arm" and "vendor_id" in fields and "CPU implementer" not in fields:
        return f"/proc/cpuinfo is of an x86 processor ({fields['vendor_id']}), but this machine calls itself arm"
    return None


def _software_cpu(fields: Mapping[str, str]) -> str | None:
    """A whole emulated machine that names itself."""
    if "QEMU" in fields.get("model name", ""):
        return f"the processor calls itself {fields['model name']!r}"
    # Arm Architecture Reference Manual, MIDR_EL1: implementer 0x00 is reserved for software; qemu's -cpu max has it.
    if fields.get("CPU implementer", "").lower() in ("0x0", "0x00"):
        return "the processor's implementer is 0x00, which is reserved for software"
    return None


def _android_emulator(read_property: Callable[[str], str]) -> str | None:
    for name in ("ro.kernel.qemu", "ro.boot.qemu"):
        if read_property(name) == "1":
            return f"Android's property {name} is 1"
    return None
