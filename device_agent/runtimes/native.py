"""Kerf's own kernels as a runtime: the only one that gains from zeros in convolutions larger than 1x1."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from device_agent import __version__
from device_agent.contracts.device import RuntimeInfo
from device_agent.contracts.kernel import KernelSpec, PruningScheme
from device_agent.contracts.lease import NetworkFormat
from device_agent.contracts.measurement import VerdictReason
from device_agent.formats.packed import open_packed
from device_agent.native.errors import NativeError, UnsupportedKernelError
from device_agent.native.executor import NativeKernel, NativeNetwork
from device_agent.native.library import MAX_THREADS, load_library
from device_agent.native.team import available_cores
from device_agent.runtimes.base import FloatArray, RuntimeUnavailable, UnsupportedTask


class NativeRuntime:
    """The native library of this machine; the first use may compile it.

    With `exact`, nothing is tuned and outputs have the same bits in every run: for looking at outputs, not for timing.
    `isa` names an instruction set ("avx512", "avx2", "sse2" on x86) instead of the fastest one.

    Raises `RuntimeUnavailable` where it can neither be found nor built, or the processor lacks `isa`.
    """

    def __init__(self, *, exact: bool = False, isa: str | None = None) -> None:
        self._isa = isa
        self._options: dict[str, Any] = {"isa": isa, "tune": not exact, "exact": exact}
        try:
            self._library = load_library()
            self._library.backend(isa)
        except NativeError as error:
            raise RuntimeUnavailable(str(error)) from None

    def info(self) -> RuntimeInfo:
        return RuntimeInfo(
            name="native",
            version=f"{__version__} (compiler {self._library.compiler})",
            binary_sha256=self._library.sha256,
            isa=self._library.backend(self._isa).name,
        )

    def load_kernel(self, kernel: KernelSpec, threads: int) -> NativeExecutable:
        cores = _cores_for(threads)
        try:
            prepare = functools.partial(NativeKernel, kernel, threads=threads, cores=cores, **self._options)
            return NativeExecutable(prepare, is_sparse=_is_sparse(kernel))
        except UnsupportedKernelError as error:
            raise UnsupportedTask(str(error)) from None

    def load_network(
        self, data: bytes, network_format: NetworkFormat, input_shape: tuple[int, int, int], threads: int
    ) -> NativeExecutable:
        cores = _cores_for(threads)
        if network_format is not NetworkFormat.PACKED:
            raise UnsupportedTask(
                f"the native runtime reads packed networks, not {network_format}: export it as packed"
            )
        plan, tensors = open_packed(data)
        if plan.input_shape != input_shape:
            raise UnsupportedTask(f"the network reads {plan.input_shape}, but the task says {input_shape}")
        try:
            prepare = functools.partial(NativeNetwork, plan, tensors, threads=threads, cores=cores, **self._options)
            return NativeExecutable(prepare, is_sparse=any(_is_sparse(kernel) for kernel in plan.kernels))
        except UnsupportedKernelError as error:
            raise UnsupportedTask(str(error)) from None


class NativeExecutable:
    """A native kernel or network. Its tiles were tuned on this core while it was loaded."""

    findings: tuple[VerdictReason, ...] = ()

    def __init__(self, prepare: Callable[..., NativeKernel | NativeNetwork], *, is_sparse: bool) -> None:
        """`prepare` takes the keyword arguments of `NativeNetwork`."""
        self._prepare = prepare
        self._program = prepare()
        self._is_sparse = is_sparse
        self.mode = "sparse" if is_sparse else "dense"
        self.memory_bytes: int | None = self._program.memory_bytes

    def exact_twin(self) -> NativeExecutable | None:
        if not self._program.winograd_ops:
            return None
        prepare = functools.partial(self._prepare, tune=False, exact=True, threads=1, cores=())
        return NativeExecutable(prepare, is_sparse=self._is_sparse)

    def run(self, x: FloatArray, residual: FloatArray | None = None) -> FloatArray:
        if isinstance(self._program, NativeKernel):
            return self._program.run(x, residual).reshape(-1)
        if residual is not None:
            raise ValueError("a network has one input")
        return self._program.run(x).reshape(-1)

    def repeat(self, count: int) -> None:
        self._program.repeat(count)

    def op_ns(self, rounds: int) -> tuple[float, ...]:
        return self._program.op_ns(rounds)


def _is_sparse(kernel: KernelSpec) -> bool:
    return kernel.pruning.scheme is not PruningScheme.DENSE


def _cores_for(threads: int) -> tuple[int, ...]:
    """The cores to pin to, where the caller may use just as many as there are threads: it has chosen them."""
    cores = available_cores()
    limit = min(len(cores), MAX_THREADS)
    if not 1 <= threads <= limit:
        # More threads than cores wait for each other; the time would be that of the scheduler.
        raise UnsupportedTask(
            f"the native runtime may use {limit} cores here: set threads to 1..{limit}, not {threads}"
        )
    return cores if len(cores) == threads > 1 and hasattr(os, "sched_setaffinity") else ()
