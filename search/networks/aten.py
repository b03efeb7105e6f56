"""What each operator of ATen, as torch.export writes them, becomes in a `.kerf` document."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
from torch import fx, nn

from search.networks.document import NetworkNode
from search.networks.ops import NetworkOp
from search.networks.walker import COMPUTED, ShapedLeaf, Value, Walker, arguments, place_of, refuse, shape_of

#: What `torch` writes for "to the end".
_END = (1 << 63) - 1

_NO_OPERATOR = (
    "version 1 of the .kerf format has no operator for it; write it with those that it has (docs/own-networks.md lists "
    "them)"
)
#: What to write in place of operators that many networks have.
_REMEDIES = {
    "log_softmax": "leave it out of the network: losses and top-1 take what is in front of it, and a user of the "
    "exported file computes it from that",
    "einsum": "write it with convolutions, linear layers, products and permutations of axes",
    **dict.fromkeys(
        ("amax", "adaptive_max_pool2d"), "the maximum over a whole image has no operator: take the mean, x.mean((2, 3))"
    ),
    **dict.fromkeys(
        ("fill_", "copy_", "index_put_"),
        "it writes into a part of a tensor: put a new one together with torch.cat",
    ),
}

Rule = Callable[[Walker, fx.Node, dict[str, Any]], Value]


def convert_node(walker: Walker, node: fx.Node) -> None:
    """Add what `node` does to the document. Raises `ContractError` where the format has no operator for it."""
    if node.target is operator.getitem:
        source, index = node.args
        several = walker.values.get(source) if isinstance(source, fx.Node) else None
        if not isinstance(several, list) or not isinstance(index, int):
            refuse(node, "it takes one of several results of an operator that has none here")
        walker.values[node] = several[index]
        return
    name = str(node.target)
    rule = RULES.get(name)
    if rule is None:
        if not node.users and not isinstance(node.meta.get("val"), torch.Tensor):
            return  # A check of sizes, or a size that nothing needs.
        refuse(node, _REMEDIES.get(name.split(".")[1], _NO_OPERATOR))
    a = arguments(node)
    source = a.get("self", a.get("input"))
    found = rule(walker, node, a)
    walker.values[node] = found
    if isinstance(found, str):
        walker.computed_by[node] = found
    if name.split(".")[1].endswith("_") and isinstance(source, fx.Node):
        # Whoever reads the tensor afterwards reads what was written into it.
        walker.values[source] = found
        walker.writes.append(node)


def _simple(op: NetworkOp) -> Rule:
    return lambda walker, node, a: walker.emit(node, op, [walker.operand(node, a["self"])])


def _convolution(walker: Walker, node: fx.Node, a: dict[str, Any], *, transposed: bool = False) -> Value:
    weight = walker.leaf(node, a["weight"], "weight")
    assert weight is not None
    x = walker.operand(node, a["input"])
    first, second, *kernel = weight.tensor.shape
    groups = a["groups"]
    stride, dilation = _pair(a["stride"]), _pair(a["dilation"])
    padding = a["padding"]
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        if any(t % 2 for t in total):
            # What is odd goes behind, as in torch.
            (h, w), mode = total, {"mode": "constant", "value": 0.0}
            amounts = [w // 2, w - w // 2, h // 2, h - h // 2]
            x = walker.emit(node, NetworkOp.PAD, [x], amounts=amounts, **mode)
            total = [0, 0]
        padding = [t // 2 for t in total]
    extra: dict[str, Any] = {"output_padding": _pair(a["output_padding"])} if transposed else {}
    return walker.emit_weighted(
        node,
        NetworkOp.CONV_TRANSPOSE2D if transposed else NetworkOp.CONV2D,
        [x],
        {"weight": weight, "bias": walker.leaf(node, a["bias"], "bias")},
        in_channels=first if transposed else second * groups,
        out_channels=second * groups if transposed else first,
        kernel=[int(k) for k in kernel],
        stride=stride,
        padding=_pair(padding),
        dilation=dilation,
        groups=groups,
        **extra,
    )


def _linear(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    weight = walker.leaf(node, a["weight"], "weight")
    assert weight is not None
    outputs, inputs = weight.tensor.shape
    leaves = {"weight": weight, "bias": walker.leaf(node, a["bias"], "bias")}
    x = walker.operand(node, a["input"])
    return walker.emit_weighted(node, NetworkOp.LINEAR, [x], leaves, in_features=inputs, out_features=outputs)


def _batch_norm(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    roles = ("weight", "bias", "running_mean", "running_var")
    leaves = {role: walker.leaf(node, a[role], role) for role in roles}
    if a["training"] or leaves["running_mean"] is None or leaves["running_var"] is None:
        refuse(node, "in evaluation mode it uses the statistics of the batch: set track_running_stats=True")
    given = {role: leaf for role, leaf in leaves.items() if leaf is not None}
    momentum: float | None = a["momentum"]
    if momentum == 0.0:
        # torch calls it with 0 where the module's momentum is None, the mean over all batches.
        if not walker.capture.is_module:
            refuse(
                node, "its momentum is 0 or None, which an exported program does not tell: convert the module itself"
            )
        owner = walker.capture.source.get_submodule(walker.module_path(given))
        if isinstance(owner, nn.modules.batchnorm._NormBase) and owner.momentum is None:
            momentum = None
    return walker.emit_weighted(
        node,
        NetworkOp.BATCH_NORM,
        [walker.operand(node, a["input"])],
        leaves,
        statistics=("running_mean", "running_var"),
        channels=leaves["running_mean"].tensor.numel(),
        dimensions=2 if len(shape_of(node)) == 4 else 1,
        eps=a["eps"],
        momentum=momentum,
    )


def _group_norm(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    leaves = {role: walker.leaf(node, a[role], role) for role in ("weight", "bias")}
    channels = int(shape_of(node)[1])
    x = walker.operand(node, a["input"])
    return walker.emit_weighted(
        node, NetworkOp.GROUP_NORM, [x], leaves, groups=a["num_groups"], channels=channels, eps=a["eps"]
    )


def _layer_norm(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    leaves = {role: walker.leaf(node, a[role], role) for role in ("weight", "bias")}
    x = walker.operand(node, a["input"])
    return walker.emit_weighted(node, NetworkOp.LAYER_NORM, [x], leaves, shape=a["normalized_shape"], eps=a["eps"])


def _clamp(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    least, most = a.get("min", a.get("min_val")), a.get("max", a.get("max_val"))
    x = walker.operand(node, a["self"])
    if (least, most) == (0, 6):
        return walker.emit(node, NetworkOp.RELU6, [x])
    if (least, most) == (0, None):
        return walker.emit(node, NetworkOp.RELU, [x])
    return walker.emit(node, NetworkOp.CLAMP, [x], min=least, max=most)


def _leaky_relu(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    return walker.emit(node, NetworkOp.LEAKY_RELU, [walker.operand(node, a["self"])], slope=a["negative_slope"])


def _gelu(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    return walker.emit(node, NetworkOp.GELU, [walker.operand(node, a["self"])], approximate=a["approximate"])


def _softmax(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    return walker.emit(node, NetworkOp.SOFTMAX, [walker.operand(node, a["self"])], axis=_axis(node, a["dim"]))


def _add(walker: Walker, node: fx.Node, a: dict[str, Any], *, sign: float = 1.0) -> Value:
    left, right, factor = a["self"], a["other"], sign * a.get("alpha", 1)
    x = walker.operand(node, left)
    if not isinstance(right, fx.Node):
        return walker.emit(node, NetworkOp.AFFINE, [x], scale=1.0, offset=float(factor * right))
    y = walker.operand(node, right)
    if factor != 1:
        y = walker.emit(node, NetworkOp.AFFINE, [y], scale=float(factor), offset=0.0)
    return walker.emit(node, NetworkOp.ADD, [x, y])


def _mul(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    x = walker.operand(node, a["self"])
    if not isinstance(a["other"], fx.Node):
        return walker.emit(node, NetworkOp.AFFINE, [x], scale=float(a["other"]), offset=0.0)
    y = walker.operand(node, a["other"])
    last = walker.nodes[-1] if walker.nodes else None
    if last is not None and last.op is NetworkOp.EXPAND and last.name in (x, y):
        # A product repeats a smaller operand by itself, whatever size pruning leaves.
        expanded, other = (a["self"], a["other"]) if last.name == x else (a["other"], a["self"])
        if len(expanded.users) == 1 and x != y and shape_of(other) == shape_of(node):
            walker.nodes.pop()
            x, y = (last.inputs[0], y) if last.name == x else (x, last.inputs[0])
    return walker.emit(node, NetworkOp.MUL, [x, y])


def _div(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    if isinstance(a["other"], fx.Node) or a.get("rounding_mode") is not None:
        refuse(node, "only a division by a number has an operator")
    return walker.emit(node, NetworkOp.AFFINE, [walker.operand(node, a["self"])], scale=1.0 / a["other"], offset=0.0)


def _negated(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    """`-x` and `number - x`."""
    if a.get("alpha", 1) != 1:
        refuse(node, "a subtraction with a factor has no operator")
    return walker.emit(
        node, NetworkOp.AFFINE, [walker.operand(node, a["self"])], scale=-1.0, offset=float(a.get("other", 0.0))
    )


def _concat(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    parts = [walker.operand(node, part) for part in a["tensors"]]
    return walker.emit(node, NetworkOp.CONCAT, parts, axis=_axis(node, a["dim"]))


def _slice(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    x, step = walker.operand(node, a["self"]), a["step"]
    start, stop = a["start"] or 0, None if a["end"] is None or a["end"] >= _END else a["end"]
    axis = a["dim"] % len(shape_of(node))
    if (start, stop, step) == (0, None, 1):
        return x
    previous = walker.nodes[-1] if walker.nodes else None
    columns = {"axis": 2, "start": 0, "stop": None, "step": step}
    if axis == 3 and previous is not None and previous.name == x and previous.op is NetworkOp.SLICE:
        alone = len(a["self"].users) == 1
        if alone and dict(previous.attributes) == columns and (start, stop) == (0, None):
            walker.nodes.pop()
            return walker.emit(node, NetworkOp.SUBSAMPLE, previous.inputs, stride=step)
    return walker.emit(node, NetworkOp.SLICE, [x], axis=_axis(node, a["dim"]), start=start, stop=stop, step=step)


def _split(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    x = walker.operand(node, a["self"])
    axis = _axis(node, a["dim"], rank=len(node.meta["val"][0].shape))
    parts: list[str] = []
    start = 0
    for part in node.meta["val"]:
        extent = int(part.shape[axis])
        parts.append(walker.emit(node, NetworkOp.SLICE, [x], axis=axis, start=start, stop=start + extent, step=1))
        start += extent
    return parts


def _max_pool(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    return walker.emit(
        node,
        NetworkOp.MAX_POOL,
        [walker.operand(node, a["self"])],
        **_window(a),
        dilation=_pair(a["dilation"]),
    )


def _avg_pool(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    if a["divisor_override"] is not None:
        refuse(node, "a divisor_override has no operator")
    return walker.emit(
        node,
        NetworkOp.AVG_POOL,
        [walker.operand(node, a["self"])],
        **_window(a),
        count_include_pad=a["count_include_pad"],
    )


def _window(a: dict[str, Any]) -> dict[str, Any]:
    """Where a pool looks."""
    return {
        "kernel": _pair(a["kernel_size"]),
        "stride": _pair(a["stride"] or a["kernel_size"]),
        "padding": _pair(a["padding"]),
        "ceil_mode": a["ceil_mode"],
    }


def _adaptive_pool(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    x, size = walker.operand(node, a["self"]), [int(n) for n in shape_of(node)[-2:]]
    image = [int(n) for n in shape_of(a["self"])[-2:]]
    if size == [1, 1] or any(had % has for had, has in zip(image, size, strict=True)):
        return walker.emit(node, NetworkOp.ADAPTIVE_AVG_POOL, [x], size=size)
    # Windows of one size, one beside the other.
    window = [had // has for had, has in zip(image, size, strict=True)]
    walker.notes.append(
        f"{place_of(node)} is written as an average pool of {window[0]}x{window[1]}, which is the same for "
        f"{image[0]}x{image[1]} pixels but not for other sizes of the image"
    )
    if window == [1, 1]:
        return x
    return walker.emit(
        node, NetworkOp.AVG_POOL, [x], kernel=window, stride=window, padding=[0, 0], ceil_mode=False,
        count_include_pad=True,
    )  # fmt: skip


def _mean(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    rank, keep = len(shape_of(a["self"])), a["keepdim"]
    axes = sorted(_axis(node, axis, rank=rank) for axis in a["dim"] or ())
    x = walker.operand(node, a["self"])
    previous = _only_read_here(walker, a["self"], x)
    if previous is not None and previous.op is NetworkOp.MEAN and previous.attributes["keep"] == keep:
        # A mean over rows of means over columns is one over both.
        before = previous.attributes["axes"]
        left = range(rank) if keep else [axis for axis in range(rank + len(before)) if axis not in before]
        walker.nodes.pop()
        axes, x = sorted({*before, *(left[axis] for axis in axes)}), previous.inputs[0]
    return walker.emit(node, NetworkOp.MEAN, [x], axes=axes, keep=keep)


def _only_read_here(walker: Walker, source: fx.Node, name: str) -> NetworkNode | None:
    """The node of the document that was made last, if it is `name` and nothing else reads what it stands for."""
    last = walker.nodes[-1] if walker.nodes else None
    return last if last is not None and last.name == name and len(source.users) == 1 else None


def _reshape(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    """Whatever only changes the shape, by the shape that it gives."""
    source = a["self"]
    after = shape_of(node)
    value = walker.values.get(source)
    if isinstance(value, ShapedLeaf):
        return ShapedLeaf(leaf=value.leaf, shape=tuple(int(n) for n in after))
    before = shape_of(source)
    x = walker.operand(node, source)
    if after == before:
        return x
    if not after or after[0] != before[0] or prod(map(int, after[1:])) != prod(map(int, before[1:])):
        refuse(node, f"it reshapes {before} to {after}, which mixes the images of a batch: keep the first axis")
    if str(node.target) == "aten.squeeze.default":
        refuse(node, "of one image it drops the batch axis, too: say which axes, x.squeeze((2, 3)) or x.flatten(1)")
    shape = [int(n) for n in after[1:]]
    previous = _only_read_here(walker, source, x)
    if previous is not None and (previous.op is NetworkOp.FLATTEN or _is_no_image(previous)):
        # Of several changes of shape, such as x[:, :, None, None], the last one counts.
        while walker.values.get(source) != previous.inputs[0]:
            source = source.args[0]
        walker.nodes.pop()
        x = previous.inputs[0]
        if after == shape_of(source):
            return x
    if len(shape) == 1:
        return walker.emit(node, NetworkOp.FLATTEN, [x], start=1)
    return walker.emit(node, NetworkOp.RESHAPE, [x], shape=shape)


def _is_no_image(node: NetworkNode) -> bool:
    return node.op is NetworkOp.RESHAPE and len(node.attributes["shape"]) != 3


def _permute(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    rank = len(shape_of(node))
    if "dims" in a:
        axes = [axis % rank for axis in a["dims"]]
    else:
        axes = list(range(rank))
        first, second = a["dim0"] % rank, a["dim1"] % rank
        axes[first], axes[second] = second, first
    return walker.emit(node, NetworkOp.PERMUTE, [walker.operand(node, a["self"])], axes=axes)


def _expand(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    x = walker.operand(node, a["self"])
    if shape_of(a["self"])[0] != shape_of(node)[0]:
        refuse(node, "it expands the batch")
    return walker.emit(node, NetworkOp.EXPAND, [x], shape=[int(n) for n in shape_of(node)[1:]])


def _pad(walker: Walker, node: fx.Node, a: dict[str, Any], *, mode: str | None = None) -> Value:
    chosen = a.get("mode", "constant") if mode is None else mode
    if chosen not in ("constant", "reflect", "replicate"):
        refuse(node, f"the padding mode {chosen!r} has no operator")
    amounts = a.get("pad", a.get("padding"))
    x = walker.operand(node, a["self"])
    value = float(a.get("value") or 0.0)
    return walker.emit(node, NetworkOp.PAD, [x], amounts=amounts, mode=chosen, value=value)


def _pixel_shuffle(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    return walker.emit(node, NetworkOp.PIXEL_SHUFFLE, [walker.operand(node, a["self"])], factor=a["upscale_factor"])


def _channel_shuffle(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    channels, height, width = (int(n) for n in shape_of(node)[1:])
    groups = a["groups"]
    x = walker.operand(node, a["self"])
    x = walker.emit(node, NetworkOp.RESHAPE, [x], shape=[groups, channels // groups, height, width])
    x = walker.emit(node, NetworkOp.PERMUTE, [x], axes=[0, 2, 1, 3, 4])
    return walker.emit(node, NetworkOp.RESHAPE, [x], shape=[channels, height, width])


def _upsample(walker: Walker, node: fx.Node, a: dict[str, Any], *, mode: str) -> Value:
    size, scale = a["output_size"], a["scale_factors"]
    return walker.emit(
        node,
        NetworkOp.UPSAMPLE,
        [walker.operand(node, a["input"])],
        size=None if size is None else _pair(size),
        scale=None if scale is None else [float(s) for s in scale],
        mode=mode,
        align_corners=bool(a.get("align_corners", False)),
    )


def _dropout(walker: Walker, node: fx.Node, a: dict[str, Any], *, per_channel: bool = False) -> Value:
    if a["train"]:
        refuse(node, "it drops values in evaluation mode: pass training=self.training, or use nn.Dropout")
    x = walker.operand(node, a["input"] if "input" in a else a["self"])
    return walker.emit(node, NetworkOp.DROPOUT, [x], probability=a["p"], per_channel=per_channel)


def _same(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    """Copies and views without effect."""
    source = a["self"]
    value = walker.values.get(source)
    if shape_of(node) != shape_of(source) or node.meta["val"].dtype != source.meta["val"].dtype:
        refuse(node, f"it changes the type to {node.meta['val'].dtype}: only float32 is known")
    return value if isinstance(value, ShapedLeaf) else walker.operand(node, source)


def _parametrised(walker: Walker, node: fx.Node, a: dict[str, Any]) -> Value:
    refuse(node, f"its result {COMPUTED}")


def _pair(value: Any) -> list[int]:
    both = [value] if isinstance(value, int) else list(value)
    return both * 2 if len(both) == 1 else both


def _axis(node: fx.Node, axis: int, *, rank: int | None = None) -> int:
    found = axis % (len(shape_of(node)) if rank is None else rank)
    if found == 0:
        refuse(node, "it works along the batch")
    return found


def _aten(*names: str) -> tuple[str, ...]:
    return tuple(f"aten.{name}" for name in names)


RULES: dict[str, Rule] = {
    "aten.conv2d.default": _convolution,
    "aten.conv2d.padding": _convolution,
    "aten.conv_transpose2d.input": partial(_convolution, transposed=True),
    "aten._weight_norm.default": _parametrised,
    "aten.linear.default": _linear,
    "aten.batch_norm.default": _batch_norm,
    "aten.group_norm.default": _group_norm,
    "aten.layer_norm.default": _layer_norm,
    **dict.fromkeys(_aten("relu.default", "relu_.default"), _simple(NetworkOp.RELU)),
    **dict.fromkeys(_aten("relu6.default", "relu6_.default"), _simple(NetworkOp.RELU6)),
    **dict.fromkeys(_aten("sigmoid.default", "sigmoid_.default"), _simple(NetworkOp.SIGMOID)),
    **dict.fromkeys(_aten("hardsigmoid.default", "hardsigmoid_.default"), _simple(NetworkOp.HARDSIGMOID)),
    **dict.fromkeys(_aten("silu.default", "silu_.default"), _simple(NetworkOp.SILU)),
    **dict.fromkeys(_aten("hardswish.default", "hardswish_.default"), _simple(NetworkOp.HARDSWISH)),
    **dict.fromkeys(_aten("tanh.default", "tanh_.default"), _simple(NetworkOp.TANH)),
    "aten.detach.default": _simple(NetworkOp.DETACH),
    **dict.fromkeys(_aten("leaky_relu.default", "leaky_relu_.default"), _leaky_relu),
    "aten.gelu.default": _gelu,
    **dict.fromkeys(
        _aten("hardtanh.default", "hardtanh_.default", "clamp.default", "clamp_.default", "clamp_min.default"), _clamp
    ),
    "aten.softmax.int": _softmax,
    **dict.fromkeys(_aten("add.Tensor", "add_.Tensor"), _add),
    **dict.fromkeys(_aten("sub.Tensor", "sub_.Tensor"), partial(_add, sign=-1.0)),
    **dict.fromkeys(_aten("mul.Tensor", "mul_.Tensor"), _mul),
    **dict.fromkeys(_aten("div.Tensor", "div_.Tensor"), _div),
    **dict.fromkeys(_aten("rsub.Scalar", "neg.default"), _negated),
    **dict.fromkeys(_aten("cat.default", "concat.default"), _concat),
    "aten.slice.Tensor": _slice,
    **dict.fromkeys(
        _aten("chunk.default", "split.Tensor", "split_with_sizes.default", "split.sizes", "tensor_split.sections"),
        _split,
    ),
    "aten.max_pool2d.default": _max_pool,
    "aten.avg_pool2d.default": _avg_pool,
    "aten.adaptive_avg_pool2d.default": _adaptive_pool,
    "aten.mean.dim": _mean,
    **dict.fromkeys(
        _aten(
            "flatten.using_ints",
            "view.default",
            "reshape.default",
            "_unsafe_view.default",
            "unsqueeze.default",
            "squeeze.default",
            "squeeze.dim",
            "squeeze.dims",
            "unflatten.int",
        ),
        _reshape,
    ),
    **dict.fromkeys(_aten("permute.default", "transpose.int"), _permute),
    **dict.fromkeys(_aten("expand.default", "expand_as.default"), _expand),
    **dict.fromkeys(_aten("pad.default", "constant_pad_nd.default"), _pad),
    "aten.reflection_pad2d.default": partial(_pad, mode="reflect"),
    "aten.replication_pad2d.default": partial(_pad, mode="replicate"),
    "aten.pixel_shuffle.default": _pixel_shuffle,
    **dict.fromkeys(_aten("channel_shuffle.default", "native_channel_shuffle.default"), _channel_shuffle),
    "aten.upsample_nearest2d.vec": partial(_upsample, mode="nearest"),
    "aten.upsample_bilinear2d.vec": partial(_upsample, mode="bilinear"),
    **dict.fromkeys(_aten("dropout.default", "dropout_.default"), _dropout),
    **dict.fromkeys(_aten("feature_dropout.default", "feature_dropout_.default"), partial(_dropout, per_channel=True)),
    **dict.fromkeys(
        _aten(
            "contiguous.default",
            "clone.default",
            "alias.default",
            "lift_fresh_copy.default",
            "to.dtype",
            "_to_copy.default",
        ),
        _same,
    ),
}
