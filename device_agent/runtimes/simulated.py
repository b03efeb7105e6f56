"""A device that exists in arithmetic only: the same kernel always takes the same time.

For demonstrations without hardware and for tests that need repeatable searches. Latencies are a fixed formula with no
noise; outputs are computed for real. Every measurement from here says SIMULATED, and is never mixed with others.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

from device_agent.contracts.device import RuntimeInfo
from device_agent.contracts.kernel import KernelSpec, Op, PruningScheme
from device_agent.contracts.lease import NetworkFormat
from device_agent.contracts.measurement import VerdictReason
from device_agent.contracts.network import NetworkPlan
from device_agent.formats.packed import read_packed
from device_agent.formats.tflite import read_plan
from device_agent.runtimes.base import Executable, FloatArray, RuntimeUnavailable, UnsupportedTask, checked_input
from device_agent.runtimes.reference import run_kernel, run_network
from device_agent.synthesis import synthesize_weights

#: Part of every simulated measurement's key: raise it with any change of the formula.
SIMULATION_VERSION = "1"

#: Chooses one of `CORES`, so that a fleet can be simulated; without it, DEFAULT_CORE. Read in the child process, which
#: gets none of the agent's own variables (KERF_AGENT_...).
CORE_VARIABLE = "KERF_SIMULATED_CORE"
DEFAULT_CORE = "phone"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedCore:
    """What the formula knows of a core. `overhead_ns` is the time to start an operator."""

    macs_per_ns: float
    bytes_per_ns: float
    overhead_ns: float


#: The board multiplies slowly but starts operators fast, so that neither core is the slower one for all networks.
CORES = {
    "phone": SimulatedCore(macs_per_ns=16.0, bytes_per_ns=8.0, overhead_ns=1500.0),
    "board": SimulatedCore(macs_per_ns=6.0, bytes_per_ns=4.0, overhead_ns=300.0),
}

#: Whole networks cost a little more than the sum of their kernels, as on real devices.
NETWORK_FACTOR = 1.05
NETWORK_OVERHEAD_NS = 5000.0

#: The part of the peak that a convolution reaches whose zeros are skipped, by filters that share an index.
_SPARSE_EFFICIENCY = {1: 0.5, 2: 0.7}
_SPARSE_EFFICIENCY_WIDE = 0.85
_DEPTHWISE_EFFICIENCY = 0.25


class SimulatedExecutable:
    """True outputs and a computed latency; it is never timed."""

    memory_bytes: int | None = None
    findings: tuple[VerdictReason, ...] = ()

    def __init__(
        self,
        run: Callable[[FloatArray, FloatArray | None], FloatArray],
        *,
        latency_ns: float,
        op_latencies_ns: tuple[float, ...],
        mode: str,
    ) -> None:
        self._run = run
        self.latency_ns = latency_ns
        self._op_latencies_ns = op_latencies_ns
        self.mode = mode

    def run(self, x: FloatArray, residual: FloatArray | None = None) -> FloatArray:
        return self._run(x, residual)

    def repeat(self, count: int) -> None:
        """Nothing to do: the latency is known."""

    def op_ns(self, rounds: int) -> tuple[float, ...]:
        return self._op_latencies_ns


class SimulatedRuntime:
    """Kernels cost what `kernel_latency_ns` says, networks what `network_latency_ns` says.

    The core is one of `CORES`, given or named by the environment. Raises `RuntimeUnavailable` for any other name.
    """

    def __init__(self, core: str | None = None) -> None:
        self._name = core or os.environ.get(CORE_VARIABLE) or DEFAULT_CORE
        if self._name not in CORES:
            where = CORE_VARIABLE if core is None else "core"
            raise RuntimeUnavailable(f"{where}={self._name!r} is not one of {', '.join(CORES)}")
        self._core = CORES[self._name]

    def info(self) -> RuntimeInfo:
        # The version is part of every measurement's key: cores must differ in it.
        version = SIMULATION_VERSION if self._name == DEFAULT_CORE else f"{SIMULATION_VERSION}-{self._name}"
        return RuntimeInfo(name="simulated", version=version, isa="simulated")

    def load_kernel(self, kernel: KernelSpec, threads: int) -> SimulatedExecutable:
        _check_threads(threads)
        tensors = synthesize_weights(kernel)

        def run(x: FloatArray, residual: FloatArray | None) -> FloatArray:
            inputs = [checked_input("input", x, (kernel.in_channels, kernel.input_h, kernel.input_w))]
            if len(kernel.input_shapes) > 1:
                if residual is None:
                    raise ValueError(f"{kernel.op} needs a second operand")
                return run_kernel(kernel, tensors, [*inputs, residual]).reshape(-1)
            return run_kernel(kernel, tensors, inputs, residual).reshape(-1)

        latency_ns = kernel_latency_ns(kernel, core=self._core)
        return SimulatedExecutable(run, latency_ns=latency_ns, op_latencies_ns=(), mode=_mode(kernel))

    def load_network(
        self, data: bytes, network_format: NetworkFormat, input_shape: tuple[int, int, int], threads: int
    ) -> SimulatedExecutable:
        """A packed network skips zeros; a TFLite one does not: its plan is read from the file's metadata."""
        _check_threads(threads)
        skips_zeros = network_format is NetworkFormat.PACKED
        plan = read_packed(data)[0] if skips_zeros else read_plan(data)
        if plan is None:
            raise UnsupportedTask("this .tflite file holds no plan to compute a latency from: export it with Kerf")
        if plan.input_shape != input_shape:
            raise UnsupportedTask(f"the network reads {plan.input_shape}, but the task says {input_shape}")
        execute = _network_executor(data, network_format, input_shape)
        return SimulatedExecutable(
            execute,
            latency_ns=network_latency_ns(plan, skips_zeros=skips_zeros, core=self._core),
            op_latencies_ns=tuple(kernel_latency_ns(k, skips_zeros=skips_zeros, core=self._core) for k in plan.kernels),
            mode="sparse" if skips_zeros and any(_mode(k) == "sparse" for k in plan.kernels) else "dense",
        )


