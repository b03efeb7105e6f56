"""The fixed reference kernel that is timed between a candidate's samples: its cost only moves when the machine does.

Small enough for the first-level cache, long enough (about 10 us on a desktop core) that calling it costs little. Its
tile is fixed, not tuned: tuning under noise could choose another one in every process. It is warmed up before each
sample, so that what the candidate left in the caches does not count.
Its name goes into the statistics, because ratios to different references do not compare.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from device_agent.contracts.kernel import KernelSpec, Op, PruningScheme, WeightPruning
from device_agent.runtimes import RuntimeUnavailable, make_runtime
from device_agent.synthesis import kernel_inputs

#: Never change this: the ratios of all earlier measurements refer to it. Add another under a new name instead.
REFERENCE_KERNEL = KernelSpec(
    op=Op.CONV2D,
    in_channels=16,
    out_channels=16,
    input_h=16,
    input_w=16,
    kernel_h=3,
    kernel_w=3,
    padding=1,
    pruning=WeightPruning(scheme=PruningScheme.GROUP, block_filters=4, density=1.0),
    seed=1,
)
NATIVE_REFERENCE_NAME = "native conv2d 3x3 16-16 16x16 warm"  # and the binary that runs it
NUMPY_REFERENCE_NAME = "numpy multiply-add 16384 warm"


class ReferenceKernel(Protocol):
    """Something with a fixed cost, and a name for it."""

    @property
    def name(self) -> str: ...

    def repeat(self, count: int) -> None: ...


class NativeReference:
    """One small convolution of the native runtime. Raises `RuntimeUnavailable` where that is missing."""

    def __init__(self) -> None:
        info = make_runtime("native").info()
        self.name = f"{NATIVE_REFERENCE_NAME} {info.isa} {info.binary_sha256[:12]}"
        # After the check above: importing the executor is only sound where the library loads.
        from device_agent.native.executor import NativeKernel

        self._kernel = NativeKernel(REFERENCE_KERNEL, tune=False)
        self._kernel.run(*kernel_inputs(REFERENCE_KERNEL))

    def repeat(self, count: int) -> None:
        self._kernel.repeat(count)


class NumpyReference:
    """A multiply-add over an array of 64 KiB, where there is no native runtime."""

    name = NUMPY_REFERENCE_NAME

    def __init__(self) -> None:
        self._values = np.linspace(0.5, 1.5, 16384, dtype=np.float32)
        self._result = np.empty_like(self._values)

    def repeat(self, count: int) -> None:
        values, result = self._values, self._result
        for _ in range(count):
            np.multiply(values, values, out=result)
            np.add(result, values, out=result)


def make_reference_kernel() -> ReferenceKernel:
    """The native reference, or the numpy one where the native runtime is missing; `name` tells which."""
    try:
        return NativeReference()
    except RuntimeUnavailable:
        return NumpyReference()
