"""What a release promises: the same wheel from the same source."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="hatchling builds the wheels")

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("device_agent", "search", "kerf", "server", "migrations")
FILES = ("pyproject.toml", "README.md", "LICENSE", "hatch_build.py")


def build(folder: Path, *, umask: int) -> Path:
    """The wheel of a copy of the source in `folder`, with other times and modes of its files, without this checkout."""
    source = folder / "source"
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, source / name, ignore=ignored, copy_function=shutil.copyfile)
    for name in FILES:
        shutil.copyfile(ROOT / name, source / name)
    for path in source.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
    environment = {**os.environ, "KERF_NATIVE_TARGET": "x86_64", "TZ": "UTC" if umask == 0o022 else "Asia/Tokyo"}
    environment.pop("SOURCE_DATE_EPOCH", None)
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")],
        cwd=source, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (folder / "dist").iterdir()
    return wheel


@pytest.mark.slow
def test_two_builds_are_the_same_file_bit_for_bit(tmp_path: Path) -> None:
    wheels = [build(tmp_path / "a", umask=0o022), build(tmp_path / "a longer path", umask=0o077)]
    assert wheels[0].name == wheels[1].name
    first, second = (hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels)
    assert first == second
