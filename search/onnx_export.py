"""A network plan as an ONNX file, for whatever runtime reads ONNX. Pruned weights are stored with their zeros, which
ONNX's runtimes do not skip: such a file is as fast as its shapes.

https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, checker, helper, numpy_helper

from device_agent.contracts import (
    NETWORK_INPUT,
    Activation,
    ContractError,
    KernelSpec,
    NetworkPlan,
    Op,
    PlanOp,
    canonical_json,
)

#: Old enough for every runtime in use, and the first that has all that a plan needs is 14 (HardSwish).
OPSET = 17
IR_VERSION = 8
#: The images of a batch: any number.
BATCH = "images"
INPUT = "input"
OUTPUT = "output"
#: The key of the file's metadata that holds the plan as JSON.
PLAN_METADATA = "kerf.plan"


def plan_to_onnx(plan: NetworkPlan, tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Write `plan` as a float32 ONNX model: "input" (images, c, h, w), "output" (images, classes) where the last
    operator is fully connected, else (images, c, h, w). Equal plans and tensors give equal bytes.

    `tensors` holds `<op>.weight` (float32, `KernelSpec.weight_shape`) and `<op>.bias` ((out_channels,)) of every
    operator that has weights.

    Raises `ContractError` where a tensor is missing or of another shape, or an operator has no ONNX form.
    """
    writer = _Writer(tensors)
    names = {NETWORK_INPUT: INPUT}
    for op in plan.ops:
        is_output = op.name == plan.output_name
        # Tensors inside of an operator have names with a colon, which no operator has.
        result = f"{op.name}:" if op.name in (INPUT, OUTPUT) else op.name
        names[op.name] = writer.add(op, names, OUTPUT if is_output else result, flat=is_output)
    channels, height, width = plan.output_shape
    is_flat = plan.ops[-1].kernel.op is Op.FULLY_CONNECTED
    output_shape: list[str | int | None] = [BATCH, channels] if is_flat else [BATCH, channels, height, width]
    graph = helper.make_graph(
        writer.nodes,
        plan.name or "network",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [BATCH, *plan.input_shape])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, output_shape)],
        writer.constants,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="kerf",
    )
    helper.set_model_props(model, {PLAN_METADATA: canonical_json(plan)})
    checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


