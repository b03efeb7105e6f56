"""The shared library needs nothing and keeps nothing: on this machine, and cross-compiled for the others."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from device_agent.native import build
from device_agent.native.library import load_library
from tests.unit.device_agent.native import elf_reader as elf

PAGE_BYTES = 0x4000


def assert_stands_alone(path: Path) -> elf.Elf:
    library = elf.read_elf(path)
    assert not library.has(elf.DT_NEEDED), "needs another library"
    assert library.undefined == ()
    assert not library.has(elf.DT_INIT, elf.DT_FINI, elf.DT_INIT_ARRAY, elf.DT_FINI_ARRAY), "runs code when loaded"
    assert not library.has(elf.DT_TEXTREL)
    assert not library.of_type(elf.PT_TLS)
    assert not library.of_type(elf.PT_INTERP)
    assert all(segment.alignment >= PAGE_BYTES for segment in library.of_type(elf.PT_LOAD))
    assert library.writable_bytes() == 0, "has global variables"
    assert library.defined
    assert [name for name in library.defined if not name.startswith("kerf_")] == []
    return library


def test_the_library_of_this_machine_stands_alone() -> None:
    assert_stands_alone(load_library().path)


@pytest.mark.parametrize(
    ("machine", "number"),
    [
        ("aarch64", elf.EM_AARCH64),
        pytest.param("armv7l", elf.EM_ARM, marks=pytest.mark.slow),
        pytest.param("x86_64", elf.EM_X86_64, marks=pytest.mark.slow),
    ],
)
def test_cross_compiled_libraries_stand_alone(machine: str, number: int, tmp_path: Path) -> None:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed")
    target = tmp_path / build.library_name(machine)
    build.build_library(target, machine, build.zig_compiler(machine))
    assert assert_stands_alone(target).machine == number


def test_every_compiler_is_told_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(build.CompilerError, match="kerf\\[wheels\\]"):
        build.cross_compiler("aarch64")
    with pytest.raises(build.CompilerError, match="no cross-compilation for 'sparc'"):
        build.cross_compiler("sparc")


def test_a_machine_compiles_for_itself_with_its_own_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "this_machine", lambda: "x86_64")
    monkeypatch.setattr(build.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("CXX", raising=False)
    assert build.cross_compiler("x86_64") == ("/usr/bin/g++",)
    monkeypatch.setenv("CXX", "clang++")
    assert build.cross_compiler("x86_64") == ("/usr/bin/clang++",)
    if importlib.util.find_spec("ziglang") is not None:
        assert "aarch64-linux-gnu" in build.cross_compiler("aarch64")
