"""What each operator of ONNX becomes in a `.kerf` document. Those with weights are in `layers`.

https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from search.networks.from_onnx import layers
from search.networks.from_onnx.model import OnnxNode, refuse
from search.networks.from_onnx.writer import Weight, Writer
from search.networks.ops import NetworkOp

#: The document's node for each output of a node, or for its only one.
Rule = Callable[[Writer, OnnxNode], str | list[str]]

_NEWER = "export the network with a later opset_version, which has one operator for it"
_REMEDIES = {
    "Erf": "a GELU is known as one operator: export the network with opset_version=20 or later",
    **dict.fromkeys(
        ("Pow", "Sqrt", "ReduceL2", "ReduceSumSquare", "Exp", "Log"),
        f"norms written as arithmetic are not known: {_NEWER}",
    ),
    **dict.fromkeys(
        ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"),
        "only float32 is known: export the network before it is quantised",
    ),
    **dict.fromkeys(
        ("LSTM", "GRU", "RNN", "Attention", "Einsum"), "recurrent networks and attention are not known, only CNNs"
    ),
}


def convert_node(w: Writer, node: OnnxNode) -> None:
    """Add what `node` does to the document. Raises `ContractError` where the format has no operator for it."""
    if all(name in w.values or not name for name in node.outputs):
        return  # A part of what was written before.
    rule = RULES.get(node.op)
    if rule is None:
        refuse(node, _REMEDIES.get(node.op, "the .kerf format has no operator for it; write it with those that it has"))
    made = rule(w, node)
    for output, name in zip(node.outputs, [made] if isinstance(made, str) else made, strict=False):
        w.values[output] = name
        w.computed_by[name] = output


def _simple(op: NetworkOp) -> Rule:
    return lambda w, node: w.emit(node, op, [w.operand(node)])


def _same(w: Writer, node: OnnxNode) -> str:
    return w.operand(node)


def _cast(w: Writer, node: OnnxNode) -> str:
    if node.attributes.get("to") != 1:
        refuse(node, "it changes the type, and only float32 is known: export the network in float32")
    return w.operand(node)


def _clip(w: Writer, node: OnnxNode) -> str:
    return _clamp(w, node, w.operand(node), w.number(node, 1), w.number(node, 2))


def _clamp(w: Writer, node: OnnxNode, x: str, least: float | None, most: float | None) -> str:
    if (least, most) == (0.0, 6.0):
        return w.emit(node, NetworkOp.RELU6, [x])
    if (least, most) == (0.0, None):
        return w.emit(node, NetworkOp.RELU, [x])
    if (least, most) == (None, None):
        return x
    return w.emit(node, NetworkOp.CLAMP, [x], min=least, max=most)


def _extreme(w: Writer, node: OnnxNode, *, is_max: bool) -> str:
    """Max and Min with a number."""
    position = next((i for i, name in enumerate(node.inputs) if name in w.graph.constants), None)
    if len(node.inputs) != 2 or position is None:
        refuse(node, "only the larger or smaller of a tensor and a number is known")
    bound = w.number(node, position)
    x = w.operand(node, 1 - position)
    return _clamp(w, node, x, bound, None) if is_max else _clamp(w, node, x, None, bound)


def _leaky_relu(w: Writer, node: OnnxNode) -> str:
    slope = float(f"{node.attributes.get('alpha', 0.01):.7g}")
    return w.emit(node, NetworkOp.LEAKY_RELU, [w.operand(node)], slope=slope)


def _prelu(w: Writer, node: OnnxNode) -> str:
    slope = w.constant(node, 1)
    if slope is None or slope.size != 1:
        refuse(node, "a slope for each channel has no operator, only one for all: use LeakyReLU")
    return w.emit(node, NetworkOp.LEAKY_RELU, [w.operand(node)], slope=float(slope.reshape(())))


def _hard_sigmoid(w: Writer, node: OnnxNode) -> str:
    scale, offset = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    x = w.operand(node)
    if abs(scale - 1 / 6) < 1e-6 and offset == 0.5:
        return w.emit(node, NetworkOp.HARDSIGMOID, [x])
    x = w.emit(node, NetworkOp.AFFINE, [x], scale=scale, offset=offset)
    return w.emit(node, NetworkOp.CLAMP, [x], min=0.0, max=1.0)


def _gelu(w: Writer, node: OnnxNode) -> str:
    return w.emit(node, NetworkOp.GELU, [w.operand(node)], approximate=node.attributes.get("approximate", "none"))


def _swish(w: Writer, node: OnnxNode) -> str:
    if node.attributes.get("alpha", 1.0) != 1.0:
        refuse(node, "a factor inside of its sigmoid has no operator")
    return w.emit(node, NetworkOp.SILU, [w.operand(node)])


def _softmax(w: Writer, node: OnnxNode) -> str:
    return w.emit(node, NetworkOp.SOFTMAX, [w.operand(node)], axis=_axis(w, node, node.attributes.get("axis", -1)))


def _dropout(w: Writer, node: OnnxNode) -> str:
    training = w.constant(node, 2)
    if training is not None and bool(training):
        refuse(node, "it drops values in evaluation mode: export the network with model.eval()")
    ratio = w.number(node, 1)
    probability = 0.5 if ratio is None else float(f"{ratio:.7g}")
    return w.emit(node, NetworkOp.DROPOUT, [w.operand(node)], probability=probability, per_channel=False)


def _add(w: Writer, node: OnnxNode) -> str:
    return _sum_of(w, node, sign=1.0)


def _sub(w: Writer, node: OnnxNode) -> str:
    return _sum_of(w, node, sign=-1.0)


def _sum_of(w: Writer, node: OnnxNode, sign: float) -> str:
    """x + y and x - y, where one may be a number or one for each channel."""
    first, second = (w.graph.constants.get(name) for name in node.inputs)
    if second is not None and second.size == 1 and _keeps_rank(w, node, 1):
        offset = sign * float(second.reshape(()))
        return w.emit(node, NetworkOp.AFFINE, [w.operand(node, 0)], scale=1.0, offset=offset)
    if first is not None and first.size == 1 and _keeps_rank(w, node, 0):
        x, offset = w.operand(node, 1), float(first.reshape(()))
        return w.emit(node, NetworkOp.AFFINE, [x], scale=sign, offset=offset)
    if second is not None and (offsets := layers.per_channel(w, node, 1, second)) is not None:
        if sign < 0:
            offsets = Weight(source=f"-{offsets.source}", values=-offsets.values)
        return layers.scale_channels(w, node, w.operand(node, 0), None, offsets)
    if sign > 0 and first is not None and (offsets := layers.per_channel(w, node, 0, first)) is not None:
        return layers.scale_channels(w, node, w.operand(node, 1), None, offsets)
    _check_batch(w, node)
    x, y = w.operand(node, 0), w.operand(node, 1)
    if sign < 0:
        y = w.emit(node, NetworkOp.AFFINE, [y], scale=-1.0, offset=0.0)
    return w.emit(node, NetworkOp.ADD, [x, y])


def _sum(w: Writer, node: OnnxNode) -> str:
    _check_batch(w, node)
    total = w.operand(node)
    for position in range(1, len(node.inputs)):
        total = w.emit(node, NetworkOp.ADD, [total, w.operand(node, position)])
    return total


def _mul(w: Writer, node: OnnxNode) -> str:
    for position in (1, 0):
        values = w.graph.constants.get(node.inputs[position])
        if values is None:
            continue
        x = w.operand(node, 1 - position)
        if values.size == 1 and _keeps_rank(w, node, position):
            return w.emit(node, NetworkOp.AFFINE, [x], scale=float(values.reshape(())), offset=0.0)
        factors = layers.per_channel(w, node, position, values)
        if factors is not None:
            return layers.scale_channels(w, node, x, factors, None)
    _check_batch(w, node)
    return w.emit(node, NetworkOp.MUL, [_unexpanded(w, node, 0), _unexpanded(w, node, 1)])


def _unexpanded(w: Writer, node: OnnxNode, position: int) -> str:
    """A factor before it was repeated to the size of the product, which does so by itself whatever pruning leaves."""
    x = w.operand(node, position)
    made, other = w.node(x), w.shape(node.inputs[1 - position])
    is_repeated = made is not None and made.op is NetworkOp.EXPAND and other == w.shape(node.outputs[0])
    return made.inputs[0] if made is not None and is_repeated else x


def _div(w: Writer, node: OnnxNode) -> str:
    divisor = w.graph.constants.get(node.inputs[1])
    if divisor is None or not np.all(divisor):
        refuse(node, "only a division by constants other than zero has an operator")
    x = w.operand(node)
    if divisor.size == 1 and _keeps_rank(w, node, 1):
        return w.emit(node, NetworkOp.AFFINE, [x], scale=1.0 / float(divisor.reshape(())), offset=0.0)
    factors = layers.per_channel(w, node, 1, divisor)
    if factors is None:
        refuse(node, f"it divides by a tensor of {divisor.shape}: only one number, or one for each channel, is known")
    inverse = Weight(
        source=f"1 / {factors.source}", values=(1.0 / factors.values.astype(np.float64)).astype(np.float32)
    )
    return layers.scale_channels(w, node, x, inverse, None)


def _negated(w: Writer, node: OnnxNode) -> str:
    return w.emit(node, NetworkOp.AFFINE, [w.operand(node)], scale=-1.0, offset=0.0)


def _concat(w: Writer, node: OnnxNode) -> str:
    if any(name in w.graph.constants for name in node.inputs):
        refuse(node, "it joins the image with constants; write them with operators that the format has")
    axis = _axis(w, node, node.attributes["axis"])
    parts = [w.operand(node, position) for position in range(len(node.inputs))]
    return parts[0] if len(parts) == 1 else w.emit(node, NetworkOp.CONCAT, parts, axis=axis)


def _slice(w: Writer, node: OnnxNode) -> str:
    shape = w.shape(node.inputs[0])
    starts, ends = w.integers(node, 1), w.integers(node, 2)
    if starts is None or ends is None:
        refuse(node, "its bounds are missing")
    axes = w.integers(node, 3) or list(range(len(starts)))
    steps = w.integers(node, 4) or [1] * len(starts)
    x = w.operand(node)
    for axis, start, end, step in sorted(
        (a % len(shape), *rest) for a, *rest in zip(axes, starts, ends, steps, strict=True)
    ):
        if step < 1:
            refuse(node, f"a step of {step} has no operator: it turns the order around")
        first, last, _ = slice(start, end, step).indices(shape[axis])
        if (first, last, step) == (0, shape[axis], 1):
            continue
        if axis == 0:
            refuse(node, "it works along the batch")
        stop = None if last == shape[axis] else last
        x = w.emit(node, NetworkOp.SLICE, [x], axis=axis, start=first, stop=stop, step=step)
    return x


def _split(w: Writer, node: OnnxNode) -> list[str]:
    x = w.operand(node)
    axis = _axis(w, node, node.attributes.get("axis", 0))
    sizes = w.integers(node, 1)
    if sizes is None:
        # The last part is smaller where the axis does not divide.
        extent, count = w.shape(node.inputs[0])[axis], len(node.outputs)
        each = -(-extent // count)
        sizes = [each] * (count - 1) + [extent - each * (count - 1)]
    parts, start = [], 0
    for size in sizes:
        parts.append(w.emit(node, NetworkOp.SLICE, [x], axis=axis, start=start, stop=start + size, step=1))
        start += size
    return parts


def _pad(w: Writer, node: OnnxNode) -> str:
    rank = len(w.shape(node.inputs[0]))
    pads = w.integers(node, 1) or []
    axes = w.integers(node, 3) or list(range(rank))
    mode = node.attributes.get("mode", "constant")
    if mode not in ("constant", "reflect", "edge"):
        refuse(node, f"the padding mode {mode!r} has no operator")
    if len(pads) != 2 * len(axes):
        refuse(node, f"{len(pads)} pads do not fit {len(axes)} axes")
    both = {axis % rank: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    used = [axis for axis, amounts in both.items() if any(amounts)]
    if not used:
        return w.operand(node)
    if 0 in used:
        refuse(node, "it pads the batch")
    amounts = [n for axis in range(rank - 1, min(used) - 1, -1) for n in both.get(axis, (0, 0))]
    if mode != "constant" and len(amounts) < 4:
        # torch pads images on all sides in these modes.
        amounts += [0] * (4 - len(amounts))
    value = w.number(node, 2) or 0.0
    torch_mode = "replicate" if mode == "edge" else mode
    return w.emit(node, NetworkOp.PAD, [w.operand(node)], amounts=amounts, mode=torch_mode, value=value)


def _max_pool(w: Writer, node: OnnxNode) -> str:
    if len([name for name in node.outputs if name]) > 1:
        refuse(node, "where its largest values are has no operator")
    window = _window(w, node)
    before, after = _padding(w, node)
    x = w.operand(node)
    if before != after:
        amounts = [before[1], after[1], before[0], after[0]]
        least = float(np.finfo(np.float32).min)
        x = w.emit(node, NetworkOp.PAD, [x], amounts=amounts, mode="constant", value=least)
        before = [0, 0]
    return w.emit(node, NetworkOp.MAX_POOL, [x], **window, padding=before, dilation=layers.pair(node, "dilations"))


def _avg_pool(w: Writer, node: OnnxNode) -> str:
    if layers.pair(node, "dilations") != [1, 1]:
        refuse(node, "a dilated mean has no operator")
    window = _window(w, node)
    before, after = _padding(w, node)
    counted = bool(node.attributes.get("count_include_pad", 0))
    x = w.operand(node)
    if before != after:
        if not counted:
            refuse(node, f"its padding {before}, {after} differs between the sides of the image: pad it alike")
        amounts = [before[1], after[1], before[0], after[0]]
        x = w.emit(node, NetworkOp.PAD, [x], amounts=amounts, mode="constant", value=0.0)
        before = [0, 0]
    return w.emit(node, NetworkOp.AVG_POOL, [x], **window, padding=before, count_include_pad=counted)


def _window(w: Writer, node: OnnxNode) -> dict[str, object]:
    """Where a pool looks, without its padding."""
    if len(w.shape(node.inputs[0])) != 4:
        refuse(node, "only pools over images (two axes) are known")
    ceil_mode = bool(node.attributes.get("ceil_mode", 0))
    return {
        "kernel": layers.pair(node, "kernel_shape"),
        "stride": layers.pair(node, "strides"),
        "ceil_mode": ceil_mode,
    }


def _padding(w: Writer, node: OnnxNode) -> tuple[list[int], list[int]]:
    """A pool's padding before and behind each axis."""
    kernel, stride = layers.pair(node, "kernel_shape"), layers.pair(node, "strides")
    return layers.window_padding(w, node, kernel, stride, layers.pair(node, "dilations"))