class _Writer:
    """Fused kernels to ONNX nodes."""

    def __init__(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        self._tensors = tensors
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, op: PlanOp, names: Mapping[str, str], result: str, *, flat: bool) -> str:
        """Append the nodes of one kernel, the last of which writes `result`."""
        kernel = op.kernel
        sources = [names[source] for source in op.inputs]
        residual = None if op.residual is None else names[op.residual]
        stages = int(residual is not None) + int(kernel.activation is not Activation.NONE)
        first = result if stages == 0 else f"{op.name}:{kernel.op.value}"
        self._kernel(op, sources, first, flat=flat)
        if residual is not None:
            joined = result if stages == 1 else f"{op.name}:sum"
            self._node("Add", [first, residual], joined)
            first = joined
        if kernel.activation is not Activation.NONE:
            self._activation(op.name, kernel.activation, first, result)
        return result

    def _kernel(self, op: PlanOp, sources: list[str], result: str, *, flat: bool) -> None:
        kernel, name = op.kernel, op.name
        if kernel.op in (Op.CONV2D, Op.DEPTHWISE_CONV2D):
            groups = kernel.in_channels // kernel.weight_shape[1]
            self._node("Conv", [*sources, *self._weights(op)], result, group=groups, **_window(kernel))
        elif kernel.op is Op.FULLY_CONNECTED:
            self._fully_connected(op, sources, result, flat=flat)
        elif kernel.op in _BINARY:
            self._node(_BINARY[kernel.op], sources, result)
        elif kernel.op is Op.CONCAT:
            self._node("Concat", sources, result, axis=1)
        elif kernel.op in (Op.FIRST_CHANNELS, Op.LAST_CHANNELS):
            first = 0 if kernel.op is Op.FIRST_CHANNELS else kernel.in_channels - kernel.out_channels
            bounds = {"begin": first, "end": first + kernel.out_channels, "axes": 1}
            inputs = [self._constant(f"{name}:{key}", np.array([value], np.int64)) for key, value in bounds.items()]
            self._node("Slice", [*sources, *inputs], result)
        elif kernel.op is Op.CHANNEL_SHUFFLE:
            self._shuffle(name, kernel, sources[0], result)
        elif kernel.op is Op.MAX_POOL:
            self._node("MaxPool", sources, result, **_window(kernel))
        elif kernel.op is Op.AVG_POOL:
            # torch counts the zeros of the padding.
            self._node("AveragePool", sources, result, count_include_pad=1, **_window(kernel))
        elif kernel.op is Op.GLOBAL_AVG_POOL:
            self._node("GlobalAveragePool", sources, result)
        elif kernel.op is Op.SHORTCUT_PAD:
            self._shortcut_pad(name, kernel, sources[0], result)
        else:
            raise ContractError(f"{name}: {kernel.op.value} has no ONNX form")

    def _fully_connected(self, op: PlanOp, sources: list[str], result: str, *, flat: bool) -> None:
        """A matrix for the network's output; inside, where an image may follow, a convolution of 1x1."""
        weight, bias = self._weights(op, flat=flat)
        if not flat:
            self._node("Conv", [*sources, weight, bias], result, kernel_shape=[1, 1])
            return
        self._node("Flatten", sources, f"{op.name}:flat", axis=1)
        self._node("Gemm", [f"{op.name}:flat", weight, bias], result, transB=1)

    def _shortcut_pad(self, name: str, kernel: KernelSpec, source: str, result: str) -> None:
        after = kernel.out_channels - kernel.in_channels - kernel.pad_channels_before
        is_padded = kernel.out_channels > kernel.in_channels
        if kernel.stride > 1:
            bounds = {"begin": [0, 0], "end": [kernel.input_h, kernel.input_w], "axes": [2, 3]}
            indices = {**bounds, "steps": [kernel.stride, kernel.stride]}
            inputs = [self._constant(f"{name}:{key}", np.array(value, np.int64)) for key, value in indices.items()]
            sliced = f"{name}:slice" if is_padded else result
            self._node("Slice", [source, *inputs], sliced)
            source = sliced
        if is_padded:
            pads = np.array([0, kernel.pad_channels_before, 0, 0, 0, after, 0, 0], np.int64)
            self._node("Pad", [source, self._constant(f"{name}:pads", pads)], result)
        elif kernel.stride == 1:
            self._node("Identity", [source], result)

    def _shuffle(self, name: str, kernel: KernelSpec, source: str, result: str) -> None:
        # 0 is the extent as it is: any number of images.
        blocks = [0, kernel.groups, kernel.in_channels // kernel.groups, kernel.input_h, kernel.input_w]
        shapes = {"blocks": blocks, "channels": [0, kernel.in_channels, kernel.input_h, kernel.input_w]}
        constants = [self._constant(f"{name}:{key}", np.array(value, np.int64)) for key, value in shapes.items()]
        self._node("Reshape", [source, constants[0]], f"{name}:folded")
        self._node("Transpose", [f"{name}:folded"], f"{name}:swapped", perm=[0, 2, 1, 3, 4])
        self._node("Reshape", [f"{name}:swapped", constants[1]], result)

    def _activation(self, name: str, activation: Activation, source: str, result: str) -> None:
        if activation is Activation.RELU6:
            bounds = [
                self._constant(f"{name}:{key}", np.array(value, np.float32)) for key, value in (("min", 0), ("max", 6))
            ]
            self._node("Clip", [source, *bounds], result)
        elif activation is Activation.HARDSIGMOID:
            self._node("HardSigmoid", [source], result, alpha=1 / 6, beta=0.5)
        elif activation is Activation.SILU:
            self._node("Sigmoid", [source], f"{name}:gate")
            self._node("Mul", [source, f"{name}:gate"], result)
        elif activation in _ACTIVATIONS:
            self._node(_ACTIVATIONS[activation], [source], result)
        else:
            raise ContractError(f"{name}: {activation.value} has no ONNX form")

    def _weights(self, op: PlanOp, *, flat: bool = False) -> list[str]:
        found = []
        shapes = {"weight": op.kernel.weight_shape, "bias": (op.kernel.out_channels,)}
        for role, shape in shapes.items():
            name = f"{op.name}.{role}"
            values = self._tensors.get(name)
            if values is None or values.shape != shape or values.dtype != np.float32:
                told = "missing" if values is None else f"{values.dtype} of shape {values.shape}"
                raise ContractError(
                    f"the tensor {name!r} is {told}: {op.kernel.op.value} needs float32 of shape {shape}"
                )
            found.append(self._constant(name, values[:, :, 0, 0] if flat and role == "weight" else values))
        return found

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))


_BINARY = {Op.ADD: "Add", Op.MUL: "Mul"}
_ACTIVATIONS = {Activation.RELU: "Relu", Activation.SIGMOID: "Sigmoid", Activation.HARDSWISH: "HardSwish"}


def _window(kernel: KernelSpec) -> dict[str, list[int]]:
    return {
        "kernel_shape": [kernel.kernel_h, kernel.kernel_w],
        "strides": [kernel.stride] * 2,
        "pads": [kernel.padding] * 4,
    }
