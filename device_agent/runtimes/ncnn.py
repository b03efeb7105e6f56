"""ncnn: a dense baseline that uses Winograd's algorithm for 3x3 convolutions.

Everything is float32: half-precision and 8-bit storage, packing and arithmetic are off, so that its times compare with
the other runtimes'. Winograd, matrix-product convolution and packed channels stay on, as they are its strength. The
outputs differ from a direct convolution's by the rounding of Winograd's transforms.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import platform
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from device_agent.contracts.codec import ContractError
from device_agent.contracts.device import RuntimeInfo
from device_agent.contracts.kernel import KernelSpec
from device_agent.contracts.lease import NetworkFormat
from device_agent.contracts.measurement import VerdictReason
from device_agent.contracts.network import NetworkPlan
from device_agent.formats.ncnn import INPUT_BLOB, RESIDUAL_BLOB, NcnnModel, plan_to_ncnn
from device_agent.formats.packed import read_packed
from device_agent.runtimes.base import FloatArray, RuntimeUnavailable, UnsupportedTask, checked_input
from device_agent.synthesis import kernel_plan, kernel_plan_tensors

#: Options of ncnn that would store or compute in less than float32.
_REDUCED_PRECISION = (
    "use_fp16_packed",
    "use_fp16_storage",
    "use_fp16_arithmetic",
    "use_bf16_packed",
    "use_bf16_storage",
    "use_int8_inference",
    "use_int8_packed",
    "use_int8_storage",
    "use_int8_arithmetic",
)
#: What `extract` does to the output: unpack it to plain float32, or leave it as the last layer wrote it.
_PLAIN, _AS_IT_IS = 0, 1


class NcnnRuntime:
    """The installed ncnn. Raises `RuntimeUnavailable` where it cannot be imported."""

    def __init__(self) -> None:
        try:
            self._module = importlib.import_module("ncnn")
            self._binary = Path(str(importlib.import_module("ncnn.ncnn").__file__))
        except Exception as error:  # Broken wheels raise anything: ImportError, OSError, AttributeError.
            raise RuntimeUnavailable(f"no ncnn ({error}): pip install 'kerf[ncnn]'") from None

    def info(self) -> RuntimeInfo:
        with self._binary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return RuntimeInfo(name="ncnn", version=f"ncnn {_version()}", binary_sha256=digest, isa=platform.machine())

    def load_kernel(self, kernel: KernelSpec, threads: int) -> NcnnExecutable:
        return self.load_plan(kernel_plan(kernel), kernel_plan_tensors(kernel), threads, is_kernel=True)

    def load_network(
        self, data: bytes, network_format: NetworkFormat, input_shape: tuple[int, int, int], threads: int
    ) -> NcnnExecutable:
        if network_format is not NetworkFormat.PACKED:
            raise UnsupportedTask(f"the ncnn runtime reads packed networks, not {network_format}: export it as packed")
        plan, tensors = read_packed(data)
        if plan.input_shape != input_shape:
            raise UnsupportedTask(f"the network reads {plan.input_shape}, but the task says {input_shape}")
        return self.load_plan(plan, tensors, threads)

    def load_plan(
        self, plan: NetworkPlan, tensors: dict[str, FloatArray], threads: int, *, is_kernel: bool = False
    ) -> NcnnExecutable:
        """`plan` with its weights. Of a single kernel, conversions of inputs and outputs to and from ncnn's packed
        channels are not timed: an earlier layer would have left them so. Raises `UnsupportedTask`.
        """
        try:
            model = plan_to_ncnn(plan, tensors)
        except ContractError as error:
            raise UnsupportedTask(str(error)) from None
        return NcnnExecutable(self._module, plan, model, threads, keeps_packing=is_kernel)


class NcnnExecutable:
    """A loaded net with its inputs."""

    mode = "dense"
    #: ncnn does not tell what its pipelines hold.
    memory_bytes: int | None = None
    findings: tuple[VerdictReason, ...] = ()

    def __init__(
        self, module: ModuleType, plan: NetworkPlan, model: NcnnModel, threads: int, *, keeps_packing: bool
    ) -> None:
        self._module = module
        self._keeps_packing = keeps_packing
        self._shapes = [plan.input_shape, *((plan.residual_shape,) if plan.residual_shape is not None else ())]
        self._net = _load(module, model, threads)
        # Freed blocks are kept for the next run: else large blobs are mapped anew each time. The net points to both.
        self._allocators = (module.UnlockedPoolAllocator(), module.PoolAllocator())
        self._net.opt.blob_allocator, self._net.opt.workspace_allocator = self._allocators
        self._output_blob = model.output_blob
        self._nothing = module.Mat()
        self._inputs: list[tuple[str, Any]] = []

    def run(self, x: FloatArray, residual: FloatArray | None = None) -> FloatArray:
        given = [x] if residual is None else [x, residual]
        if len(given) != len(self._shapes):
            raise ValueError(f"the plan has {len(self._shapes)} inputs, but {len(given)} were given")
        checked = [
            checked_input(name, values, shape)
            for name, values, shape in zip(("input", "residual"), given, self._shapes, strict=False)
        ]
        self._inputs = list(zip((INPUT_BLOB, RESIDUAL_BLOB), map(self._mat, checked), strict=False))
        output = self._forward(self._net.create_extractor(), _PLAIN)
        return np.array(output, np.float32).reshape(-1)

    def repeat(self, count: int) -> None:
        # One extractor for all runs: making one takes 2 us, a tenth of a small kernel. It and all blobs must be gone
        # before the allocators, so neither is kept.
        extractor = self._net.create_extractor()
        kind = _AS_IT_IS if self._keeps_packing else _PLAIN
        for _ in range(count):
            self._forward(extractor, kind)

    def op_ns(self, rounds: int) -> tuple[float, ...]:
        # The Python module has no profiler.
        return ()

    def _forward(self, extractor: Any, kind: int) -> Any:
        for name, mat in self._inputs:
            extractor.input(name, mat)
        # An extractor computes what it does not have: it must forget the last output.
        extractor.input(self._output_blob, self._nothing)
        result, output = extractor.extract(self._output_blob, kind)
        if result != 0:
            raise RuntimeError(f"ncnn failed with {result}: there is not enough memory")
        return output

    def _mat(self, values: FloatArray) -> Any:
        """`values` in ncnn's memory, with channels packed where an earlier layer would have packed them."""
        plain = self._module.Mat(values).clone()
        return _packed(self._module, plain, values.shape) if self._keeps_packing else plain


