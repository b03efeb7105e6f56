"""Wheels as `make wheels` makes them: what is in them, and that one runs where there is no compiler."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from device_agent.native import build
from tests.unit.device_agent.native import elf_reader as elf

pytest.importorskip("hatchling", reason="hatchling builds the wheels")

ROOT = Path(__file__).resolve().parents[2]

#: Runs a kernel with nothing but the wheel, numpy and what the agent depends on.
PROGRAM = """
import json, pathlib, sys
import device_agent
from device_agent.contracts import KernelSpec, Op
from device_agent.native.executor import NativeKernel
from device_agent.native.library import load_library
import numpy as np
kernel = NativeKernel(KernelSpec(op=Op.CONV2D, in_channels=3, out_channels=5, input_h=9, input_w=8, kernel_h=3,
                                 kernel_w=3, padding=1), {"weight": np.ones((5, 3, 3, 3), np.float32),
                                                          "bias": np.zeros(5, np.float32)})
output = kernel.run(np.ones((3, 9, 8), np.float32))
print(json.dumps({"package": device_agent.__file__, "library": str(load_library().path),
                  "compiler": load_library().compiler, "isa": kernel.isa,
                  "centre": float(output[0, 4, 4]), "corner": float(output[0, 0, 0])}))
"""


def build_wheel(machine: str, folder: Path, **environment: str) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        env={**os.environ, "KERF_NATIVE_TARGET": machine, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob(f"*{machine}*.whl")
    return wheel


def test_a_wheel_for_aarch64_holds_what_a_board_looks_for(tmp_path: Path) -> None:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed")
    wheel = build_wheel("aarch64", tmp_path)
    assert wheel.name.endswith("-py3-none-manylinux_2_17_aarch64.musllinux_1_1_aarch64.whl")
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
        assert [name for name in names if name.endswith(".so")] == [
            f"device_agent/native/{build.library_name('aarch64')}"
        ]
        (library,) = (name for name in names if name.endswith(".so"))
        extracted = Path(files.extract(library, tmp_path))
        # The board computes the library's name from the sources that came with it.
        packed = {Path(name).name for name in names if name.startswith("device_agent/native/src/")}
        assert packed >= {path.name for path in build.SOURCE_DIR.iterdir()}
        for path in build.SOURCE_DIR.iterdir():
            assert files.read(f"device_agent/native/src/{path.name}") == path.read_bytes()
        (about,) = (name for name in names if name.endswith(".dist-info/WHEEL"))
        lines = files.read(about).decode().splitlines()
        assert "Root-Is-Purelib: false" in lines
        tags = {line for line in lines if line.startswith("Tag:")}
        assert tags == {"Tag: py3-none-manylinux_2_17_aarch64", "Tag: py3-none-musllinux_1_1_aarch64"}
        (record,) = (name for name in names if name.endswith(".dist-info/RECORD"))
        rows = list(csv.reader(files.read(record).decode().splitlines()))
    assert sorted(row[0] for row in rows) == sorted(names)
    digest = base64.urlsafe_b64encode(hashlib.sha256(extracted.read_bytes()).digest()).rstrip(b"=").decode()
    assert [library, f"sha256={digest}", str(extracted.stat().st_size)] in rows
    assert elf.read_elf(extracted).machine == elf.EM_AARCH64


def test_a_wheel_runs_without_a_compiler(tmp_path: Path) -> None:
    machine = build.this_machine()
    try:
        compiler = build.cross_compiler(machine)[0]
    except build.CompilerError as error:
        pytest.skip(str(error))
    # In a tenth of the time: the optimized library is what `make setup` built, and all other tests run.
    quick = tmp_path / "quick"
    quick.write_text(f'#!/bin/sh\nexec {shlex.quote(compiler)} "$@" -O0\n', encoding="utf-8")
    quick.chmod(0o755)
    wheel = build_wheel(machine, tmp_path / "dist", CXX=str(quick))
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    subprocess.run([*install, "--no-deps", "--target", str(site), str(wheel)], check=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=empty,
        # This Python's own packages stand in for the wheel's dependencies.
        env={"PATH": str(empty), "HOME": str(empty), "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert Path(seen["package"]).is_relative_to(site)
    assert Path(seen["library"]) == site / "device_agent" / "native" / build.library_name()
    assert list(empty.rglob("*.so")) == [], "something was built"
    assert seen["compiler"].split()[0] in ("gcc", "clang")
    assert (seen["centre"], seen["corner"]) == (27.0, 12.0)
