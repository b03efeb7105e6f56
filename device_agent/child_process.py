"""Starting a child process, waiting for its answer, and saying in one word how it failed. Standard library only."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from device_agent.contracts.measurement import FailureReason, MeasurementFailure

#: How often the parent looks whether it should give up. Results are noticed at once.
_INTERRUPT_INTERVAL_S = 0.2
_DETAIL_CHARACTERS = 2000


def converse(
    command: Sequence[str], message: bytes, *, deadline_s: float, interrupt: threading.Event | None = None
) -> bytes | MeasurementFailure:
    """Start `command`, write `message` to it, and wait for its answer, its death, the deadline or an interruption.

    The answer is what it wrote to standard output before it ended with status 0. Whatever else happens is a failure
    that says whose fault it was; the process and all that it started are gone when this returns. On Linux the child
    may die with the calling thread, so that has to live as long.
    """
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_child_environment(os.environ),
                # A session of its own: it can be killed with all it started, and Ctrl-C reaches the agent only.
                start_new_session=True,
            )
        except OSError as error:
            return MeasurementFailure(
                reason=FailureReason.RESOURCE_EXHAUSTED, detail=f"the child process cannot be started: {error}"
            )
        try:
            ending = _wait(process, message, deadline_s, interrupt)
        finally:
            _kill(process)
        if isinstance(ending, MeasurementFailure):
            return ending
        if process.returncode != 0:
            return _failure_of(process.returncode, deadline_s, _tail(errors))
        return ending


def _wait(
    process: subprocess.Popen[bytes], message: bytes, deadline_s: float, interrupt: threading.Event | None
) -> bytes | MeasurementFailure:
    ends_at = time.monotonic() + deadline_s
    pending: bytes | None = message
    while True:
        left_s = ends_at - time.monotonic()
        step_s = left_s if interrupt is None else min(left_s, _INTERRUPT_INTERVAL_S)
        try:
            return process.communicate(pending, timeout=max(step_s, 0.0))[0]
        except subprocess.TimeoutExpired:
            pending = None  # `communicate` keeps what is still to be written.
        if interrupt is not None and interrupt.is_set():
            return MeasurementFailure(
                reason=FailureReason.AGENT_SHUTDOWN, detail="the measurement was interrupted by the agent"
            )
        if time.monotonic() >= ends_at:
            return MeasurementFailure(
                reason=FailureReason.TIMED_OUT, detail=f"killed after its deadline of {deadline_s:g} s"
            )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the child's whole group if it still runs, and collect it."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def _failure_of(returncode: int, deadline_s: float, stderr: str) -> MeasurementFailure:
    said = f"; it said: {stderr}" if stderr else ""
    if returncode > 0:
        detail = f"the child ended with status {returncode}{said}"
        return MeasurementFailure(reason=FailureReason.AGENT_ERROR, detail=shorten(detail))
    name = _signal_name(-returncode)
    if -returncode == signal.SIGXCPU:
        reason = FailureReason.TIMED_OUT
        detail = f"it used far more CPU time than its deadline of {deadline_s:g} s"
    elif -returncode == signal.SIGKILL:
        # Nobody here killed it: on Linux that is the memory killer.
        reason = FailureReason.RESOURCE_EXHAUSTED
        detail = f"killed by {name} from outside, most likely because the device ran out of memory{said}"
    else:
        reason = FailureReason.CRASHED
        detail = f"died by {name}{said}"
    return MeasurementFailure(reason=reason, detail=shorten(detail))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The parent's environment without the agent's settings (its token among them), single-threaded numpy."""
    kept = {name: value for name, value in environment.items() if not name.startswith("KERF_AGENT_")}
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        kept[name] = "1"
    # Outside an installation (a source tree) the child would not find this package.
    root = str(Path(__file__).resolve().parent.parent)
    if Path(root).name not in ("site-packages", "dist-packages"):
        kept["PYTHONPATH"] = os.pathsep.join(p for p in (root, kept.get("PYTHONPATH", "")) if p)
    return kept


def _tail(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _DETAIL_CHARACTERS))
    return file.read().decode(errors="replace").strip()


def shorten(text: str) -> str:
    """The beginning and the end of a long text: a traceback's last line says what happened."""
    if len(text) <= _DETAIL_CHARACTERS:
        return text
    half = _DETAIL_CHARACTERS // 2 - 3
    return f"{text[:half]} ... {text[-half:]}"
