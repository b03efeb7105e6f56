"""The emulated environment, made once and kept; where it cannot be made, the tests say why they are skipped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.arm.environment import ROOT, ArmEnvironment, Unavailable, arm_environment


@pytest.fixture(scope="session")
def arm() -> ArmEnvironment:
    try:
        return arm_environment()
    except Unavailable as error:
        pytest.skip(f"no aarch64 environment: {error}")


@pytest.fixture(scope="session")
def agent_folder(arm: ArmEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent as a board without a compiler gets it: the wheel for aarch64, unpacked. Imported from here."""
    for package in ("ziglang", "hatchling"):
        pytest.importorskip(package, reason=f"{package} makes the wheel for aarch64")
    folder = tmp_path_factory.mktemp("agent")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, env={**os.environ, "KERF_NATIVE_TARGET": "aarch64"}, capture_output=True, check=True,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    arm.install_wheel(wheel, folder / "site-packages")
    return folder / "site-packages"


@pytest.fixture(scope="session")
def run_on_arm(arm: ArmEnvironment, agent_folder: Path) -> Callable[..., Any]:
    """Runs a Python file on an emulated processor, and decodes the JSON that it prints."""

    def run(program: Path, cpu: str) -> Any:
        done = subprocess.run(
            ["nice", str(arm.python), str(program)],
            env=arm.variables(cpu, agent_folder), capture_output=True, text=True, timeout=300.0, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return run
