"""ONNX's operators with weights: convolutions, matrix products and norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from search.networks.from_onnx.model import OnnxNode, refuse
from search.networks.from_onnx.writer import Weight, Writer
from search.networks.ops import NetworkOp


def convolution(w: Writer, node: OnnxNode) -> str:
    """Conv. Zeros that are put around an image in front of it are its padding."""
    weight = _required_weight(w, node, 1)
    rank = len(w.shape(node.inputs[0]))
    if rank != 4 or weight.values.ndim != 4:
        refuse(node, f"it convolves {rank - 2} axes, and only convolutions of images (two axes) are known")
    kernel = [int(n) for n in weight.values.shape[2:]]
    groups = node.attributes.get("group", 1)
    stride, dilation = pair(node, "strides"), pair(node, "dilations")
    before, after = window_padding(w, node, kernel, stride, dilation)
    x, before, after = _with_padding_in_front(w, w.operand(node), before, after)
    if before != after:
        amounts = [before[1], after[1], before[0], after[0]]
        x = w.emit(node, NetworkOp.PAD, [x], amounts=amounts, mode="constant", value=0.0)
        before = [0, 0]
    bias = w.weight(node, 2)
    # Some exporters write the bias as a sum behind the convolution.
    added, reader = (None, None) if bias is not None else _constant_sum(w, node, (weight.values.shape[0], 1, 1))
    made = w.emit_weighted(
        node,
        NetworkOp.CONV2D,
        [x],
        {"weight": weight, "bias": bias or added},
        in_channels=int(weight.values.shape[1]) * groups,
        out_channels=int(weight.values.shape[0]),
        kernel=kernel,
        stride=stride,
        padding=before,
        dilation=dilation,
        groups=groups,
    )
    if reader is not None:
        w.skip(reader, made)
    return made


def transposed_convolution(w: Writer, node: OnnxNode) -> str:
    """ConvTranspose."""
    weight = _required_weight(w, node, 1)
    if weight.values.ndim != 4:
        refuse(
            node, f"it convolves {weight.values.ndim - 2} axes, and only convolutions of images (two axes) are known"
        )
    if "output_shape" in node.attributes or node.attributes.get("auto_pad", "NOTSET") != "NOTSET":
        refuse(node, "its padding follows from the size of the output: export it with explicit pads")
    pads = node.attributes.get("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:]:
        refuse(node, f"its pads {pads} differ between the sides of the image")
    groups = node.attributes.get("group", 1)
    inputs, outputs, *kernel = (int(n) for n in weight.values.shape)
    return w.emit_weighted(
        node,
        NetworkOp.CONV_TRANSPOSE2D,
        [w.operand(node)],
        {"weight": weight, "bias": w.weight(node, 2)},
        in_channels=inputs,
        out_channels=outputs * groups,
        kernel=kernel,
        stride=pair(node, "strides"),
        padding=list(pads[:2]),
        dilation=pair(node, "dilations"),
        groups=groups,
        output_padding=pair(node, "output_padding", 0),
    )


def gemm(w: Writer, node: OnnxNode) -> str:
    """Gemm, by a matrix of the file."""
    a = node.attributes
    weight = _required_weight(w, node, 1)
    if a.get("transA", 0):
        refuse(node, "it transposes what it reads, which mixes the images of a batch")
    matrix = weight.values if a.get("transB", 0) else weight.values.T
    bias = w.weight(node, 2)
    if bias is not None:
        values = np.broadcast_to(bias.values, (1, len(matrix))) if bias.values.ndim < 2 else bias.values
        if values.shape != (1, len(matrix)):
            refuse(node, f"what it adds has the shape {bias.values.shape}, but must be one value for each output")
        bias = Weight(source=bias.source, values=values[0] * np.float32(a.get("beta", 1.0)))
    return _linear(w, node, Weight(source=weight.source, values=matrix * np.float32(a.get("alpha", 1.0))), bias)


def matrix_product(w: Writer, node: OnnxNode) -> str:
    """MatMul by a matrix of the file, with the sum behind it as its bias."""
    first = w.graph.constants.get(node.inputs[0])
    second = w.graph.constants.get(node.inputs[1])
    if first is not None or second is None or second.ndim != 2:
        refuse(node, "only the product of a tensor with one matrix of the file, behind it, is known")
    weight = _required_weight(w, node, 1)
    matrix = Weight(source=weight.source, values=weight.values.T)
    bias, reader = _constant_sum(w, node, (matrix.values.shape[0],))
    made = _linear(w, node, matrix, bias)
    if reader is not None:
        w.skip(reader, made)
    return made


def batch_norm(w: Writer, node: OnnxNode) -> str:
    """BatchNormalization. Its momentum is that of what was, torch's that of what comes."""
    a = node.attributes
    if a.get("training_mode", 0) or len([name for name in node.outputs if name]) > 1:
        refuse(node, "it uses the statistics of the batch: export the network in evaluation mode")
    roles = ("weight", "bias", "running_mean", "running_var")
    weights = {role: _required_weight(w, node, position) for position, role in enumerate(roles, start=1)}
    return w.emit_weighted(
        node,
        NetworkOp.BATCH_NORM,
        [w.operand(node)],
        weights,
        channels=int(weights["running_mean"].values.size),
        dimensions=2 if len(w.shape(node.inputs[0])) == 4 else 1,
        eps=_rounded(a.get("epsilon", 1e-5)),
        momentum=_momentum(a.get("momentum", 0.9)),
    )


