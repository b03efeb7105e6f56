"""`kerf-agent` as a process whose clock jumps, whose tasks take time, and which some kernels kill or freeze.

    CHAOS_FILE=disturbance.json python -m tests.chaos.unsteady_agent run --simulated ...

The file is read anew whenever it matters, so that the harness can change it under the running agent.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from device_agent import cli
from device_agent.contracts import KernelTask, Measurement, MeasurementFailure, kernel_id
from device_agent.contracts.codec import decode, dumps
from device_agent.held import HeldLease
from device_agent.runner import ChildRunner

_real_time_ns = time.time_ns
_real_run = ChildRunner.run


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """What is wrong with this device now. `deadly` kernels kill the agent, `hanging` ones freeze it."""

    clock_offset_s: float = 0.0
    task_s: float = 0.0
    deadly: tuple[str, ...] = field(default=())
    hanging: tuple[str, ...] = field(default=())

    def write(self, path: Path) -> None:
        """Put it where the agent reads it, in one step."""
        temporary = path.with_suffix(".new")
        temporary.write_text(dumps(self))
        temporary.replace(path)


def _present() -> Disturbance:
    try:
        return decode(Disturbance, json.loads(Path(os.environ["CHAOS_FILE"]).read_text()))
    except FileNotFoundError:
        return Disturbance()


def _time_ns() -> int:
    return _real_time_ns() + int(_present().clock_offset_s * 1e9)


def _run(self: ChildRunner, held: HeldLease, artifact: Path | None) -> Measurement | MeasurementFailure:
    present, task = _present(), held.lease.task
    if isinstance(task, KernelTask) and kernel_id(task.kernel) in present.deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    if isinstance(task, KernelTask) and kernel_id(task.kernel) in present.hanging:
        os.kill(os.getpid(), signal.SIGSTOP)
    held.interrupt.wait(present.task_s)
    return _real_run(self, held, artifact)


def main() -> int:
    time.time_ns = _time_ns
    time.time = lambda: _time_ns() / 1e9
    ChildRunner.run = _run  # type: ignore[method-assign]
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
