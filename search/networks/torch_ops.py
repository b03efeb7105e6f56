"""What each operator of a `.kerf` file is in torch: a module for those with tensors, and nodes of a graph for the rest.

The calls are those that `search.pruning.operators` recognises.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from search.networks.document import NetworkNode
from search.networks.ops import NetworkOp
from search.pruning.channel_part import ChannelPart

_META = "meta"

Shape = tuple[int, ...]


def make_module(node: NetworkNode) -> nn.Module | None:
    """The module of a node, its tensors without storage; None for operators that are calls."""
    factory = _MODULES.get(node.op)
    return None if factory is None else factory(node.attributes, node.weights)


def channel_parts(node: NetworkNode, shape: Shape) -> tuple[ChannelPart, ...] | None:
    """What a slice of channels, of a tensor of `shape` (without the batch), is made of: its first channels, its last
    ones, or the first of the last ones; nothing where all stay. None for other operators and other slices.
    """
    a = node.attributes
    if node.op is not NetworkOp.SLICE or a["axis"] != 1 or a["step"] != 1 or len(shape) not in (1, 3):
        return None
    start, stop, _ = slice(a["start"], a["stop"]).indices(shape[0])
    if start >= stop:
        return None
    behind = (ChannelPart(shape[0] - start, is_last=True),) if start else ()
    return (*behind, *((ChannelPart(stop - start, is_last=False),) if stop < shape[0] else ()))


def add_call(
    graph: fx.Graph, node: NetworkNode, inputs: Sequence[fx.Node], name: str, shape: Shape | None = None
) -> fx.Node:
    """Add the call of an operator without a module to `graph`. Where the `shape` of what it reads is known, numbers of
    channels, which pruning changes, are left out where they can be.
    """
    a = node.attributes
    x = inputs[0]
    if node.op is NetworkOp.IDENTITY:
        return x
    if node.op is NetworkOp.AFFINE:
        return _add_affine(graph, x, a, name)
    if node.op is NetworkOp.CONCAT:
        return graph.create_node("call_function", torch.cat, (list(inputs), a["axis"]), name=name)
    if node.op is NetworkOp.RESHAPE and is_unflattening(node):
        # Without the number of channels, which pruning changes.
        flat = graph.create_node("call_method", "flatten", (x, 1), name=f"{name}_flat")
        return graph.create_node("call_method", "unflatten", (flat, 1, (-1, 1, 1)), name=name)
    if node.op is NetworkOp.RESHAPE and shape is not None:
        after = tuple(a["shape"])
        if len(shape) == 3 and len(after) == 4 and after[2:] == shape[1:]:
            return graph.create_node("call_method", "unflatten", (x, 1, (after[0], -1)), name=name)
        if len(shape) == 4 and len(after) == 3 and after[1:] == shape[2:]:
            return graph.create_node("call_method", "flatten", (x, 1, 2), name=name)
    if node.op in _BINARY:
        return graph.create_node("call_function", _BINARY[node.op], tuple(inputs), name=name)
    if node.op in _METHODS:
        method, arguments = _METHODS[node.op]
        return graph.create_node("call_method", method, (x, *arguments(a)), name=name)
    function, to_args, to_kwargs = _FUNCTIONS[node.op]
    return graph.create_node("call_function", function, (x, *to_args(a)), to_kwargs(a), name=name)


def is_written_out(node: fx.Node) -> bool:
    """Whether a node reshapes to a shape that is written into the graph."""
    return node.target == "reshape"


def is_unflattening(node: NetworkNode) -> bool:
    """Whether a reshape gives (channels, 1, 1): a vector as an image of one pixel."""
    return len(node.attributes["shape"]) == 3 and tuple(node.attributes["shape"][1:]) == (1, 1)


Attributes = Mapping[str, Any]


def _convolution(kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], a: Attributes, has_bias: bool) -> nn.Module:
    transposed: dict[str, Any] = {"output_padding": tuple(a["output_padding"])} if kind is nn.ConvTranspose2d else {}
    return kind(
        a["in_channels"],
        a["out_channels"],
        tuple(a["kernel"]),
        stride=tuple(a["stride"]),
        padding=tuple(a["padding"]),
        dilation=tuple(a["dilation"]),
        groups=a["groups"],
        bias=has_bias,
        device=_META,
        **transposed,
    )


def _batch_norm(a: Attributes, weights: Mapping[str, str]) -> nn.Module:
    kind = nn.BatchNorm2d if a["dimensions"] == 2 else nn.BatchNorm1d
    return kind(a["channels"], eps=a["eps"], momentum=a["momentum"], affine="weight" in weights, device=_META)


_MODULES: dict[NetworkOp, Callable[[Attributes, Mapping[str, str]], nn.Module]] = {
    NetworkOp.CONV2D: lambda a, w: _convolution(nn.Conv2d, a, "bias" in w),
    NetworkOp.CONV_TRANSPOSE2D: lambda a, w: _convolution(nn.ConvTranspose2d, a, "bias" in w),
    NetworkOp.LINEAR: lambda a, w: nn.Linear(a["in_features"], a["out_features"], bias="bias" in w, device=_META),
    NetworkOp.BATCH_NORM: _batch_norm,
    NetworkOp.GROUP_NORM: lambda a, w: nn.GroupNorm(
        a["groups"], a["channels"], eps=a["eps"], affine="weight" in w, device=_META
    ),
    NetworkOp.LAYER_NORM: lambda a, w: nn.LayerNorm(
        tuple(a["shape"]), eps=a["eps"], elementwise_affine="weight" in w, device=_META
    ),
    # A module, as only that follows the network into training and back.
    NetworkOp.DROPOUT: lambda a, w: (
        nn.Dropout2d(a["probability"]) if a["per_channel"] else nn.Dropout(a["probability"])
    ),
}

_BINARY: dict[NetworkOp, Callable[..., Any]] = {NetworkOp.ADD: operator.add, NetworkOp.MUL: operator.mul}

#: Methods of a tensor; -1 stands for the batch.
_METHODS: dict[NetworkOp, tuple[str, Callable[[Attributes], tuple[Any, ...]]]] = {
    NetworkOp.DETACH: ("detach", lambda a: ()),
    NetworkOp.RESHAPE: ("reshape", lambda a: (-1, *a["shape"])),
    NetworkOp.EXPAND: ("expand", lambda a: (-1, *a["shape"])),
}


def _none(a: Attributes) -> tuple[Any, ...]:
    return ()


def _no_keywords(a: Attributes) -> dict[str, Any]:
    return {}


def _slices(a: Attributes) -> tuple[Any, ...]:
    return ((*(slice(None),) * a["axis"], slice(a["start"], a["stop"], a["step"])),)


def _pixels(a: Attributes) -> tuple[Any, ...]:
    every = slice(None, None, a["stride"])
    return ((slice(None), slice(None), every, every),)


def _max_pool(a: Attributes) -> tuple[Any, ...]:
    return (tuple(a["kernel"]), tuple(a["stride"]), tuple(a["padding"]), tuple(a["dilation"]), a["ceil_mode"])


def _avg_pool(a: Attributes) -> tuple[Any, ...]:
    return (tuple(a["kernel"]), tuple(a["stride"]), tuple(a["padding"]), a["ceil_mode"], a["count_include_pad"])


def _upsample(a: Attributes) -> dict[str, Any]:
    return {
        "size": None if a["size"] is None else tuple(a["size"]),
        "scale_factor": None if a["scale"] is None else tuple(float(s) for s in a["scale"]),
        "mode": a["mode"],
        "align_corners": None if a["mode"] == "nearest" else a["align_corners"],
    }


_Call = tuple[Callable[..., Any], Callable[[Attributes], tuple[Any, ...]], Callable[[Attributes], dict[str, Any]]]

_FUNCTIONS: dict[NetworkOp, _Call] = {
    NetworkOp.RELU: (F.relu, _none, _no_keywords),
    NetworkOp.RELU6: (F.relu6, _none, _no_keywords),
    NetworkOp.LEAKY_RELU: (F.leaky_relu, lambda a: (a["slope"],), _no_keywords),
    NetworkOp.GELU: (F.gelu, _none, lambda a: {"approximate": a["approximate"]}),
    NetworkOp.SIGMOID: (torch.sigmoid, _none, _no_keywords),
    NetworkOp.HARDSIGMOID: (F.hardsigmoid, _none, _no_keywords),
    NetworkOp.SILU: (F.silu, _none, _no_keywords),
    NetworkOp.HARDSWISH: (F.hardswish, _none, _no_keywords),
    NetworkOp.TANH: (torch.tanh, _none, _no_keywords),
    NetworkOp.CLAMP: (torch.clamp, _none, lambda a: {"min": a["min"], "max": a["max"]}),
    NetworkOp.SOFTMAX: (torch.softmax, lambda a: (a["axis"],), _no_keywords),
    NetworkOp.SLICE: (operator.getitem, _slices, _no_keywords),
    NetworkOp.SUBSAMPLE: (operator.getitem, _pixels, _no_keywords),
    NetworkOp.PAD: (
        F.pad,
        lambda a: (tuple(a["amounts"]), a["mode"], a["value"] if a["mode"] == "constant" else None),
        _no_keywords,
    ),
    NetworkOp.MAX_POOL: (torch.max_pool2d, _max_pool, _no_keywords),
    NetworkOp.AVG_POOL: (F.avg_pool2d, _avg_pool, _no_keywords),
    NetworkOp.ADAPTIVE_AVG_POOL: (F.adaptive_avg_pool2d, lambda a: (tuple(a["size"]),), _no_keywords),
    NetworkOp.MEAN: (torch.mean, lambda a: (tuple(a["axes"]), a["keep"]), _no_keywords),
    NetworkOp.FLATTEN: (torch.flatten, lambda a: (a["start"],), _no_keywords),
    NetworkOp.PERMUTE: (torch.permute, lambda a: (tuple(a["axes"]),), _no_keywords),
    NetworkOp.PIXEL_SHUFFLE: (F.pixel_shuffle, lambda a: (a["factor"],), _no_keywords),
    NetworkOp.UPSAMPLE: (F.interpolate, _none, _upsample),
}


def _add_affine(graph: fx.Graph, x: fx.Node, a: Attributes, name: str) -> fx.Node:
    if a["scale"] != 1:
        x = graph.create_node("call_function", operator.mul, (x, a["scale"]), name=name)
    if a["offset"] != 0 or a["scale"] == 1:
        x = graph.create_node("call_function", operator.add, (x, a["offset"]), name=name)
    return x