def instance_norm(w: Writer, node: OnnxNode) -> str:
    """InstanceNormalization: a group norm with one channel in each group."""
    channels = w.shape(node.inputs[0])[1]
    return _group_norm(w, node, channels, channels)


def group_norm(w: Writer, node: OnnxNode) -> str:
    """GroupNormalization with one factor for each channel, as from opset 21 on."""
    return _group_norm(w, node, node.attributes["num_groups"], w.shape(node.inputs[0])[1])


def layer_norm(w: Writer, node: OnnxNode) -> str:
    """LayerNormalization."""
    shape = w.shape(node.inputs[0])
    axis = node.attributes.get("axis", -1) % len(shape)
    weights = {"weight": _required_weight(w, node, 1), "bias": w.weight(node, 2)}
    if axis == 0 or any(weight.values.shape != shape[axis:] for weight in weights.values() if weight is not None):
        refuse(node, f"its factors must have the shape {shape[axis:]} of the axes that it normalises")
    if weights["bias"] is None:
        weights["bias"] = Weight(source=f"{node.name}.zeros", values=np.zeros(shape[axis:], np.float32))
    epsilon = _rounded(node.attributes.get("epsilon", 1e-5))
    return w.emit_weighted(
        node, NetworkOp.LAYER_NORM, [w.operand(node)], weights, shape=list(shape[axis:]), eps=epsilon
    )


def per_channel(w: Writer, node: OnnxNode, position: int, values: np.ndarray[Any, Any]) -> Weight | None:
    """`values` as one for each channel of the image that `node` gives, or None where they are something else."""
    shape = w.shape(node.outputs[0])
    aligned = (1,) * (4 - values.ndim) + values.shape
    if len(shape) != 4 or values.ndim > 4 or aligned != (1, shape[1], 1, 1):
        return None
    return Weight(source=node.inputs[position], values=values.reshape(-1).astype(np.float32))


def scale_channels(w: Writer, node: OnnxNode, x: str, factors: Weight | None, offsets: Weight | None) -> str:
    """Factors, offsets or both for each channel: a depthwise convolution of 1x1, which can be trained and pruned."""
    given = factors or offsets
    assert given is not None
    channels = given.values.size
    is_offset = factors is None
    factors = factors or Weight(source=f"{given.source} behind ones", values=np.ones(channels, np.float32))
    reader = None
    if offsets is None:
        offsets, reader = _constant_sum(w, node, (channels, 1, 1))
    made = w.emit_weighted(
        node,
        NetworkOp.CONV2D,
        [x],
        {"weight": Weight(source=factors.source, values=factors.values.reshape(-1, 1, 1, 1)), "bias": offsets},
        # The file has no factors, so that there is nothing to train.
        frozen=("weight",) if is_offset else (),
        in_channels=channels,
        out_channels=channels,
        kernel=[1, 1],
        stride=[1, 1],
        padding=[0, 0],
        dilation=[1, 1],
        groups=channels,
    )
    if reader is not None:
        w.skip(reader, made)
    return made


