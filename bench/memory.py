"""How much memory a runtime takes for a network, seen from outside: the growth of a fresh child process.

    python -m bench.memory native FILE CHANNELS HEIGHT WIDTH     # prints {"rss_bytes": ..., "peak_bytes": ...}

TFLite does not tell what its delegate holds, so both runtimes are measured alike: a child imports everything, notes its
resident memory, loads the network from a file, runs it three times, gives free heap back to the system, and looks
again. `rss_bytes` is what stays, with pages of the file that are still mapped; `peak_bytes` the most that was resident
meanwhile, preparation included.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_CHILD_TIMEOUT_S = 120.0
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RUNS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Growth of the child's resident memory in bytes: what stays, and the most while loading and running."""

    rss_bytes: int
    peak_bytes: int


def measure_memory(runtime: str, path: Path, input_shape: tuple[int, int, int]) -> MemoryUse | None:
    """Measure the network file at `path` in a child process; None where the system does not tell (not Linux).

    `runtime` is native (a packed file) or tflite. Raises `RuntimeError` where the child fails.
    """
    if not _STATUS.exists():
        return None
    command = [sys.executable, "-m", "bench.memory", runtime, str(path), *map(str, input_shape)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_CHILD_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr.strip()[-2000:]}")
    return MemoryUse(**json.loads(done.stdout.splitlines()[-1]))


def _loader(runtime: str, path: Path, shape: tuple[int, int, int]) -> Callable[[], object]:
    """What loads and runs the network, with everything imported that it needs. It returns what must stay alive."""
    x = np.ones(shape, np.float32)
    if runtime == "native":
        from device_agent.formats.packed import open_packed
        from device_agent.native.executor import NativeNetwork
        from device_agent.native.library import load_library

        load_library()

        def load_native() -> object:
            network = NativeNetwork(*open_packed(path))
            for _ in range(_RUNS):
                network.run(x)
            return network

        return load_native
    from ai_edge_litert.interpreter import Interpreter

    def load_tflite() -> object:
        interpreter = Interpreter(model_path=str(path), num_threads=1)
        interpreter.allocate_tensors()
        index = interpreter.get_input_details()[0]["index"]
        for _ in range(_RUNS):
            interpreter.set_tensor(index, np.ascontiguousarray(x.transpose(1, 2, 0)[None]))
            interpreter.invoke()
        return interpreter

    return load_tflite


def _trim_heap() -> None:
    """Give freed memory back to the system, where the C library can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {field}")


def main() -> None:
    """Measure one network in this process and print the result as JSON."""
    runtime, path, shape = sys.argv[1], Path(sys.argv[2]), (int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
    load = _loader(runtime, path, shape)
    _trim_heap()
    # Writing 5 resets the high-water mark to what is resident now.
    _CLEAR_REFS.write_text("5")
    before = _status_bytes("VmRSS")
    network = load()
    peak = _status_bytes("VmHWM")
    _trim_heap()
    print(json.dumps({"rss_bytes": _status_bytes("VmRSS") - before, "peak_bytes": peak - before}))
    del network


if __name__ == "__main__":
    main()