def _load(module: ModuleType, model: NcnnModel, threads: int) -> Any:
    net = module.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    for name in _REDUCED_PRECISION:
        # Older and newer versions have fewer or more of them.
        if hasattr(net.opt, name):
            setattr(net.opt, name, False)
    if net.load_param_mem(model.param) != 0:
        raise UnsupportedTask("this version of ncnn does not know a layer of the network: upgrade ncnn")
    # The module reads weights from files only.
    with tempfile.TemporaryDirectory(prefix="kerf-ncnn-") as folder:
        path = Path(folder) / "network.bin"
        path.write_bytes(model.bin)
        if net.load_model(str(path)) != 0:
            raise UnsupportedTask("ncnn does not load the network's weights")
    return net


def _packed(module: ModuleType, plain: Any, shape: tuple[int, ...]) -> Any:
    """`plain` as an earlier layer leaves it: what comes out of a layer that changes nothing, x * 1 below zero."""
    channels, height, width = shape
    param = f"7767517\n2 2\nInput in 0 1 in 0={width} 1={height} 2={channels}\nReLU same 1 1 in out 0=1.0\n"
    net = _load(module, NcnnModel(param=param, bin=b"", output_blob="out"), 1)
    extractor = net.create_extractor()
    # The layer may write in place.
    extractor.input("in", plain.clone())
    result, packed = extractor.extract("out", _AS_IT_IS)
    if result != 0:
        raise RuntimeError(f"ncnn failed with {result}: there is not enough memory")
    return packed


def _version() -> str:
    try:
        return importlib.metadata.version("ncnn")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
