"""Tasks in child processes: the agent's own process loads no numpy and no runtime, and times nothing."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from device_agent.child import peak_memory_in_child, run_in_child, run_task
from device_agent.clock import Clock, SystemClock
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
from device_agent.measuring.conditions import ConditionsReader
from device_agent.measuring.pinning import choose_cores, pinned
from device_agent.measuring.preflight import CoolingGate, limits_of
from device_agent.measuring.processes import measure_in_processes
from device_agent.measuring.usual import UsualReferences


class ChildRunner:
    """Runs each task on the runtimes that this device announced, in a child process of its own.

    Only a simulated kernel is computed right here: it is arithmetic, executes nothing foreign and is not timed.
    The cores to measure on are chosen now, from those that the calling thread may use. Before each child the runner
    waits until the device is as cool as the task wants it.
    """

    def __init__(
        self, runtimes: tuple[RuntimeInfo, ...], *, emulated: bool = False, clock: Clock | None = None
    ) -> None:
        self._runtimes = runtimes
        self._source = Source.EMULATED if emulated else Source.MEASURED
        self._fastest_cores = choose_cores(os.cpu_count() or 1)
        reader = ConditionsReader(core=self.measuring_core)
        self._gate = CoolingGate(reader.read, limits_of(reader.read()), clock or SystemClock())
        self._usual_references = UsualReferences()

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
        if name == SIMULATED_RUNTIME:
            run = run_task if isinstance(task, KernelTask) else run_in_child
            return run(task, artifact, deadline_s=deadline_s, source=self._source, interrupt=interrupt)

        def run_part(part: KernelTask | NetworkTask) -> Measurement | MeasurementFailure:
            not_ready = self._gate.wait(part.setup.thermal_mode, interrupt)
            if not_ready is not None:
                return MeasurementFailure(reason=FailureReason.DEVICE_NOT_READY, detail=not_ready)
            return run_in_child(
                part,
                artifact,
                deadline_s=deadline_s,
                source=self._source,
                cores=self._fastest_cores[-part.setup.threads :],
                interrupt=interrupt,
                usual_references=self._usual_references.medians(),
            )

        result = measure_in_processes(task, run_part)
        if isinstance(result, Measurement):
            self._usual_references.add(result.statistics)
            if task.setup.processes > 1:
                # A pass of its own, where thoroughness is asked for: it costs one more process.
                peak_bytes = peak_memory_in_child(task, artifact, deadline_s=deadline_s, interrupt=interrupt)
                result = dataclasses.replace(result, peak_memory_bytes=peak_bytes)
        return result

    @contextmanager
    def kept_off_measuring_core(self) -> Iterator[None]:
        """Run the calling thread, and the threads it starts, elsewhere than on the core that kernels are timed on.

        Children are told their cores, so they are not bound by this. A single core has to be shared.
        """
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        with pinned(sorted(allowed - set(self._fastest_cores[-1:]))):
            yield
