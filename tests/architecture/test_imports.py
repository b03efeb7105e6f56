"""What may be imported where, tried on a bare interpreter; the import rule itself is in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(code: str, *flags: str) -> str:
    done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["device_agent.contracts", "search.domain.config", "search.domain.result"])
def test_contracts_and_problem_statement_need_the_standard_library_only(module: str) -> None:
    # -S: no site-packages at all.
    run(f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {module}", "-I", "-S")


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("server.app", {"torch", "scipy.stats"}),
        ("server.cli.main", {"torch", "matplotlib", "scipy"}),
        ("device_agent.cli", {"numpy"}),
        ("device_agent.service", {"numpy"}),
        ("search.algorithms.registry", {"torch"}),
    ],
)
def test_a_process_does_not_load_what_it_does_not_need(module: str, heavy: set[str]) -> None:
    assert run(f"import sys, {module}; print({heavy} & sys.modules.keys())").strip() == "set()"
