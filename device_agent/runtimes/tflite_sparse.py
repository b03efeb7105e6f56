"""TensorFlow Lite where XNNPACK skips the zeros of 1x1 convolutions. Runs nothing where it does not.

Every kernel and network is proved to take the sparse path before it is timed, on the device and with its own weights
(`sparse_chain.witness`): a number of this runtime is never one of dense execution.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from device_agent.contracts.codec import ContractError
from device_agent.contracts.device import TFLITE_SPARSE_RUNTIME, RuntimeInfo
from device_agent.contracts.kernel import KernelSpec, Op, PruningScheme
from device_agent.contracts.lease import NetworkFormat
from device_agent.formats.tflite import plan_to_tflite, read_plan
from device_agent.formats.tflite_tensors import read_plan_tensors
from device_agent.runtimes.base import FloatArray, UnsupportedTask
from device_agent.runtimes.difference import DifferenceExecutable
from device_agent.runtimes.sparse_chain import (
    FEWER_COPIES,
    MORE_COPIES,
    Network,
    chain_agrees,
    chain_input,
    kernel_chain,
    witness,
)
from device_agent.runtimes.tflite import TfliteExecutable, TfliteRuntime
from device_agent.synthesis import synthesize_input

_SCHEMES = (PruningScheme.GROUP, PruningScheme.UNSTRUCTURED)


class TfliteSparseRuntime:
    """The installed TFLite interpreter, for XNNPACK's sparse path alone.

    Raises `RuntimeUnavailable` where no interpreter can be imported. Whether the device has the path is found out by
    `sparse_probe`, and again for everything that is loaded.
    """

    def __init__(self) -> None:
        self._tflite = TfliteRuntime()

    def info(self) -> RuntimeInfo:
        return dataclasses.replace(self._tflite.info(), name=TFLITE_SPARSE_RUNTIME)

    def load_kernel(self, kernel: KernelSpec, threads: int) -> DifferenceExecutable:
        reason = why_not_timed(kernel)
        if reason is not None:
            raise UnsupportedTask(f"the runtime {TFLITE_SPARSE_RUNTIME} {reason}")
        more = kernel_chain(kernel, MORE_COPIES, MORE_COPIES - 1)
        fewer = kernel_chain(kernel, FEWER_COPIES, MORE_COPIES - 1)
        # Written first: the rules are about these weights, and the witness has a few zeros more.
        models = [self._write(network) for network in (more, fewer)]
        self._require_sparse(more, threads)
        loaded = [
            (network, self._tflite.load_model(model, threads, mode="sparse"))
            for network, model in zip((more, fewer), models, strict=True)
        ]

        def check() -> tuple[tuple[FloatArray, ...], bool]:
            outputs = tuple(executable.run(chain_input(network)) for network, executable in loaded)
            agree = [chain_agrees(n, chain_input(n), y) for (n, _), y in zip(loaded, outputs, strict=True)]
            return outputs, all(agree)

        return DifferenceExecutable(
            more=loaded[0][1], fewer=loaded[1][1], copies=MORE_COPIES - FEWER_COPIES, check=check
        )

    def load_network(
        self, data: bytes, network_format: NetworkFormat, input_shape: tuple[int, int, int], threads: int
    ) -> TfliteExecutable:
        """A network that Kerf wrote with `sparse_1x1`."""
        executable = self._tflite.load_network(data, network_format, input_shape, threads, mode="sparse")
        plan = read_plan(data)
        if plan is None:
            raise UnsupportedTask("this .tflite file holds no plan to check against the rules: export it with Kerf")
        network = Network(plan=plan, tensors=read_plan_tensors(data, plan))
        # The proof is about what the plan says: the file has to be just that.
        if self._write(network) != data:
            raise UnsupportedTask(
                "this .tflite file is not what its plan is written as: export it again, with sparse_1x1"
            )
        self._require_sparse(network, threads)
        return executable

    @staticmethod
    def _write(network: Network) -> bytes:
        try:
            return plan_to_tflite(network.plan, network.tensors, sparse_1x1=True)
        except ContractError as error:
            raise UnsupportedTask(str(error)) from None

    def _require_sparse(self, network: Network, threads: int) -> None:
        """Raise `UnsupportedTask` unless this very network is seen to skip zeros."""
        try:
            taken = is_sparse_path_taken(self._tflite, network, threads)
        except ContractError as error:
            raise UnsupportedTask(str(error)) from None
        if taken is None:
            raise UnsupportedTask("whether XNNPACK skips the zeros of this network cannot be told: nothing was timed")
        if not taken:
            raise UnsupportedTask(
                "XNNPACK multiplies by the zeros of this network here instead of skipping them: nothing was timed"
            )


def is_sparse_path_taken(
    runtime: TfliteRuntime, network: Network, threads: int = 1, *, sparse_1x1: bool = True
) -> bool | None:
    """Whether the 1x1 convolutions of `network` skip zeros, by its witness; None where that shows nothing.

    With `sparse_1x1` off the weights are stored with their zeros, and the answer should be False.
    """
    outputs = []
    for poisoned in (False, True):
        changed = witness(network.plan, network.tensors, poisoned=poisoned)
        model = plan_to_tflite(changed.plan, changed.tensors, sparse_1x1=sparse_1x1, allow_infinite=True)
        executable = runtime.load_model(model, threads)
        outputs.append(executable.run(synthesize_input(network.plan.input_shape, 0)))
    clean, poisoned_output = outputs
    if not np.isfinite(clean).all():
        return None
    if not np.isfinite(poisoned_output).all():
        return False
    return True if np.array_equal(clean, poisoned_output) else None


def why_not_timed(kernel: KernelSpec) -> str | None:
    """Why a kernel cannot be timed on the sparse path; None when it can. Continues "the runtime ..."."""
    shape = f"{kernel.kernel_h}x{kernel.kernel_w} with stride {kernel.stride} and padding {kernel.padding}"
    if kernel.op is not Op.CONV2D:
        return f"times 1x1 convolutions only, not {kernel.op}"
    if (kernel.kernel_h, kernel.kernel_w, kernel.stride, kernel.padding) != (1, 1, 1, 0):
        return f"times 1x1 convolutions of stride 1 without padding only, not {shape}"
    if kernel.pruning.scheme not in _SCHEMES:
        return f"times unstructured and group pruning only, not {kernel.pruning.scheme}"
    if kernel.pruning.density * 3 >= 1:
        return (
            f"times densities below 1/3 only, not {kernel.pruning.density:g}: XNNPACK skips zeros where they are more "
            "than two thirds"
        )
    return None