def pair(node: OnnxNode, name: str, default: int = 1) -> list[int]:
    """An attribute of two axes."""
    value = node.attributes.get(name, [default, default])
    if len(value) != 2:
        refuse(node, f"{name} has {len(value)} values, and only images with two axes are known")
    return [int(n) for n in value]


def window_padding(
    w: Writer, node: OnnxNode, kernel: list[int], stride: list[int], dilation: list[int]
) -> tuple[list[int], list[int]]:
    """The padding before and behind each of the two axes."""
    kind = node.attributes.get("auto_pad", "NOTSET")
    if kind in ("NOTSET", ""):
        pads = [int(n) for n in node.attributes.get("pads", [0, 0, 0, 0])]
        return pads[:2], pads[2:]
    if kind == "VALID":
        return [0, 0], [0, 0]
    before, after = [], []
    for extent, k, s, d in zip(w.shape(node.inputs[0])[2:], kernel, stride, dilation, strict=True):
        total = max((-(-extent // s) - 1) * s + d * (k - 1) + 1 - extent, 0)
        more, less = total - total // 2, total // 2
        before.append(less if kind == "SAME_UPPER" else more)
        after.append(more if kind == "SAME_UPPER" else less)
    return before, after


def _linear(w: Writer, node: OnnxNode, matrix: Weight, bias: Weight | None) -> str:
    outputs, inputs = matrix.values.shape
    return w.emit_weighted(
        node,
        NetworkOp.LINEAR,
        [w.operand(node)],
        {"weight": matrix, "bias": bias},
        in_features=int(inputs),
        out_features=int(outputs),
    )


def _group_norm(w: Writer, node: OnnxNode, groups: int, channels: int) -> str:
    weights = {"weight": _required_weight(w, node, 1), "bias": _required_weight(w, node, 2)}
    for weight in weights.values():
        if weight.values.shape != (channels,):
            refuse(
                node,
                f"its factors have the shape {weight.values.shape}, but must be one for each of {channels} channels: "
                "export the network with opset_version=21 or later",
            )
    epsilon = _rounded(node.attributes.get("epsilon", 1e-5))
    return w.emit_weighted(
        node, NetworkOp.GROUP_NORM, [w.operand(node)], weights, groups=int(groups), channels=int(channels), eps=epsilon
    )


def _with_padding_in_front(w: Writer, x: str, before: list[int], after: list[int]) -> tuple[str, list[int], list[int]]:
    """What a pad with zeros in front of a convolution reads, and both paddings as one."""
    front = w.node(x)
    if front is None or front.op is not NetworkOp.PAD or len(front.attributes["amounts"]) != 4:
        return x, before, after
    amounts: Mapping[str, Any] = front.attributes
    left, right, top, bottom = amounts["amounts"]
    if (amounts["mode"], amounts["value"]) != ("constant", 0.0) or min(left, right, top, bottom) < 0:
        return x, before, after
    return front.inputs[0], [before[0] + top, before[1] + left], [after[0] + bottom, after[1] + right]


def _constant_sum(w: Writer, node: OnnxNode, shape: tuple[int, ...]) -> tuple[Weight | None, OnnxNode | None]:
    """What is added to the result of `node`, where that is a constant of `shape` behind ones, and the sum's node."""
    reader = w.only_reader(node.outputs[0])
    if reader is None or reader.op != "Add":
        return None, None
    position = 1 if reader.inputs[0] == node.outputs[0] else 0
    values = w.graph.constants.get(reader.inputs[position])
    rank = len(w.shape(node.outputs[0]))
    if values is None or values.dtype != np.float32 or not len(shape) <= values.ndim <= rank:
        return None, None
    if values.shape[values.ndim - len(shape) :] != shape or values.size != shape[0]:
        return None, None
    return Weight(source=reader.inputs[position], values=values.reshape(-1)), reader


def _required_weight(w: Writer, node: OnnxNode, position: int) -> Weight:
    found = w.weight(node, position)
    if found is None:
        refuse(node, f"its input {position} is missing")
    return found


def _rounded(value: float) -> float:
    """A float32 of the file as the decimal number that it was written as."""
    return float(f"{value:.7g}")


def _momentum(value: float) -> float:
    return _rounded(min(1.0, max(0.0, 1.0 - _rounded(value))))