def _global_mean(w: Writer, node: OnnxNode) -> str:
    if len(w.shape(node.inputs[0])) != 4:
        return w.emit(node, NetworkOp.MEAN, [w.operand(node)], axes=_behind_channels(w, node), keep=True)
    return w.emit(node, NetworkOp.ADAPTIVE_AVG_POOL, [w.operand(node)], size=[1, 1])


def _global_max(w: Writer, node: OnnxNode) -> str:
    shape = w.shape(node.inputs[0])
    if len(shape) != 4:
        refuse(node, "only pools over images (two axes) are known")
    window = {"kernel": list(shape[2:]), "stride": list(shape[2:]), "padding": [0, 0], "dilation": [1, 1]}
    return w.emit(node, NetworkOp.MAX_POOL, [w.operand(node)], **window, ceil_mode=False)


def _behind_channels(w: Writer, node: OnnxNode) -> list[int]:
    return list(range(2, len(w.shape(node.inputs[0]))))


def _mean(w: Writer, node: OnnxNode) -> str:
    rank = len(w.shape(node.inputs[0]))
    axes = w.integers(node, 1) if "axes" not in node.attributes else list(node.attributes["axes"])
    if not axes:
        if node.attributes.get("noop_with_empty_axes", 0):
            return w.operand(node)
        refuse(node, "it takes the mean over the batch: name the axes")
    found = sorted(axis % rank for axis in axes)
    if found[0] == 0:
        refuse(node, "it takes the mean over the batch")
    return w.emit(node, NetworkOp.MEAN, [w.operand(node)], axes=found, keep=bool(node.attributes.get("keepdims", 1)))


