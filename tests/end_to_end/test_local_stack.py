"""`kerf up` as a process: it starts the three others, and none of them outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.process_state import is_running

pytestmark = pytest.mark.xdist_group("stack")

#: Long enough for a loaded machine; a process that stays is found at once by the assertion's message.
TIMEOUT_S = 60.0


def children_of(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_kerf_up(tmp_path: Path, end: signal.Signals) -> None:
    command = [sys.executable, "-m", "server.cli", "up", "--state", str(tmp_path), "--port", "0", "--simulated"]
    up = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
    assert up.stdout is not None
    assert "Kerf runs at http://127.0.0.1:" in up.stdout.readline()
    children = children_of(up.pid)
    assert len(children) == 3
    up.send_signal(end)
    code = up.wait(TIMEOUT_S)
    assert code == (0 if end is signal.SIGTERM else -signal.SIGKILL)
    deadline = time.monotonic() + TIMEOUT_S
    while left := [pid for pid in children if is_running(pid)]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.1)
