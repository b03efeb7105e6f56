"""Emulators are found out by each sign alone; real machines, and those that show little, are never taken for one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from device_agent.emulation import emulation_signs

TREES = Path(__file__).resolve().parents[3] / "fixtures/sysfs"
CORTEX_A72 = {"CPU implementer": "0x41", "CPU part": "0xd08"}
X86, X86_64, ARM, AARCH64 = 3, 62, 40, 183


def elf(machine: int, *, big_endian: bool = False) -> bytes:
    """The first 20 bytes of an executable for `machine` (e_machine)."""
    return b"\x7fELF\x02" + (b"\x02" if big_endian else b"\x01") + bytes(12) + machine.to_bytes(
        2, "big" if big_endian else "little"
    )  # fmt: skip


def write(root: Path, path: str, data: bytes) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(data)


def signs(
    root: Path, machine: str = "aarch64", fields: Mapping[str, str] = CORTEX_A72, **more: object
) -> tuple[str, ...]:
    return emulation_signs(root, machine, fields, **more)  # type: ignore[arg-type]


def test_a_board_that_shows_everything_is_real(tmp_path: Path) -> None:
    for path in ("proc/thread-self/exe", "proc/1/exe", "proc/7/exe"):
        write(tmp_path, path, elf(AARCH64))
    write(tmp_path, "sys/devices/system/cpu/modalias", b"cpu:type:aarch64:feature:,0000,0001\n")
    assert signs(tmp_path, parent=7) == ()


def test_a_device_that_shows_nothing_is_not_taken_for_emulated(tmp_path: Path) -> None:
    assert signs(tmp_path, fields={}, parent=1, read_property=lambda name: "") == ()
    assert signs(tmp_path, machine="vax", fields={}) == ()


@pytest.mark.parametrize("path", ["proc/thread-self/exe", "proc/1/exe", "proc/7/exe"])
def test_a_program_that_the_kernel_runs_for_another_processor_is_a_sign(tmp_path: Path, path: str) -> None:
    write(tmp_path, path, elf(X86_64))
    (sign,) = signs(tmp_path, parent=7)
    assert path in sign
    assert "x86" in sign
    assert signs(tmp_path, machine="x86_64", fields={}, parent=7) == ()


@pytest.mark.parametrize(("machine", "elf_machine"), [("aarch64", ARM), ("armv7l", AARCH64), ("x86_64", X86)])
def test_32_bit_programs_on_a_64_bit_kernel_are_no_sign(tmp_path: Path, machine: str, elf_machine: int) -> None:
    write(tmp_path, "proc/thread-self/exe", elf(elf_machine))
    assert signs(tmp_path, machine=machine, fields={}) == ()


@pytest.mark.parametrize(
    "data", [b"", b"#!/bin/sh", elf(X86_64)[:18], elf(9999), bytes(64), b"\x7fELF\x02\x05" + bytes(14)]
)
def test_what_is_no_readable_program_is_no_sign(tmp_path: Path, data: bytes) -> None:
    write(tmp_path, "proc/1/exe", data)
    assert signs(tmp_path) == ()


def test_a_program_of_another_byte_order_is_read_by_its_own(tmp_path: Path) -> None:
    write(tmp_path, "proc/1/exe", elf(22, big_endian=True))
    assert "s390" in signs(tmp_path)[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_program_that_may_not_be_read_is_no_sign(tmp_path: Path) -> None:
    write(tmp_path, "proc/1/exe", elf(X86_64))
    (tmp_path / "proc/1/exe").chmod(0)
    assert signs(tmp_path) == ()


def test_qemu_in_place_of_the_program_is_a_sign_even_where_its_file_is_gone(tmp_path: Path) -> None:
    link = tmp_path / "proc/thread-self/exe"
    link.parent.mkdir(parents=True)
    link.symlink_to("/usr/bin/qemu-aarch64-static")
    assert "qemu-aarch64-static" in signs(tmp_path)[0]


def test_the_kernels_processor_type_is_a_sign(tmp_path: Path) -> None:
    path = "sys/devices/system/cpu/modalias"
    write(tmp_path, path, b"cpu:type:x86,ven0000fam0006mod00CF:feature:,0000\n")
    assert len(signs(tmp_path)) == 1
    assert signs(tmp_path, machine="x86_64", fields={}) == ()
    write(tmp_path, path, b"cpu:type:unheard-of:feature:\n")
    assert signs(tmp_path) == ()


def test_processors_that_name_themselves_are_a_sign(tmp_path: Path) -> None:
    assert signs(tmp_path, machine="x86_64", fields={"model name": "QEMU Virtual CPU version 2.5+"})
    assert signs(tmp_path, fields={"CPU implementer": "0x00", "CPU part": "0x051"})
    assert signs(tmp_path, fields={"vendor_id": "GenuineIntel"})
    assert signs(tmp_path, machine="x86_64", fields={"vendor_id": "GenuineIntel"}) == ()


def test_androids_emulator_names_itself(tmp_path: Path) -> None:
    assert "ro.boot.qemu" in signs(tmp_path, read_property=lambda name: "1" if name == "ro.boot.qemu" else "")[0]


@pytest.mark.parametrize("tree", ["rk3588-board", "android-phone"])
def test_recorded_arm_devices_are_real(tree: str) -> None:
    assert signs(TREES / tree, fields={"CPU implementer": "0x41"}, read_property=lambda name: "") == ()