def _reshape(w: Writer, node: OnnxNode) -> str:
    """Whatever only changes the shape, by the shape that it gives."""
    before, after = w.shape(node.inputs[0]), w.shape(node.outputs[0])
    x = w.operand(node)
    if before == after:
        return x
    if not after or after[0] != before[0] or prod(after[1:]) != prod(before[1:]):
        refuse(
            node,
            f"it reshapes {before} to {after}, which mixes the images of a batch or drops their axis: keep the first "
            "axis, for example flatten(1) or view(x.size(0), -1)",
        )
    if len(after) == 2:
        return w.emit(node, NetworkOp.FLATTEN, [x], start=1)
    return w.emit(node, NetworkOp.RESHAPE, [x], shape=list(after[1:]))


def _transpose(w: Writer, node: OnnxNode) -> str:
    rank = len(w.shape(node.inputs[0]))
    axes = list(node.attributes.get("perm", range(rank - 1, -1, -1)))
    if axes == list(range(rank)):
        return w.operand(node)
    if axes[0] != 0:
        refuse(node, "it moves the batch away from the first axis")
    return w.emit(node, NetworkOp.PERMUTE, [w.operand(node)], axes=axes)


def _expand(w: Writer, node: OnnxNode) -> str:
    before, after = w.shape(node.inputs[0]), w.shape(node.outputs[0])
    if before == after:
        return w.operand(node)
    if len(before) != len(after) or before[0] != after[0]:
        refuse(node, f"it expands {before} to {after}: the batch and the number of axes must stay")
    return w.emit(node, NetworkOp.EXPAND, [w.operand(node)], shape=list(after[1:]))


