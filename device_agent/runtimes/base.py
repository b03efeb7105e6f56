"""What a runtime must offer to be measured."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts.device import RuntimeInfo
from device_agent.contracts.kernel import KernelSpec
from device_agent.contracts.lease import NetworkFormat
from device_agent.contracts.measurement import VerdictReason

FloatArray = NDArray[np.float32]


class RuntimeUnavailable(Exception):
    """The runtime does not exist or cannot run on this machine. The text gives the reason and the remedy."""


class UnsupportedTask(Exception):
    """This runtime cannot run this kernel or network. Asking again will not help."""


class Executable(Protocol):
    """A kernel or a network, ready to run for one image. Not safe to use from two threads."""

    @property
    def mode(self) -> str:
        """How zeros are treated: "sparse" when they are skipped, "dense" when they are multiplied."""
        ...

    @property
    def memory_bytes(self) -> int | None:
        """What the runtime holds for weights and buffers; None where it does not tell."""
        ...

    @property
    def findings(self) -> tuple[VerdictReason, ...]:
        """Reasons against trusting its times that only the runtime can see."""
        ...

    def run(self, x: FloatArray, residual: FloatArray | None = None) -> FloatArray:
        """Run on `x` (channels, h, w); returns the output in NCHW order, flattened.

        `residual` is what a single kernel adds: a residual or the second operand of ADD. Both stay the current input of
        `repeat`. Raises `ValueError` where a shape does not fit.
        """
        ...

    def repeat(self, count: int) -> None:
        """Run `count` times on the current input: what is timed."""
        ...

    def op_ns(self, rounds: int) -> tuple[float, ...]:
        """Median time of each operator in plan order over `rounds` runs; empty where it cannot be told."""
        ...


@runtime_checkable
class HasExactTwin(Protocol):
    """An executable that may round differently from one device to the next, because it picks algorithms by timing."""

    def exact_twin(self) -> Executable | None:
        """The same kernel or network with the bits that every device with FMA gives, and not tuned; None where this
        executable has them itself. Takes as much memory again while it lives.
        """
        ...


class Runtime(Protocol):
    """One way to execute kernels and networks. Constructing it loads it, and raises `RuntimeUnavailable`."""

    def info(self) -> RuntimeInfo:
        """Name, version and hash of the binary that does the work."""
        ...

    def load_kernel(self, kernel: KernelSpec, threads: int) -> Executable:
        """`kernel` with the weights of its seed. Raises `UnsupportedTask`."""
        ...

    def load_network(
        self, data: bytes, network_format: NetworkFormat, input_shape: tuple[int, int, int], threads: int
    ) -> Executable:
        """The network in `data`. Raises `UnsupportedTask`, and `ContractError` for a file that is not sound."""
        ...


def checked_input(name: str, values: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """`values` as contiguous float32 of `shape`; raises `ValueError` where it has another shape."""
    if values.shape != shape:
        raise ValueError(f"the {name} has shape {values.shape}, but the plan reads {shape}")
    return np.ascontiguousarray(values, np.float32)
