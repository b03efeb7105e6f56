"""The emulated environment, made once and kept; where it cannot be made, the tests say why they are skipped."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.arm.environment import ArmEnvironment, Unavailable, arm_environment
from tests.arm.installed_agent import installed_agent


@pytest.fixture(scope="session")
def arm() -> ArmEnvironment:
    try:
        return arm_environment()
    except Unavailable as error:
        pytest.skip(f"no aarch64 environment: {error}")


@pytest.fixture(scope="session")
def agent_folder(arm: ArmEnvironment) -> Path:
    """Where an emulated Python imports the agent from."""
    try:
        return installed_agent(arm)
    except Unavailable as error:
        pytest.skip(f"no agent for aarch64: {error}")


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