def _depth_to_space(w: Writer, node: OnnxNode) -> str:
    factor = node.attributes["blocksize"]
    x = w.operand(node)
    if node.attributes.get("mode", "DCR") == "CRD":
        return w.emit(node, NetworkOp.PIXEL_SHUFFLE, [x], factor=factor)
    _, channels, height, width = w.shape(node.outputs[0])
    small = [height // factor, width // factor]
    x = w.emit(node, NetworkOp.RESHAPE, [x], shape=[factor, factor, channels, *small])
    x = w.emit(node, NetworkOp.PERMUTE, [x], axes=[0, 3, 4, 1, 5, 2])
    return w.emit(node, NetworkOp.RESHAPE, [x], shape=[channels, height, width])


def _space_to_depth(w: Writer, node: OnnxNode) -> str:
    factor = node.attributes["blocksize"]
    _, channels, height, width = w.shape(node.inputs[0])
    small = [height // factor, width // factor]
    x = w.emit(node, NetworkOp.RESHAPE, [w.operand(node)], shape=[channels, small[0], factor, small[1], factor])
    x = w.emit(node, NetworkOp.PERMUTE, [x], axes=[0, 3, 5, 1, 2, 4])
    return w.emit(node, NetworkOp.RESHAPE, [x], shape=[channels * factor**2, *small])


def _resize(w: Writer, node: OnnxNode) -> str:
    a = node.attributes
    before, after = w.shape(node.inputs[0]), w.shape(node.outputs[0])
    mode, where = a.get("mode", "nearest"), a.get("coordinate_transformation_mode", "half_pixel")
    if len(before) != 4 or before[:2] != after[:2]:
        refuse(node, f"it resizes {before} to {after}: only height and width may change")
    if a.get("antialias", 0) or a.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        refuse(node, "antialias and a kept aspect ratio have no operator")
    if mode == "nearest":
        whole = after[2] % before[2] == 0 and after[3] % before[3] == 0
        # In whole steps all ways of rounding choose the same pixel.
        is_known = (where, a.get("nearest_mode", "round_prefer_floor")) == ("asymmetric", "floor") or (
            whole and where in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
        )
    else:
        is_known = mode == "linear" and where in ("half_pixel", "pytorch_half_pixel", "align_corners")
    if not is_known:
        refuse(
            node,
            f"mode {mode!r} with {where!r} has no operator: nearest with 'asymmetric' and 'floor', and linear with "
            "'half_pixel' or 'align_corners' have one",
        )
    scales = w.constant(node, 2)
    by_size = scales is None or scales.size == 0
    scale = None if by_size or scales is None else [float(n) for n in scales.reshape(-1)[-2:]]
    return w.emit(
        node,
        NetworkOp.UPSAMPLE,
        [w.operand(node)],
        size=list(after[2:]) if by_size else None,
        scale=scale,
        mode="nearest" if mode == "nearest" else "bilinear",
        align_corners=where == "align_corners",
    )


def _axis(w: Writer, node: OnnxNode, axis: int) -> int:
    found = int(axis) % len(w.shape(node.inputs[0]))
    if found == 0:
        refuse(node, "it works along the batch")
    return found


def _keeps_rank(w: Writer, node: OnnxNode, position: int) -> bool:
    """Whether a number has no more axes than what it is joined with."""
    return len(w.shape(node.inputs[position])) <= len(w.shape(node.inputs[1 - position]))


def _check_batch(w: Writer, node: OnnxNode) -> None:
    """Operands may have fewer axes than the result, but no image may meet another."""
    after = w.shape(node.outputs[0])
    for name in node.inputs:
        shape = w.shape(name)
        is_constant = name in w.graph.constants
        if len(shape) > len(after) or (len(shape) == len(after) and is_constant and shape[0] != 1):
            refuse(node, f"{name!r} of shape {shape} has values for single images of a batch")
        if not is_constant and (len(shape) != len(after) or shape[0] != after[0]):
            refuse(node, f"{name!r} of shape {shape} does not have the batch in front, as its result {after}")


RULES: dict[str, Rule] = {
    "Conv": layers.convolution,
    "ConvTranspose": layers.transposed_convolution,
    "Gemm": layers.gemm,
    "MatMul": layers.matrix_product,
    "BatchNormalization": layers.batch_norm,
    "InstanceNormalization": layers.instance_norm,
    "GroupNormalization": layers.group_norm,
    "LayerNormalization": layers.layer_norm,
    "Relu": _simple(NetworkOp.RELU),
    "Sigmoid": _simple(NetworkOp.SIGMOID),
    "HardSwish": _simple(NetworkOp.HARDSWISH),
    "Tanh": _simple(NetworkOp.TANH),
    "Clip": _clip,
    "Max": lambda w, node: _extreme(w, node, is_max=True),
    "Min": lambda w, node: _extreme(w, node, is_max=False),
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
    "Swish": _swish,
    "Softmax": _softmax,
    "Dropout": _dropout,
    "Identity": _same,
    "Cast": _cast,
    "Add": _add,
    "Sub": _sub,
    "Sum": _sum,
    "Mul": _mul,
    "Div": _div,
    "Neg": _negated,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Pad": _pad,
    "MaxPool": _max_pool,
    "AveragePool": _avg_pool,
    "GlobalAveragePool": _global_mean,
    "GlobalMaxPool": _global_max,
    "ReduceMean": _mean,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Transpose": _transpose,
    "Expand": _expand,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Resize": _resize,
}
