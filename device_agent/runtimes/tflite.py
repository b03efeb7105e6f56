"""TensorFlow Lite through its Python interpreter: the dense baseline.

`ai_edge_litert` is taken first, `tflite_runtime` second; both have the same interface, and XNNPACK as default delegate.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import platform
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from device_agent.contracts.device import TFLITE_SPARSE_RUNTIME, RuntimeInfo
from device_agent.contracts.kernel import KernelSpec
from device_agent.contracts.lease import NetworkFormat
from device_agent.contracts.measurement import VerdictReason
from device_agent.contracts.network import NETWORK_RESIDUAL
from device_agent.formats.tflite import plan_to_tflite
from device_agent.runtimes.base import FloatArray, RuntimeUnavailable, UnsupportedTask, checked_input
from device_agent.synthesis import kernel_plan, kernel_plan_tensors

#: Module, distribution, and the shared libraries that may hold the interpreter, the larger ones first.
_IMPLEMENTATIONS = (
    (
        "ai_edge_litert",
        "ai-edge-litert",
        ("libpywrap_litert_common.so", "libpywrap_litert_common.dylib", "_pywrap_tensorflow_interpreter_wrapper.so"),
    ),
    ("tflite_runtime", "tflite-runtime", ("_pywrap_tensorflow_interpreter_wrapper.so",)),
)

#: Operators whose time matters: they must be XNNPACK's.
_HEAVY = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})


class TfliteRuntime:
    """The installed TFLite interpreter. Raises `RuntimeUnavailable` where none can be imported."""

    def __init__(self) -> None:
        self._interpreter_module, self._distribution, self._library = _find_implementation()

    @property
    def library_folder(self) -> Path:
        """Where the installed distribution keeps its libraries."""
        return self._library.parent

    def info(self) -> RuntimeInfo:
        return RuntimeInfo(
            name="tflite",
            version=f"{self._distribution} {_version(self._distribution)}",
            binary_sha256=_sha256(self._library),
            isa=platform.machine(),
        )

    def load_kernel(self, kernel: KernelSpec, threads: int) -> TfliteExecutable:
        return self.load_model(plan_to_tflite(kernel_plan(kernel), kernel_plan_tensors(kernel)), threads)

    def load_model(self, model: bytes, threads: int, mode: str = "dense") -> TfliteExecutable:
        """A model file; `mode` is how zeros are known to be treated in it. Raises `UnsupportedTask`."""
        return TfliteExecutable(self._interpreter_module, model, threads, mode)

    def load_network(
        self,
        data: bytes,
        network_format: NetworkFormat,
        input_shape: tuple[int, int, int],
        threads: int,
        mode: str = "dense",
    ) -> TfliteExecutable:
        if network_format is not NetworkFormat.TFLITE:
            raise UnsupportedTask(f"the tflite runtime reads .tflite files, not {network_format}: export it as tflite")
        executable = self.load_model(data, threads, mode)
        if executable.is_sparse_encoded and mode == "dense":
            raise UnsupportedTask(
                "this file's weights are stored without zeros, and whether they run sparse depends on the device: "
                f"measure it with the runtime {TFLITE_SPARSE_RUNTIME}, or export it dense"
            )
        if executable.input_shape != input_shape:
            raise UnsupportedTask(f"the network reads {executable.input_shape}, but the task says {input_shape}")
        return executable


class TfliteExecutable:
    """An interpreter with its tensors allocated. Inputs are (c, h, w), and turned to NHWC here."""

    #: The interpreter does not tell what its delegate holds.
    memory_bytes: int | None = None

    def __init__(self, interpreter_module: ModuleType, model: bytes, threads: int, mode: str) -> None:
        self.mode = mode
        try:
            self._interpreter: Any = interpreter_module.Interpreter(model_content=model, num_threads=threads)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise UnsupportedTask(f"TFLite does not load this model: {error}") from None
        inputs = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        self._check_signature(inputs, outputs)
        # The second input, if any, is the one that the writer calls "residual".
        self._inputs = sorted(inputs, key=lambda detail: NETWORK_RESIDUAL in detail["name"])
        self._output_index = outputs[0]["index"]
        operators = _operators(self._interpreter)
        self.findings = _findings(operators)
        self.is_sparse_encoded = any(op["op_name"] == "DENSIFY" for op in operators)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, h, w) of the first input."""
        return _nchw_shape(self._inputs[0])

    def run(self, x: FloatArray, residual: FloatArray | None = None) -> FloatArray:
        given = [x] if residual is None else [x, residual]
        if len(given) != len(self._inputs):
            raise ValueError(f"the model has {len(self._inputs)} inputs, but {len(given)} were given")
        for detail, values in zip(self._inputs, given, strict=True):
            nchw = checked_input(detail["name"], values, _nchw_shape(detail))
            self._interpreter.set_tensor(detail["index"], np.ascontiguousarray(nchw.transpose(1, 2, 0))[None])
        self._interpreter.invoke()
        output = self._interpreter.get_tensor(self._output_index)
        if output.ndim == 4:
            output = output.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(output, np.float32).reshape(-1)

    def repeat(self, count: int) -> None:
        invoke = self._interpreter.invoke
        for _ in range(count):
            invoke()

    def op_ns(self, rounds: int) -> tuple[float, ...]:
        # The Python interpreter has no profiler, and XNNPACK runs several operators of the plan as one.
        return ()

    @staticmethod
    def _check_signature(inputs: list[Any], outputs: list[Any]) -> None:
        for detail in inputs:
            shape = tuple(int(n) for n in detail["shape"])
            if len(shape) != 4 or shape[0] != 1 or detail["dtype"] is not np.float32:
                raise UnsupportedTask(f"the input {detail['name']!r} is {shape}; it must be float32 of (1, h, w, c)")
        if len(inputs) not in (1, 2) or len(outputs) != 1:
            raise UnsupportedTask(
                f"the model has {len(inputs)} inputs and {len(outputs)} outputs; one output is needed"
            )
        if outputs[0]["dtype"] is not np.float32:
            raise UnsupportedTask(f"the output is {outputs[0]['dtype'].__name__}; only float32 can be compared")


