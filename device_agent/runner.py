"""Tasks in child processes: the agent's own process loads no numpy and no runtime, and times nothing."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from device_agent.child import run_in_child, run_task
from device_agent.contracts import (
    SIMULATED_RUNTIME,
    FailureReason,
    KernelTask,
    Measurement,
    MeasurementFailure,
    NetworkTask,
    RuntimeInfo,
    Source,
    why_unusable,
)
from device_agent.held import HeldLease
from device_agent.measuring.pinning import choose_cores, pinned


class ChildRunner:
    """Runs each task on the runtimes that this device announced, in a child process of its own.

    Only a simulated kernel is computed right here: it is arithmetic, executes nothing foreign and is not timed.
    The cores to measure on are chosen now, from those that the calling thread may use.
    """

    def __init__(self, runtimes: tuple[RuntimeInfo, ...], *, emulated: bool = False) -> None:
        self._runtimes = runtimes
        self._source = Source.EMULATED if emulated else Source.MEASURED
        self._fastest_cores = choose_cores(os.cpu_count() or 1)

    @property
    def measuring_core(self) -> int:
        """The core that one-threaded tasks run on; 0 where the system cannot pin."""
        return self._fastest_cores[-1] if self._fastest_cores else 0

    def run(self, held: HeldLease, artifact: Path | None) -> Measurement | MeasurementFailure:
        """Measure a lease's task; see `TaskRunner`."""
        return self.run_task(held.lease.task, artifact, deadline_s=held.lease.deadline_s, interrupt=held.interrupt)

    def run_task(
        self,
        task: KernelTask | NetworkTask,
        artifact: Path | None = None,
        *,
        deadline_s: float,
        interrupt: threading.Event | None = None,
    ) -> Measurement | MeasurementFailure:
        """Measure `task`; its child is killed after `deadline_s`, or once `interrupt` is set."""
        name = task.setup.runtime
        reason = why_unusable(self._runtimes, name)
        if reason is not None:
            # Also keeps a real device from serving simulated times, and a simulated one from timing its host.
            return MeasurementFailure(reason=FailureReason.UNSUPPORTED, detail=f"this device {reason}")
        run = run_task if name == SIMULATED_RUNTIME and isinstance(task, KernelTask) else run_in_child
        return run(
            task,
            artifact,
            deadline_s=deadline_s,
            source=self._source,
            cores=self._fastest_cores[-task.setup.threads :],
            interrupt=interrupt,
        )

    @contextmanager
    def kept_off_measuring_core(self) -> Iterator[None]:
        """Run the calling thread, and the threads it starts, elsewhere than on the core that kernels are timed on.

        Children are told their cores, so they are not bound by this. A single core has to be shared.
        """
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        with pinned(sorted(allowed - set(self._fastest_cores[-1:]))):
            yield
