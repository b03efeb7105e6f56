"""The peak of one core: multiply-adds per second of independent chains in registers, at the widest vector; and how fast
it writes memory.
"""

from __future__ import annotations

import ctypes
import platform
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from device_agent.native.build import Backend, backends_for, find_compiler
from device_agent.native.library import load_library

_SOURCE = Path(__file__).resolve().parent / "src" / "peak.cpp"
_COMPILE_TIMEOUT_S = 60.0
#: Enough chains to hide the latency of four cycles on two to four units, and as many as fit the registers.
_CHAINS_OF_REGISTERS = {16: 12, 32: 24}
#: About 4 us on a fast core: fine steps for the number of repeats.
_ROUNDS = 1000


class PeakLoop:
    """The compiled loop, for the instruction set that the native kernels use on this machine."""

    def __init__(self) -> None:
        backend = load_library().backend()
        recipe = next(entry for entry in backends_for(platform.machine()) if entry.name == backend.name)
        self.vector_length = recipe.max_vector_length
        with tempfile.TemporaryDirectory(prefix="kerf-peak-") as folder:
            path = Path(folder) / "peak.so"
            _compile(recipe, path)
            self._library = ctypes.CDLL(str(path))
        self._call = self._library.kerf_bench_peak
        self._call.restype = ctypes.c_int64
        self._call.argtypes = (ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_float, ctypes.c_void_p)
        self._fill = self._library.kerf_bench_fill
        self._fill.restype = None
        self._fill.argtypes = (ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)
        self._sink = np.zeros(self.vector_length, np.float32)
        #: Floating-point operations of one repetition: two for each multiply-add.
        self.flops = self._run(1)

    def repeat(self, count: int) -> None:
        """Do `count * flops` operations."""
        self._run(count)

    def filler(self, target: NDArray[np.float32]) -> Callable[[int], None]:
        """What writes all of `target`, which is contiguous, so many times over."""
        address, size = target.ctypes.data, target.size

        def fill(count: int) -> None:
            self._fill(count, address, size)
            assert target.size == size  # which keeps it alive

        return fill

    def _run(self, count: int) -> int:
        flops = int(self._call(self.vector_length, count * _ROUNDS, 0.75, 0.25, self._sink.ctypes.data))
        if flops <= 0:
            raise RuntimeError(f"the peak loop has no vectors of {self.vector_length} floats")
        return flops


def _compile(recipe: Backend, target: Path) -> None:
    compiler = find_compiler()
    if compiler is None:
        raise RuntimeError("no C++ compiler: install one (apt install g++) to measure the peak of this core")
    command = [
        compiler, "-std=c++17", "-O3", "-fPIC", "-shared", "-ffp-contract=fast", "-Wno-psabi", *recipe.flags,
        f"-DKERF_PEAK_CHAINS={_CHAINS_OF_REGISTERS[recipe.num_registers]}",
        f"-DKERF_PEAK_LENGTH={recipe.max_vector_length}", str(_SOURCE), "-o", str(target),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr.strip()[-4000:]}")