def _nchw_shape(detail: Any) -> tuple[int, int, int]:
    _, height, width, channels = (int(n) for n in detail["shape"])
    return (channels, height, width)


def _operators(interpreter: Any) -> list[Any]:
    try:
        listed: list[Any] = interpreter._get_ops_details()
    except AttributeError:
        # A future interpreter without this listing: nothing was seen, so nothing is claimed.
        return []
    return listed


def _findings(operators: list[Any]) -> tuple[VerdictReason, ...]:
    """WRONG_DELEGATE when a heavy operator is left to the plain kernels, or no delegate took any."""
    delegated = {int(t) for op in operators if op["op_name"] == "DELEGATE" for t in op["inputs"]}
    # What a delegate takes of weights without zeros is what is stored, not what becomes of it.
    stored = {int(op["outputs"][0]): int(op["inputs"][0]) for op in operators if op["op_name"] == "DENSIFY"}
    for op in operators:
        # A delegated operator stays in the list; its weights then belong to a DELEGATE.
        weights = int(op["inputs"][1]) if op["op_name"] in _HEAVY else None
        if weights is not None and stored.get(weights, weights) not in delegated:
            return (VerdictReason.WRONG_DELEGATE,)
    return ()


def _find_implementation() -> tuple[ModuleType, str, Path]:
    reasons = []
    for package, distribution, libraries in _IMPLEMENTATIONS:
        try:
            module = importlib.import_module(f"{package}.interpreter")
            module.Interpreter  # noqa: B018 - an incomplete installation fails here, not in the middle of a task
        except Exception as error:  # Broken wheels raise anything: ImportError, OSError, AttributeError.
            reasons.append(f"{distribution}: {error}")
            continue
        folder = Path(str(module.__file__)).parent
        for library in libraries:
            if (folder / library).exists():
                return module, distribution, folder / library
        found = sorted(folder.glob("*interpreter_wrapper*.so"), key=lambda p: p.stat().st_size)
        return module, distribution, found[-1] if found else Path(str(module.__file__))
    raise RuntimeUnavailable(f"no TFLite runtime ({'; '.join(reasons)}): pip install ai-edge-litert")


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