def kernel_latency_ns(
    kernel: KernelSpec, *, skips_zeros: bool = True, core: SimulatedCore = CORES[DEFAULT_CORE]
) -> float:
    """Overhead + arithmetic / rate + traffic / bandwidth. Without `skips_zeros`, zeros are multiplied like others."""
    sparse = skips_zeros and kernel.pruning.scheme is not PruningScheme.DENSE
    efficiency = 1.0
    if kernel.op is Op.DEPTHWISE_CONV2D:
        efficiency = _DEPTHWISE_EFFICIENCY
    elif sparse:
        efficiency = _SPARSE_EFFICIENCY.get(kernel.pruning.block_filters, _SPARSE_EFFICIENCY_WIDE)
    weights = kernel.num_weights * (kernel.pruning.density if sparse else 1.0)
    arithmetic = kernel.dense_macs * (kernel.pruning.density if sparse else 1.0)
    inputs = sum(math.prod(shape) for shape in kernel.input_shapes)
    outputs = kernel.out_channels * kernel.output_h * kernel.output_w * (2 if kernel.residual else 1)
    if not kernel.activation.is_clamp:
        # A pass of its own reads and writes the tensor again.
        outputs *= 3
    traffic_bytes = 4 * (inputs + outputs + weights)
    return core.overhead_ns + arithmetic / (core.macs_per_ns * efficiency) + traffic_bytes / core.bytes_per_ns


def network_latency_ns(
    plan: NetworkPlan, *, skips_zeros: bool = True, core: SimulatedCore = CORES[DEFAULT_CORE]
) -> float:
    """The sum over the plan's kernels under a fixed affine map."""
    total = sum(kernel_latency_ns(kernel, skips_zeros=skips_zeros, core=core) for kernel in plan.kernels)
    return NETWORK_FACTOR * total + NETWORK_OVERHEAD_NS


def _network_executor(
    data: bytes, network_format: NetworkFormat, input_shape: tuple[int, int, int]
) -> Callable[[FloatArray, FloatArray | None], FloatArray]:
    """What computes the outputs: the runtime that the file is for; numpy where the native one is missing."""
    from device_agent.runtimes import make_runtime
    from device_agent.runtimes.native import NativeRuntime

    try:
        # What tuning picks depends on times, and may change how outputs round: a simulated device repeats itself.
        runtime = NativeRuntime(exact=True) if network_format is NetworkFormat.PACKED else make_runtime("tflite")
        executable: Executable = runtime.load_network(data, network_format, input_shape, 1)
    except RuntimeUnavailable as error:
        if network_format is NetworkFormat.TFLITE:
            raise UnsupportedTask(f"the outputs of a .tflite file cannot be computed here: {error}") from None
    else:
        return executable.run
    plan, tensors = read_packed(data)

    def run(x: FloatArray, residual: FloatArray | None) -> FloatArray:
        return run_network(plan, tensors, checked_input("input", x, input_shape), residual).reshape(-1)

    return run


def _check_threads(threads: int) -> None:
    if threads != 1:
        raise UnsupportedTask(f"the simulated device has one core: set threads to 1, not {threads}")


def _mode(kernel: KernelSpec) -> str:
    return "dense" if kernel.pruning.scheme is PruningScheme.DENSE else "sparse"
