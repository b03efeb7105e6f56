"""A network plan as a pair of ncnn files, `.param` (text) and `.bin` (weights): another dense baseline.

ncnn's text lists layers with the blobs that they read and write; numbered keys are the layer's parameters (ncnn wiki,
"param and model file structure" and "operation param weight table"). Weights are float32 in torch's order. Pruned
weights are stored with their zeros: ncnn has no sparse convolution.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts.codec import ContractError
from device_agent.contracts.kernel import Activation, KernelSpec, Op
from device_agent.contracts.network import NETWORK_INPUT, NETWORK_RESIDUAL, NetworkPlan, PlanOp
from device_agent.formats.packed import check_tensors

FloatArray = NDArray[np.float32]

INPUT_BLOB = "in0"
RESIDUAL_BLOB = "in1"

_MAGIC = 7767517
#: In front of weights that are plain float32.
_FLOAT32_TAG = b"\0\0\0\0"
#: `activation_type` and `activation_params` of layers that fuse one.
_FUSED = {Activation.NONE: (), Activation.RELU: ("9=1",), Activation.RELU6: ("9=3", "-23310=2,0.0,6.0")}
#: The layers of activations that are never fused, with their parameters: slope and offset of the hard ones.
_OWN_LAYERS = {
    Activation.SIGMOID: ("Sigmoid",),
    Activation.SILU: ("Swish",),
    Activation.HARDSIGMOID: ("HardSigmoid", f"0={1 / 6:.9f}", "1=0.5"),
    Activation.HARDSWISH: ("HardSwish", f"0={1 / 6:.9f}", "1=0.5"),
}
#: Layers that read two tensors. A product repeats (channels, 1, 1) over height and width; axis 0 is that of channels.
_JOINS = {Op.ADD: ("BinaryOp", "0=0"), Op.MUL: ("BinaryOp", "0=2"), Op.CONCAT: ("Concat", "0=0")}


@dataclass(frozen=True, slots=True, kw_only=True)
class NcnnModel:
    """The content of the two files, and the blob with the output.

    The inputs are `INPUT_BLOB` and, of a plan with a second input, `RESIDUAL_BLOB`, both (channels, h, w); so is the
    output, but (channels,) behind a global pooling or a fully connected layer.
    """

    param: str
    bin: bytes
    output_blob: str


def plan_to_ncnn(plan: NetworkPlan, tensors: Mapping[str, NDArray[np.floating[Any]]]) -> NcnnModel:
    """Write `plan` with `tensors` (`<op>.weight` and `<op>.bias` of each operator that has weights) for ncnn.

    Raises `ContractError` where a tensor is missing, unknown, not finite or of another shape than the plan says, or an
    operator has no ncnn form.
    """
    checked = check_tensors(plan, tensors)
    writer = _Writer(_count_readers(plan))
    writer.input(NETWORK_INPUT, INPUT_BLOB, plan.input_shape)
    if plan.residual_shape is not None:
        writer.input(NETWORK_RESIDUAL, RESIDUAL_BLOB, plan.residual_shape)
    for op in plan.ops:
        own = [checked[f"{op.name}.{part}"] for part in ("weight", "bias")] if op.kernel.op.has_weights else []
        writer.op(op, own)
    return writer.finish(plan.output_name)


def _count_readers(plan: NetworkPlan) -> dict[str, int]:
    readers: dict[str, int] = {}
    for op in plan.ops:
        for source in (*op.inputs, *((op.residual,) if op.residual is not None else ())):
            readers[source] = readers.get(source, 0) + 1
    return readers


class _Writer:
    """Collects layers. A blob of ncnn has one reader, so tensors with several go through a Split."""

    def __init__(self, readers: Mapping[str, int]) -> None:
        self._readers = readers
        self._lines: list[str] = []
        self._num_blobs = 0
        self._weights: list[bytes] = []
        #: Tensor -> the blobs that its readers have not taken yet.
        self._free: dict[str, list[str]] = {}
        #: Tensors that ncnn holds as (channels,) instead of (channels, 1, 1), and their channels.
        self._flat: dict[str, int] = {}

    def finish(self, output: str) -> NcnnModel:
        (blob,) = self._free.pop(output)
        header = f"{_MAGIC}\n{len(self._lines)} {self._num_blobs}\n"
        return NcnnModel(param=header + "\n".join(self._lines) + "\n", bin=b"".join(self._weights), output_blob=blob)

    def input(self, tensor: str, blob: str, shape: tuple[int, int, int]) -> None:
        channels, height, width = shape
        self._layer("Input", blob, [], [blob], f"0={width}", f"1={height}", f"2={channels}")
        self._provide(tensor, blob)

    def op(self, op: PlanOp, weights: Sequence[FloatArray]) -> None:
        """Append the layers of one operator."""
        kernel = op.kernel
        if kernel.op is Op.FULLY_CONNECTED:
            blob = self._fully_connected(op, weights)
        elif kernel.op in (Op.CONV2D, Op.DEPTHWISE_CONV2D):
            blob = self._convolution(op, weights)
        elif kernel.op in _JOINS:
            both = [self._take(source, f"{op.name}.in{i}") for i, source in enumerate(op.inputs)]
            kind, parameter = _JOINS[kernel.op]
            blob = self._layer(kind, op.name, both, None, parameter)
            blob = self._clamp(op, blob)
        elif kernel.op in (Op.MAX_POOL, Op.AVG_POOL):
            blob = self._clamp(op, self._pool(op))
        elif kernel.op is Op.GLOBAL_AVG_POOL:
            source = self._take(op.inputs[0], op.name)
            blob = self._clamp(op, self._layer("Pooling", op.name, [source], None, "0=1", "4=1"))
        elif kernel.op is Op.SHORTCUT_PAD:
            blob = self._clamp(op, self._shortcut_pad(op))
        elif kernel.op in (Op.FIRST_CHANNELS, Op.LAST_CHANNELS):
            first = 0 if kernel.op is Op.FIRST_CHANNELS else kernel.in_channels - kernel.out_channels
            extent = (f"3={kernel.input_w}", f"4={kernel.input_h}", f"5={kernel.out_channels}")
            source = self._take(op.inputs[0], op.name)
            blob = self._clamp(op, self._layer("Crop", op.name, [source], None, f"2={first}", *extent))
        elif kernel.op is Op.CHANNEL_SHUFFLE:
            source = self._take(op.inputs[0], op.name)
            blob = self._clamp(op, self._layer("ShuffleChannel", op.name, [source], None, f"0={kernel.groups}"))
        else:
            raise ContractError(f"{op.name}: {kernel.op} has no ncnn form")
        if kernel.activation in _OWN_LAYERS:
            kind, *parameters = _OWN_LAYERS[kernel.activation]
            blob = self._layer(kind, f"{op.name}.{kernel.activation}", [blob], None, *parameters)
        if kernel.op in (Op.FULLY_CONNECTED, Op.GLOBAL_AVG_POOL):
            self._flat[op.name] = kernel.out_channels
        self._provide(op.name, blob)

    def _convolution(self, op: PlanOp, weights: Sequence[FloatArray]) -> str:
        kernel = op.kernel
        groups = kernel.in_channels if kernel.op is Op.DEPTHWISE_CONV2D else kernel.groups
        name = op.name if op.residual is None else f"{op.name}.conv"
        blob = self._layer(
            "ConvolutionDepthWise" if groups > 1 else "Convolution",
            name,
            [self._take(op.inputs[0], name)],
            None,
            f"0={kernel.out_channels}",
            *_window(kernel, {"kernel": (1, 11), "stride": (3, 13), "padding": (4, 14)}),
            "5=1",
            f"6={kernel.num_weights}",
            *((f"7={groups}",) if groups > 1 else ()),
            *(_FUSED.get(kernel.activation, ()) if op.residual is None else ()),
        )
        self._store(weights)
        if op.residual is None:
            return blob
        second = self._take(op.residual, f"{op.name}.residual")
        return self._clamp(op, self._layer("BinaryOp", f"{op.name}.add", [blob, second], None, "0=0"))

    def _fully_connected(self, op: PlanOp, weights: Sequence[FloatArray]) -> str:
        kernel = op.kernel
        if (kernel.input_h, kernel.input_w) != (1, 1):
            raise ContractError(
                f"{op.name}: fully_connected reads a 1x1 input, not {kernel.input_h}x{kernel.input_w}: lower it as a "
                f"conv2d with a {kernel.input_h}x{kernel.input_w} kernel"
            )
        source = self._take(op.inputs[0], op.name, flat_is_fine=True)
        parameters = (f"0={kernel.out_channels}", "1=1", f"2={kernel.num_weights}", *_FUSED.get(kernel.activation, ()))
        blob = self._layer("InnerProduct", op.name, [source], None, *parameters)
        self._store(weights)
        return blob

    def _pool(self, op: PlanOp) -> str:
        kernel = op.kernel
        return self._layer(
            "Pooling",
            op.name,
            [self._take(op.inputs[0], op.name)],
            None,
            f"0={int(kernel.op is Op.AVG_POOL)}",
            *_window(kernel, {"kernel": (1, 11), "stride": (2, 12), "padding": (3, 13)}),
            # Windows that do not fit any more are dropped, and padded zeros count in an average, as in torch.
            "5=1",
            "6=1",
        )

    def _shortcut_pad(self, op: PlanOp) -> str:
        kernel = op.kernel
        blob = self._take(op.inputs[0], op.name)
        if kernel.stride > 1:
            # The maximum over one element: a subsampling.
            stride = (f"2={kernel.stride}", f"12={kernel.stride}")
            blob = self._layer("Pooling", f"{op.name}.stride", [blob], None, "0=0", "1=1", "11=1", *stride, "5=1")
        before = kernel.pad_channels_before
        after = kernel.out_channels - kernel.in_channels - before
        return self._layer("Padding", op.name, [blob], None, f"7={before}", f"8={after}")

    def _clamp(self, op: PlanOp, blob: str) -> str:
        """A ReLU of its own, behind layers that cannot fuse one."""
        if op.kernel.activation is Activation.RELU:
            return self._layer("ReLU", f"{op.name}.relu", [blob], None)
        if op.kernel.activation is Activation.RELU6:
            return self._layer("Clip", f"{op.name}.relu6", [blob], None, "0=0.0", "1=6.0")
        return blob

    def _take(self, tensor: str, reader: str, *, flat_is_fine: bool = False) -> str:
        """A blob with `tensor` for one reader, as (channels, 1, 1) where ncnn left (channels,) and that matters."""
        blob = self._free[tensor].pop()
        if tensor not in self._flat or flat_is_fine:
            return blob
        return self._layer("Reshape", f"{reader}.reshape", [blob], None, "0=1", "1=1", f"2={self._flat[tensor]}")

    def _provide(self, tensor: str, blob: str) -> None:
        readers = self._readers.get(tensor, 1)
        if readers > 1:
            copies = [f"{blob}_{i}" for i in range(readers)]
            self._layer("Split", f"{blob}.split", [blob], copies)
            self._free[tensor] = copies
        else:
            self._free[tensor] = [blob]

    def _layer(self, kind: str, name: str, inputs: list[str], outputs: list[str] | None, *parameters: str) -> str:
        """Append a layer; returns its first output, a new blob where `outputs` names none."""
        written = outputs if outputs is not None else [f"b{self._num_blobs}"]
        self._num_blobs += len(written)
        # The number makes the name unique, after what ncnn's parser would stumble over is replaced.
        label = f"{len(self._lines)}_{re.sub(r'[^A-Za-z0-9_.-]', '_', name)[:80]}"
        words = (kind, label, str(len(inputs)), str(len(written)), *inputs, *written, *parameters)
        self._lines.append(" ".join(words))
        return written[0]

    def _store(self, weights: Sequence[FloatArray]) -> None:
        weight, bias = weights
        self._weights += [_FLOAT32_TAG, weight.astype("<f4").tobytes(), bias.astype("<f4").tobytes()]


def _window(kernel: KernelSpec, keys: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """Kernel, stride and symmetric padding under the keys (x, y) that a layer has for them."""
    values = {
        "kernel": (kernel.kernel_w, kernel.kernel_h),
        "stride": (kernel.stride, kernel.stride),
        "padding": (kernel.padding, kernel.padding),
    }
    return tuple(f"{key}={value}" for name in keys for key, value in zip(keys[name], values[name], strict=True))
