"""One task, one process: `python -m device_agent.child`, and the side that starts it.

A kernel that crashes, hangs or eats the memory takes its own process with it, never the agent. The parent writes a
`ChildJob` as JSON to the child's standard input and reads the result from its standard output; whatever libraries
print goes to standard error and is quoted when the child fails. This module imports only the contracts: numpy and the
runtimes are loaded in the child alone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from device_agent.child_process import converse, shorten
from device_agent.contracts.codec import ContractError, dumps, loads
from device_agent.contracts.device import RuntimeInfo
from device_agent.contracts.lease import KernelTask, NetworkTask
from device_agent.contracts.measurement import (
    SIMULATED_RUNTIME,
    FailureReason,
    Measurement,
    MeasurementFailure,
    Source,
)

#: The first probe may compile the native kernels on a slow board.
PROBE_DEADLINE_S = 300.0

#: A child whose parent died by SIGKILL ends by itself, at the latest after this much CPU time beyond its deadline.
_CPU_GRACE_S = 30
#: The most that a child may write into any file.
_MAX_FILE_BYTES = 256 << 20
_COMMAND = (sys.executable, "-m", "device_agent.child")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildJob:
    """What the child is told. Without a task it probes the runtimes."""

    task: KernelTask | NetworkTask | None
    artifact_path: str | None = None
    source: Source = Source.MEASURED
    #: Cores to pin to: None lets the child choose, empty pins nowhere.
    cores: tuple[int, ...] | None = None
    deadline_s: float
    #: Address space in bytes; None leaves it unlimited.
    memory_limit_bytes: int | None = None
    simulated: bool = False
    #: What reference kernels usually take here, in ns, by their names in statistics.
    usual_references: Mapping[str, float] = field(default_factory=dict)
    #: Only find out how much memory the task takes.
    memory_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """The child's answer to a probe."""

    runtimes: tuple[RuntimeInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildResult:
    """The child's answer to a task."""

    result: Measurement | MeasurementFailure


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryResult:
    """The child's answer where only the memory is asked for."""

    peak_bytes: int | None


def run_task(
    task: KernelTask | NetworkTask,
    artifact: Path | None = None,
    *,
    deadline_s: float,
    source: Source = Source.MEASURED,
    cores: Sequence[int] | None = None,
    interrupt: threading.Event | None = None,
    memory_limit_bytes: int | None = None,
) -> Measurement | MeasurementFailure:
    """Run `task` to its end, whatever happens: in a child process, or here when it is simulated.

    A simulated task executes no foreign code path that could crash and is not timed, so it needs no process of its own;
    hundreds of them then take seconds. Never raises for what a task does.

    Args:
        task: What to measure.
        artifact: The file of a network task.
        deadline_s: The child is killed after this time.
        source: What the measurement is of: a real or an emulated device. A simulated runtime says so by itself.
        cores: The cores to pin to; None chooses the fastest ones, empty pins nowhere.
        interrupt: When set, the child is killed and the answer is AGENT_SHUTDOWN.
        memory_limit_bytes: The most address space that the child may take.
    """
    if task.setup.runtime == SIMULATED_RUNTIME:
        from device_agent.measuring.task import measure_task

        try:
            return measure_task(task, artifact)
        except Exception as error:
            detail = shorten(f"{type(error).__name__}: {error}")
            return MeasurementFailure(reason=FailureReason.AGENT_ERROR, detail=detail)
    return run_in_child(
        task,
        artifact,
        deadline_s=deadline_s,
        source=source,
        cores=cores,
        interrupt=interrupt,
        memory_limit_bytes=memory_limit_bytes,
    )


def run_in_child(
    task: KernelTask | NetworkTask,
    artifact: Path | None = None,
    *,
    deadline_s: float,
    source: Source = Source.MEASURED,
    cores: Sequence[int] | None = None,
    interrupt: threading.Event | None = None,
    memory_limit_bytes: int | None = None,
    usual_references: Mapping[str, float] | None = None,
    command: Sequence[str] | None = None,
) -> Measurement | MeasurementFailure:
    """Run `task` in a process of its own, with the arguments of `run_task`. `command` replaces the child in tests.

    `usual_references` is what reference kernels usually take on this device.
    """
    job = ChildJob(
        task=task,
        artifact_path=None if artifact is None else str(artifact.resolve()),
        source=source,
        cores=None if cores is None else tuple(cores),
        deadline_s=deadline_s,
        memory_limit_bytes=memory_limit_bytes,
        usual_references=usual_references or {},
    )
    answer = converse(command or _COMMAND, dumps(job).encode(), deadline_s=deadline_s, interrupt=interrupt)
    if isinstance(answer, MeasurementFailure):
        return answer
    try:
        return loads(ChildResult, answer).result
    except ContractError as error:
        return MeasurementFailure(
            reason=FailureReason.AGENT_ERROR, detail=shorten(f"the child's answer is malformed: {error}")
        )


def peak_memory_in_child(
    task: KernelTask | NetworkTask,
    artifact: Path | None = None,
    *,
    deadline_s: float,
    interrupt: threading.Event | None = None,
) -> int | None:
    """What a process grows by while it loads and runs `task` once; None where that fails or cannot be told."""
    job = ChildJob(
        task=task,
        artifact_path=None if artifact is None else str(artifact.resolve()),
        deadline_s=deadline_s,
        memory_only=True,
    )
    answer = converse(_COMMAND, dumps(job).encode(), deadline_s=deadline_s, interrupt=interrupt)
    # The measurement is there already: what it is missing then is this one figure.
    return None if isinstance(answer, MeasurementFailure) else loads(MemoryResult, answer).peak_bytes


def probe_in_child(*, simulated: bool = False, deadline_s: float = PROBE_DEADLINE_S) -> tuple[RuntimeInfo, ...]:
    """What the runtimes of this device say about themselves, asked in a child: the agent stays small.

    Raises `RuntimeError` when the probe itself fails; a runtime that cannot run is listed with its reason instead.
    """
    job = ChildJob(task=None, deadline_s=deadline_s, simulated=simulated)
    answer = converse(_COMMAND, dumps(job).encode(), deadline_s=deadline_s)
    if isinstance(answer, MeasurementFailure):
        raise RuntimeError(f"probing the runtimes failed ({answer.reason}): {answer.detail}")
    return loads(ProbeResult, answer).runtimes


# --- the child's side -----------------------------------------------------------------------------------------------


def main() -> int:
    """Read a job from standard input, do it, and write the answer to what was standard output."""
    # Libraries print to descriptor 1: from here on that is standard error, and only the answer goes out.
    answer_descriptor = os.dup(1)
    os.dup2(2, 1)
    job = loads(ChildJob, sys.stdin.buffer.read())
    _die_with_parent()
    _limit_resources(job)
    with os.fdopen(answer_descriptor, "wb") as stream:
        stream.write(dumps(_answer(job)).encode())
    # Interpreters of foreign libraries may crash while they are torn down; the answer is out already.
    sys.stderr.flush()
    os._exit(0)


def _answer(job: ChildJob) -> ChildResult | ProbeResult | MemoryResult:
    if job.task is None:
        from device_agent.runtimes import probe_runtimes

        return ProbeResult(runtimes=probe_runtimes(simulated=job.simulated))
    artifact = None if job.artifact_path is None else Path(job.artifact_path)
    if job.memory_only:
        from device_agent.measuring.memory import peak_memory_bytes

        return MemoryResult(peak_bytes=peak_memory_bytes(job.task, artifact))
    from device_agent.measuring.task import Surroundings, measure_task

    around = Surroundings(source=job.source, cores=job.cores, usual_references=job.usual_references)
    return ChildResult(result=measure_task(job.task, artifact, around))


def _limit_resources(job: ChildJob) -> None:
    try:
        import resource
    except ImportError:  # No such limits on this system; the parent's deadline remains.
        return
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: (int(job.deadline_s) + _CPU_GRACE_S) * (job.task.setup.threads if job.task else 1),
        resource.RLIMIT_FSIZE: _MAX_FILE_BYTES,
    }
    if job.memory_limit_bytes is not None:
        limits[resource.RLIMIT_AS] = job.memory_limit_bytes
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(limit, (soft, hard))


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies, so that a killed agent leaves no timing child behind."""
    if sys.platform not in ("linux", "android"):
        return
    import ctypes

    set_parent_death_signal = 1  # PR_SET_PDEATHSIG
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
