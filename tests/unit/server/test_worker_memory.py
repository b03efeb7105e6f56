"""A search that needs more memory than there is fails and says so; the worker goes on."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

from device_agent.contracts import ContractError
from server.searches.queries import insert_search
from server.settings import Settings
from server.worker import loop
from server.worker.memory import is_out_of_memory
from tests.unit.server.server_lab import ServerLab, search_config

#: More than any machine has.
HUGE = 1 << 60


def of_torch() -> None:
    torch.empty(HUGE, dtype=torch.uint8)


def of_python() -> None:
    bytearray(HUGE)


def in_a_process(code: str) -> str:
    """The last line that a script writes, which has `limit_memory` and no torch."""
    script = f"from server.worker.memory import _data_bytes, is_out_of_memory, limit_memory\n{code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    return (done.stdout + done.stderr).strip().rpartition("\n")[2]


def test_more_than_the_limit_is_refused_and_the_process_goes_on() -> None:
    taken = in_a_process(
        "limit_memory(_data_bytes() + (300 << 20))\n"
        "kept = bytearray(100 << 20)\n"
        "try:\n    bytearray(1 << 30)\n"
        "except MemoryError as error:\n    print(is_out_of_memory(error), len(kept) >> 20)"
    )
    assert taken == "True 100"
    # Its children have it too.
    child = "import subprocess, sys; bytearray(1 << 30)"
    start = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])"
    assert in_a_process(f"limit_memory(_data_bytes() + (300 << 20))\n{start}") == "MemoryError"


def test_no_limit_and_one_that_leaves_nothing() -> None:
    assert in_a_process("limit_memory(0)\nprint(len(bytearray(1 << 29)) >> 20)") == "512"
    told = in_a_process("limit_memory(1 << 20)")
    assert "worker_memory_bytes 1048576 leaves less than 256 MiB" in told
    assert "set KERF_WORKER_MEMORY_BYTES to" in told
    with pytest.raises(ContractError, match="worker_memory_bytes -1 is negative"):
        Settings(worker_memory_bytes=-1)


@pytest.mark.parametrize("allocate", [of_torch, of_python])
def test_a_search_that_needs_more_fails_with_the_reason(
    sqlite_lab: ServerLab, monkeypatch: pytest.MonkeyPatch, allocate: Any
) -> None:
    lab, stop = sqlite_lab, threading.Event()
    device_id = lab.agent().device_id
    with lab.database.write() as session:
        ids = [
            insert_search(
                session, name=name, device_id=device_id, config=search_config(device=device_id), created_by="t"
            ).id
            for name in ("large", "broken")
        ]

    def run_stages(run: Any) -> None:
        if run.search_id == ids[0]:
            allocate()
        stop.set()
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(loop, "run_stages", run_stages)
    # Set for this process, a limit would stay for the other tests.
    limits: list[int] = []
    monkeypatch.setattr(loop, "limit_memory", limits.append)
    settings = replace(lab.settings, worker_memory_bytes=6 << 30)
    worker = threading.Thread(target=loop.run_worker, args=(settings, stop), daemon=True)
    worker.start()
    worker.join(60)
    assert limits == [6 << 30]
    large, broken = (lab.get(f"/v1/searches/{search_id}").json() for search_id in ids)
    assert large["state"] == broken["state"] == "failed"
    assert "needs more memory than the 6144 MiB of KERF_WORKER_MEMORY_BYTES" in large["error"]
    # Anything else is still a defect of ours.
    assert "an error in Kerf itself" in broken["error"]


def test_other_errors_are_not_taken_for_it() -> None:
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))
