"""A network plan as a `.tflite` file, without TensorFlow: the dense baseline and an export.

Activations are NHWC, as TFLite wants them; weights come in torch's layout and are transposed here. Pruned weights are
stored with their zeros: XNNPACK has no sparse 3x3 convolution, so this file shows what dense execution costs. Where it
is asked for, 1x1 convolutions are stored without zeros, so that XNNPACK may skip them (`tflite_sparse`). The plan
itself is kept in the file's metadata, where `read_plan` finds it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts.codec import ContractError, canonical_json, loads
from device_agent.contracts.kernel import Activation, KernelSpec, Op
from device_agent.contracts.network import NETWORK_INPUT, NETWORK_RESIDUAL, NetworkPlan, PlanOp
from device_agent.formats.tflite_graph import (
    BuiltinOperator,
    BuiltinOptions,
    GraphWriter,
    Options,
    Padding,
    Slot,
)
from device_agent.formats.tflite_reader import read_metadata
from device_agent.formats.tflite_sparse import sparse_blocks

PLAN_METADATA = "kerf.plan"

#: TFLite's ActivationFunctionType.
_FUSED = {Activation.NONE: 0, Activation.RELU: 1, Activation.RELU6: 3}
_NO_OPTIONS = Options(kind=BuiltinOptions.NONE)


def plan_to_tflite(
    plan: NetworkPlan,
    tensors: Mapping[str, NDArray[np.float32]],
    *,
    sparse_1x1: bool = False,
    allow_infinite: bool = False,
) -> bytes:
    """Write `plan` as a float32 TFLite model: the input (1, h, w, c), the plan's residual input if any, one output.

    `tensors` holds `<op>.weight` (float32, `KernelSpec.weight_shape`) and `<op>.bias` ((out_channels,)) of every
    operator that has weights. The output is (1, classes) when the last operator is fully connected, else (1, h, w, c).

    With `sparse_1x1` the file takes XNNPACK's sparse path on processors that have it, and runs dense on others.
    `allow_infinite` is for networks whose infinities tell how they are run; else they are refused.

    Raises `ContractError` when a tensor is missing, of another shape or not finite, an operator has no TFLite form, or
    `sparse_1x1` is asked of a network that breaks a rule of the sparse path.
    """
    weights = {op.name: _weights_of(op, tensors, allow_infinite=allow_infinite) for op in plan.ops}
    graph = GraphWriter(plan.name or "network")
    lowering = _Lowering(graph, sparse_blocks(plan, tensors) if sparse_1x1 else None)
    values = {}
    for name, shape in ((NETWORK_INPUT, plan.input_shape), (NETWORK_RESIDUAL, plan.residual_shape)):
        if shape is not None:
            channels, height, width = shape
            values[name] = graph.activation(name, (1, height, width, channels))
    inputs = list(values.values())
    for op in plan.ops:
        values[op.name] = lowering.add(
            op.name,
            op.kernel,
            [values[source] for source in op.inputs],
            values[op.residual] if op.residual is not None else None,
            *weights[op.name],
            is_output=op.name == plan.output_name,
        )
    graph.metadata(PLAN_METADATA, canonical_json(plan).encode())
    return graph.finish(inputs, [values[plan.output_name]])


def read_plan(model: bytes) -> NetworkPlan | None:
    """The plan that `plan_to_tflite` stored in the file; None for a model of other origin.

    Raises `ContractError` when `model` is no TFLite file or its plan is malformed.
    """
    stored = read_metadata(model, PLAN_METADATA)
    return None if stored is None else loads(NetworkPlan, stored)


def _weights_of(
    op: PlanOp, tensors: Mapping[str, NDArray[np.float32]], *, allow_infinite: bool
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    if not op.kernel.op.has_weights:
        return None, None
    found = []
    for name, shape in (
        (f"{op.name}.weight", op.kernel.weight_shape),
        (f"{op.name}.bias", (op.kernel.out_channels,)),
    ):
        if name not in tensors:
            raise ContractError(f"the tensor {name!r} is missing: {op.kernel.op} needs one of shape {shape}")
        found.append(_checked(name, tensors[name], shape))
        if not allow_infinite and not np.isfinite(tensors[name]).all():
            raise ContractError(f"the tensor {name!r} holds values that are not finite")
    return found[0], found[1]


def _checked(name: str, values: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    if values.shape != shape:
        raise ContractError(f"the tensor {name!r} has shape {values.shape}, but the plan needs {shape}")
    if values.dtype != np.float32:
        raise ContractError(f"the tensor {name!r} is {values.dtype}, but the plan needs float32")
    return values


class _Lowering:
    """Fused kernels to TFLite operators. Remembers which tensors cannot be negative.

    `sparse_blocks` holds the block of each operator whose weights are stored without zeros; None writes a dense file.
    """

    def __init__(self, graph: GraphWriter, sparse_blocks: Mapping[str, int] | None = None) -> None:
        self._graph = graph
        self._is_sparse = sparse_blocks is not None
        self._sparse_blocks = sparse_blocks or {}
        self._non_negative: set[int] = set()

    def add(
        self,
        name: str,
        kernel: KernelSpec,
        inputs: list[int],
        residual: int | None,
        weight: NDArray[np.float32] | None,
        bias: NDArray[np.float32] | None,
        *,
        is_output: bool,
    ) -> int:
        """Append the operators of one kernel; returns the tensor that holds its result."""
        source = inputs[0]
        if kernel.op is Op.CONV2D:
            result = self._conv2d(name, kernel, source, residual, *_required(name, weight, bias))
        elif kernel.op is Op.DEPTHWISE_CONV2D:
            result = self._depthwise(name, kernel, source, *_required(name, weight, bias))
        elif kernel.op is Op.FULLY_CONNECTED:
            result = self._fully_connected(name, kernel, source, *_required(name, weight, bias), flat=is_output)
        elif kernel.op is Op.ADD:
            result = self._sum(name, kernel, inputs[0], inputs[1])
        elif kernel.op is Op.MUL:
            options = Options(kind=BuiltinOptions.MUL, fields=((0, Slot.INT8, _fused(kernel.activation)),))
            result = self._graph.activation(name, _output_shape(kernel))
            self._graph.operator(BuiltinOperator.MUL, inputs, result, options)
        elif kernel.op is Op.CONCAT:
            result = self._concat(name, kernel, inputs)
        elif kernel.op in (Op.FIRST_CHANNELS, Op.LAST_CHANNELS):
            result = self._part(name, kernel, source)
        elif kernel.op is Op.CHANNEL_SHUFFLE:
            result = self._shuffle(name, kernel, source)
        elif kernel.op in (Op.MAX_POOL, Op.AVG_POOL):
            result = self._pool(name, kernel, source)
        elif kernel.op is Op.GLOBAL_AVG_POOL:
            result = self._global_average(name, kernel, source)
        elif kernel.op is Op.SHORTCUT_PAD:
            result = self._shortcut_pad(name, kernel, source)
        else:
            raise ContractError(f"{name}: {kernel.op} has no TFLite form")
        if not kernel.activation.is_clamp:
            result = self._activate(name, kernel, result)
        is_kept = kernel.activation is Activation.NONE and not kernel.op.has_weights
        if kernel.activation.is_non_negative or (is_kept and self._non_negative.issuperset(inputs)):
            self._non_negative.add(result)
        return result

    def _conv2d(
        self,
        name: str,
        kernel: KernelSpec,
        source: int,
        residual: int | None,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
    ) -> int:
        source, padding = self._window(name, kernel, source)
        activation = kernel.activation if residual is None else Activation.NONE
        options = Options(
            kind=BuiltinOptions.CONV_2D,
            fields=(
                (0, Slot.INT8, padding),
                (1, Slot.INT32, kernel.stride),
                (2, Slot.INT32, kernel.stride),
                (3, Slot.INT8, _fused(activation)),
                (4, Slot.INT32, 1),
                (5, Slot.INT32, 1),
            ),
        )
        filters = self._filters(f"{name}.weight", weight.transpose(0, 2, 3, 1), self._sparse_blocks.get(name))
        offsets = self._graph.constant(f"{name}.bias", bias)
        result = self._graph.activation(name if residual is None else f"{name}.conv", _output_shape(kernel))
        self._graph.operator(BuiltinOperator.CONV_2D, [source, filters, offsets], result, options)
        return result if residual is None else self._sum(name, kernel, result, residual)

    def _filters(self, name: str, weight: NDArray[np.float32], block: int | None) -> int:
        if block is None:
            return self._graph.constant(name, weight)
        return self._graph.densified(name, weight, block)

    def _depthwise(
        self, name: str, kernel: KernelSpec, source: int, weight: NDArray[np.float32], bias: NDArray[np.float32]
    ) -> int:
        source, padding = self._window(name, kernel, source)
        options = Options(
            kind=BuiltinOptions.DEPTHWISE_CONV_2D,
            fields=(
                (0, Slot.INT8, padding),
                (1, Slot.INT32, kernel.stride),
                (2, Slot.INT32, kernel.stride),
                (3, Slot.INT32, kernel.channel_multiplier),
                (4, Slot.INT8, _fused(kernel.activation)),
                (5, Slot.INT32, 1),
                (6, Slot.INT32, 1),
            ),
        )
        filters = self._graph.constant(f"{name}.weight", weight.transpose(1, 2, 3, 0))
        offsets = self._graph.constant(f"{name}.bias", bias)
        result = self._graph.activation(name, _output_shape(kernel))
        return self._graph.operator(BuiltinOperator.DEPTHWISE_CONV_2D, [source, filters, offsets], result, options)

    def _fully_connected(
        self,
        name: str,
        kernel: KernelSpec,
        source: int,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
        *,
        flat: bool,
    ) -> int:
        if (kernel.input_h, kernel.input_w) != (1, 1):
            raise ContractError(
                f"{name}: fully_connected reads a 1x1 input, not {kernel.input_h}x{kernel.input_w}: lower it as a "
                f"conv2d with a {kernel.input_h}x{kernel.input_w} kernel"
            )
        # Inside a network the tensors stay 4-D, so that a convolution may follow; the output is (1, classes).
        options = Options(
            kind=BuiltinOptions.FULLY_CONNECTED,
            fields=((0, Slot.INT8, _fused(kernel.activation)), (2, Slot.BOOL, int(not flat))),
        )
        filters = self._graph.constant(f"{name}.weight", weight[:, :, 0, 0])
        offsets = self._graph.constant(f"{name}.bias", bias)
        shape = (1, kernel.out_channels) if flat else _output_shape(kernel)
        result = self._graph.activation(name, shape)
        return self._graph.operator(BuiltinOperator.FULLY_CONNECTED, [source, filters, offsets], result, options)

    def _sum(self, name: str, kernel: KernelSpec, left: int, right: int) -> int:
        options = Options(kind=BuiltinOptions.ADD, fields=((0, Slot.INT8, _fused(kernel.activation)),))
        result = self._graph.activation(name, _output_shape(kernel))
        return self._graph.operator(BuiltinOperator.ADD, [left, right], result, options)

    def _pool(self, name: str, kernel: KernelSpec, source: int) -> int:
        if kernel.op is Op.MAX_POOL:
            code = BuiltinOperator.MAX_POOL_2D
            # torch pads a maximum with -infinity; zeros are the same where nothing is negative, and run in XNNPACK.
            fill = 0.0 if source in self._non_negative else float(np.finfo(np.float32).min)
            source, padding = self._window(name, kernel, source, fill=fill)
        else:
            code = BuiltinOperator.AVERAGE_POOL_2D
            # torch counts the padded zeros in an average, TFLite's SAME does not: pad explicitly.
            source, padding = self._window(name, kernel, source, allow_same=False)
        options = Options(
            kind=BuiltinOptions.POOL_2D,
            fields=(
                (0, Slot.INT8, padding),
                (1, Slot.INT32, kernel.stride),
                (2, Slot.INT32, kernel.stride),
                (3, Slot.INT32, kernel.kernel_w),
                (4, Slot.INT32, kernel.kernel_h),
                (5, Slot.INT8, _fused(kernel.activation)),
            ),
        )
        result = self._graph.activation(name, _output_shape(kernel))
        return self._graph.operator(code, [source], result, options)

    def _global_average(self, name: str, kernel: KernelSpec, source: int) -> int:
        axes = self._graph.constant(f"{name}.axes", np.array([1, 2], np.int32))
        options = Options(kind=BuiltinOptions.REDUCER, fields=((0, Slot.BOOL, 1),))
        result = self._graph.activation(f"{name}.mean", _output_shape(kernel))
        self._graph.operator(BuiltinOperator.MEAN, [source, axes], result, options)
        return self._clamp(name, kernel, result)

    def _concat(self, name: str, kernel: KernelSpec, inputs: list[int]) -> int:
        # XNNPACK fuses nothing into a concatenation.
        options = Options(kind=BuiltinOptions.CONCATENATION, fields=((0, Slot.INT32, 3), (1, Slot.INT8, 0)))
        result = self._graph.activation(f"{name}.joined", _output_shape(kernel))
        self._graph.operator(BuiltinOperator.CONCATENATION, inputs, result, options)
        return self._clamp(name, kernel, result)

    def _part(self, name: str, kernel: KernelSpec, source: int) -> int:
        first = 0 if kernel.op is Op.FIRST_CHANNELS else kernel.in_channels - kernel.out_channels
        shape = _output_shape(kernel)
        begin = self._graph.constant(f"{name}.begin", np.array([0, 0, 0, first], np.int32))
        size = self._graph.constant(f"{name}.size", np.array(shape, np.int32))
        result = self._graph.activation(f"{name}.part", shape)
        self._graph.operator(BuiltinOperator.SLICE, [source, begin, size], result, Options(kind=BuiltinOptions.SLICE))
        return self._clamp(name, kernel, result)

    def _shuffle(self, name: str, kernel: KernelSpec, source: int) -> int:
        height, width, blocks = kernel.input_h, kernel.input_w, kernel.groups
        per_block = kernel.in_channels // blocks
        # XNNPACK takes up to six axes; a vector of pixels needs three.
        folded = self._reshape(f"{name}.blocks", source, (height * width, blocks, per_block))
        order = self._graph.constant(f"{name}.order", np.array([0, 2, 1], np.int32))
        swapped = self._graph.activation(f"{name}.swapped", (height * width, per_block, blocks))
        options = Options(kind=BuiltinOptions.TRANSPOSE)
        self._graph.operator(BuiltinOperator.TRANSPOSE, [folded, order], swapped, options)
        return self._clamp(name, kernel, self._reshape(f"{name}.shuffled", swapped, _output_shape(kernel)))

    def _reshape(self, name: str, source: int, shape: tuple[int, ...]) -> int:
        wanted = self._graph.constant(f"{name}.shape", np.array(shape, np.int32))
        result = self._graph.activation(name, shape)
        options = Options(kind=BuiltinOptions.RESHAPE)
        return self._graph.operator(BuiltinOperator.RESHAPE, [source, wanted], result, options)

    def _shortcut_pad(self, name: str, kernel: KernelSpec, source: int) -> int:
        if (kernel.kernel_h, kernel.kernel_w, kernel.padding) != (1, 1, 0):
            raise ContractError(f"{name}: shortcut_pad has a 1x1 window without padding")
        if kernel.stride > 1:
            _, height, width, _ = self._graph.shape(source)
            slice_of = [
                self._graph.constant(f"{name}.{part}", np.array(values, np.int32))
                for part, values in (
                    ("begin", [0, 0, 0, 0]),
                    ("end", [1, height, width, kernel.in_channels]),
                    ("strides", [1, kernel.stride, kernel.stride, 1]),
                )
            ]
            shape = (1, kernel.output_h, kernel.output_w, kernel.in_channels)
            result = self._graph.activation(f"{name}.slice", shape)
            options = Options(kind=BuiltinOptions.STRIDED_SLICE)
            source = self._graph.operator(BuiltinOperator.STRIDED_SLICE, [source, *slice_of], result, options)
        before = kernel.pad_channels_before
        after = kernel.out_channels - kernel.in_channels - before
        padded = self._pad(name, source, [[0, 0], [0, 0], [0, 0], [before, after]])
        return self._clamp(name, kernel, padded)

    def _clamp(self, name: str, kernel: KernelSpec, source: int) -> int:
        """A ReLU of its own, behind operators that cannot fuse one."""
        if kernel.activation not in (Activation.RELU, Activation.RELU6):
            return source
        code = BuiltinOperator.RELU if kernel.activation is Activation.RELU else BuiltinOperator.RELU6
        result = self._graph.activation(f"{name}.{kernel.activation}", self._graph.shape(source))
        return self._graph.operator(code, [source], result, _NO_OPTIONS)

    def _activate(self, name: str, kernel: KernelSpec, source: int) -> int:
        """An activation that no operator fuses, of operators that XNNPACK runs: it has no SILU and no hard sigmoid."""
        shape = self._graph.shape(source)

        def binary(code: BuiltinOperator, part: str, left: int, right: int, clamp: Activation = Activation.NONE) -> int:
            kind = BuiltinOptions.ADD if code is BuiltinOperator.ADD else BuiltinOptions.MUL
            result = self._graph.activation(f"{name}.{part}", shape)
            options = Options(kind=kind, fields=((0, Slot.INT8, _fused(clamp)),))
            return self._graph.operator(code, [left, right], result, options)

        def constant(part: str, value: float) -> int:
            return self._graph.constant(f"{name}.{part}", np.full((1,) * len(shape), value, np.float32))

        if kernel.activation is Activation.HARDSWISH:
            result = self._graph.activation(f"{name}.hardswish", shape)
            options = Options(kind=BuiltinOptions.HARD_SWISH)
            return self._graph.operator(BuiltinOperator.HARD_SWISH, [source], result, options)
        if kernel.activation is Activation.HARDSIGMOID:
            shifted = binary(BuiltinOperator.ADD, "shifted", source, constant("three", 3.0), Activation.RELU6)
            return binary(BuiltinOperator.MUL, "hardsigmoid", shifted, constant("sixth", 1.0 / 6.0))
        result = self._graph.activation(f"{name}.sigmoid", shape)
        self._graph.operator(BuiltinOperator.LOGISTIC, [source], result, _NO_OPTIONS)
        if kernel.activation is Activation.SIGMOID:
            return result
        return binary(BuiltinOperator.MUL, "silu", source, result)

    def _window(
        self, name: str, kernel: KernelSpec, source: int, *, fill: float = 0.0, allow_same: bool = True
    ) -> tuple[int, Padding]:
        """Symmetric padding as TFLite can say it: VALID, SAME where that pads alike, else an explicit PAD.

        XNNPACK fuses a zero PAD into the convolution behind it. Its sparse path takes no SAME of a stride.
        """
        pad = kernel.padding
        if pad == 0:
            return source, Padding.VALID
        same = _same_pads_alike(kernel.input_h, kernel.kernel_h, kernel.stride, pad) and _same_pads_alike(
            kernel.input_w, kernel.kernel_w, kernel.stride, pad
        )
        if same and allow_same and not (self._is_sparse and kernel.stride > 1):
            return source, Padding.SAME
        return self._pad(f"{name}.pad", source, [[0, 0], [pad, pad], [pad, pad], [0, 0]], fill), Padding.VALID

    def _pad(self, name: str, source: int, amounts: list[list[int]], fill: float = 0.0) -> int:
        shape = tuple(n + a + b for n, (a, b) in zip(self._graph.shape(source), amounts, strict=True))
        paddings = self._graph.constant(f"{name}.amounts", np.array(amounts, np.int32))
        result = self._graph.activation(name, shape)
        if fill == 0.0:
            options = Options(kind=BuiltinOptions.PAD)
            return self._graph.operator(BuiltinOperator.PAD, [source, paddings], result, options)
        value = self._graph.constant(f"{name}.value", np.array([fill], np.float32))
        options = Options(kind=BuiltinOptions.PADV2)
        return self._graph.operator(BuiltinOperator.PADV2, [source, paddings, value], result, options)


def _fused(activation: Activation) -> int:
    """What an operator says that it fuses; other activations follow it."""
    return _FUSED.get(activation, _FUSED[Activation.NONE])


def _output_shape(kernel: KernelSpec) -> tuple[int, int, int, int]:
    return (1, kernel.output_h, kernel.output_w, kernel.out_channels)


def _same_pads_alike(extent: int, kernel: int, stride: int, padding: int) -> bool:
    """Whether TFLite's SAME adds exactly `padding` on both sides of an axis."""
    outputs = -(-extent // stride)
    total = max((outputs - 1) * stride + kernel - extent, 0)
    return total == 2 * padding and outputs == (extent + 2 * padding - kernel) // stride + 1


def _required(
    name: str, weight: NDArray[np.float32] | None, bias: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    if weight is None or bias is None:
        raise ContractError(f"{name}: an operator with weights needs a weight and a bias tensor")
    return weight, bias
