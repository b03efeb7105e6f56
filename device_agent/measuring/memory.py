"""How much memory a network takes: a pass of its own, in a process that times nothing.

Watching the memory while timing costs time, and timing makes samples that take memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from device_agent.contracts.lease import KernelTask, NetworkTask
from device_agent.measuring.loading import read_artifact
from device_agent.runtimes import Runtime, make_runtime
from device_agent.synthesis import kernel_inputs, synthesize_input


def peak_memory_bytes(
    task: KernelTask | NetworkTask,
    artifact: Path | None = None,
    *,
    make_runtime: Callable[[str], Runtime] = make_runtime,
    root: Path = Path("/"),
) -> int | None:
    """What this process grows by, at most, while it loads what `task` is about and runs it once.

    The runtime's libraries and the file are in memory before. None where the system does not tell the peak. Raises what
    loading raises.
    """
    runtime = make_runtime(task.setup.runtime)
    data = None if isinstance(task, KernelTask) else read_artifact(task, artifact)
    before = _status_bytes(root, "VmRSS")
    if before is None or not _reset_peak(root):
        return None
    if isinstance(task, KernelTask):
        runtime.load_kernel(task.kernel, task.setup.threads).run(*kernel_inputs(task.kernel))
    else:
        assert data is not None
        executable = runtime.load_network(data, task.format, task.input_shape, task.setup.threads)
        executable.run(synthesize_input(task.input_shape, task.input_seed))
    peak = _status_bytes(root, "VmHWM")
    return None if peak is None else max(0, peak - before)


def _reset_peak(root: Path) -> bool:
    """Let the peak (VmHWM) begin anew at what is resident now: proc(5), clear_refs."""
    try:
        (root / "proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status_bytes(root: Path, name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB$", (root / "proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) * 1024 if found else None
