"""Nodes of a traced network as a small closed set of operators, whatever way they were written in torch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from device_agent.contracts import Activation
from search.errors import SearchError
from search.pruning.channel_part import ChannelPart


class UnsupportedNetwork(SearchError, ValueError):
    """A network cannot be lowered to the fused kernels. The text names the module or the node, and the remedy."""


class Kind(Enum):
    """What a node does to its tensor."""

    CONVOLUTION = auto()
    DEPTHWISE = auto()
    LINEAR = auto()
    NORM = auto()
    ACTIVATION = auto()
    ADD = auto()
    #: A tensor times one factor for each channel.
    GATE = auto()
    #: The channels of several tensors one after the other.
    CONCAT = auto()
    MAX_POOL = auto()
    AVG_POOL = auto()
    GLOBAL_POOL = auto()
    #: The first or the last channels.
    FIRST_CHANNELS = auto()
    LAST_CHANNELS = auto()
    #: The channels of an image as blocks, an axis of their own, and two axes of channels exchanged: with a flattening,
    #: the parts of a channel shuffle.
    BLOCKS = auto()
    SWAP = auto()
    FLATTEN = auto()
    #: Dropout and the like: nothing at inference.
    IDENTITY = auto()
    #: Every `stride`-th pixel.
    SUBSAMPLE = auto()
    #: Zero channels in front and behind.
    CHANNEL_PAD = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """A recognised node. `sources` are the nodes that it reads; fields that do not apply keep their default."""

    kind: Kind
    sources: tuple[fx.Node, ...]
    module: str | None = None
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: int = 0
    activation: Activation = Activation.NONE
    groups: int = 1
    pad_before: int = 0
    pad_after: int = 0


def recognise(node: fx.Node, modules: Mapping[str, nn.Module]) -> Operator:
    """What `node` does. Raises `UnsupportedNetwork` where there is no fused kernel for it."""
    if node.op == "call_module":
        return _recognise_module(node, str(node.target), modules[str(node.target)])
    if node.op in ("call_function", "call_method"):
        if node.target in _SOFTMAX:
            raise unsupported(node, "leave it out of the network: losses and top-1 take what is in front of it")
        handler = _CALLS.get(node.target)
        if handler is not None:
            return handler(node)
    raise unsupported(
        node,
        "there is no kernel for it; use convolutions, linear layers, batch norm, adds, gates, concatenations, splits "
        "and shuffles of channels, pools and, as activations, ReLU, ReLU6, sigmoid, hard sigmoid, hard swish and SiLU",
    )


def unsupported(node: fx.Node, reason: str) -> UnsupportedNetwork:
    """The error for a node, in words that a user finds in the model's source."""
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return UnsupportedNetwork(f"{node.name!r} ({node.op} {target}) cannot be lowered: {reason}")


def _recognise_module(node: fx.Node, name: str, module: nn.Module) -> Operator:
    sources = (_tensor(node, 0),)
    if isinstance(module, nn.Conv2d):
        return _convolution(node, name, module)
    if isinstance(module, nn.Linear):
        return Operator(kind=Kind.LINEAR, sources=sources, module=name)
    if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
        if module.running_mean is None:
            raise unsupported(node, "batch norm needs running statistics (track_running_stats=True)")
        return Operator(kind=Kind.NORM, sources=sources, module=name)
    activation = _ACTIVATION_MODULES.get(type(module))
    if activation is not None:
        return Operator(kind=Kind.ACTIVATION, sources=sources, activation=activation)
    if isinstance(module, nn.Hardtanh):
        if (module.min_val, module.max_val) != (0.0, 6.0):
            raise unsupported(node, "of the clipped activations only ReLU6 has a kernel")
        return Operator(kind=Kind.ACTIVATION, sources=sources, activation=Activation.RELU6)
    if isinstance(module, nn.MaxPool2d):
        pooling = (module.kernel_size, module.stride, module.padding)
        return _pool(node, Kind.MAX_POOL, *pooling, module.ceil_mode, dilation=module.dilation)
    if isinstance(module, nn.AvgPool2d):
        return _pool(node, Kind.AVG_POOL, module.kernel_size, module.stride, module.padding, module.ceil_mode)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return _adaptive_pool(node, module.output_size)
    if isinstance(module, nn.Flatten):
        return Operator(kind=Kind.FLATTEN, sources=sources)
    if isinstance(module, ChannelPart):
        kind = Kind.LAST_CHANNELS if module.is_last else Kind.FIRST_CHANNELS
        return Operator(kind=kind, sources=sources, module=name)
    if isinstance(module, nn.Dropout | nn.Dropout2d | nn.Identity):
        return Operator(kind=Kind.IDENTITY, sources=sources)
    raise unsupported(node, f"there is no kernel for {type(module).__name__}")


def _convolution(node: fx.Node, name: str, module: nn.Conv2d) -> Operator:
    is_depthwise = module.groups == module.in_channels > 1
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise unsupported(node, "padding must be zeros and given as numbers")
    _require(node, _one(node, module.dilation, "dilation"), 1, "dilation")
    kernel = (int(module.kernel_size[0]), int(module.kernel_size[1]))
    return Operator(
        kind=Kind.DEPTHWISE if is_depthwise else Kind.CONVOLUTION,
        sources=(_tensor(node, 0),),
        module=name,
        groups=1 if is_depthwise else module.groups,
        kernel=kernel,
        stride=_one(node, module.stride, "stride"),
        padding=_one(node, module.padding, "padding"),
    )


def _pool(
    node: fx.Node, kind: Kind, kernel: Any, stride: Any, padding: Any, ceil_mode: bool, *, dilation: Any = 1
) -> Operator:
    _require(node, _one(node, dilation, "dilation"), 1, "dilation")
    if ceil_mode:
        raise unsupported(node, "ceil_mode has no kernel: set it to False")
    if kind is Kind.AVG_POOL:
        # Libraries disagree on whether padding counts in the mean.
        _require(node, _one(node, padding, "padding"), 0, "padding")
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    return Operator(
        kind=kind,
        sources=(_tensor(node, 0),),
        kernel=(height, width),
        stride=_one(node, kernel if stride is None or stride == [] else stride, "stride"),
        padding=_one(node, padding, "padding"),
    )


def _adaptive_pool(node: fx.Node, size: Any) -> Operator:
    if size not in (1, (1, 1), [1, 1]):
        raise unsupported(
            node,
            f"adaptive pooling to {size}: only to 1x1, or to sides that divide those of the image, has a kernel",
        )
    return Operator(kind=Kind.GLOBAL_POOL, sources=(_tensor(node, 0),))


def _call_activation(activation: Activation) -> Callable[[fx.Node], Operator]:
    return lambda node: Operator(kind=Kind.ACTIVATION, sources=(_tensor(node, 0),), activation=activation)


def _call_mul(node: fx.Node) -> Operator:
    return Operator(kind=Kind.GATE, sources=(_tensor(node, 0), _tensor(node, 1, "other")))


def _call_add(node: fx.Node) -> Operator:
    if _argument(node, 2, "alpha", 1) != 1:
        raise unsupported(node, "an add with a factor has no kernel")
    return Operator(kind=Kind.ADD, sources=(_tensor(node, 0), _tensor(node, 1, "other")))


def _call_concat(node: fx.Node) -> Operator:
    parts, dim = _argument(node, 0, "tensors", ()), _argument(node, 1, "dim", 0)
    sources = tuple(part for part in parts if isinstance(part, fx.Node)) if isinstance(parts, tuple | list) else ()
    if not sources or len(sources) != len(parts):
        raise unsupported(node, "it must join tensors that are listed, torch.cat([x, y], 1)")
    _require(node, dim, 1, "concatenation over axis")
    return Operator(kind=Kind.CONCAT, sources=sources)


def _call_max_pool(node: fx.Node) -> Operator:
    kernel = _argument(node, 1, "kernel_size", None)
    stride = _argument(node, 2, "stride", None)
    padding = _argument(node, 3, "padding", 0)
    dilation = _argument(node, 4, "dilation", 1)
    return _pool(
        node, Kind.MAX_POOL, kernel, stride, padding, _argument(node, 5, "ceil_mode", False), dilation=dilation
    )


def _call_avg_pool(node: fx.Node) -> Operator:
    kernel = _argument(node, 1, "kernel_size", None)
    stride = _argument(node, 2, "stride", None)
    padding = _argument(node, 3, "padding", 0)
    return _pool(node, Kind.AVG_POOL, kernel, stride, padding, _argument(node, 4, "ceil_mode", False))


def _call_adaptive_pool(node: fx.Node) -> Operator:
    return _adaptive_pool(node, _argument(node, 1, "output_size", None))


def _call_mean(node: fx.Node) -> Operator:
    dims = _argument(node, 1, "dim", None)
    if not isinstance(dims, tuple | list) or sorted(d % 4 for d in dims) != [2, 3]:
        raise unsupported(node, f"a mean over {dims}: only over height and width, (2, 3)")
    return Operator(kind=Kind.GLOBAL_POOL, sources=(_tensor(node, 0),))


def _call_flatten(node: fx.Node) -> Operator:
    return Operator(kind=Kind.FLATTEN, sources=(_tensor(node, 0),))


def _call_unflatten(node: fx.Node) -> Operator:
    dim, sizes = _argument(node, 1, "dim", None), _argument(node, 2, "sizes", None)
    if dim == 1 and isinstance(sizes, tuple | list) and len(sizes) == 2 and sizes[1] == -1:
        return Operator(kind=Kind.BLOCKS, sources=(_tensor(node, 0),), groups=int(sizes[0]))
    if dim not in (1, -1) or not isinstance(sizes, tuple | list) or list(sizes)[1:] != [1, 1]:
        raise unsupported(
            node, f"it unfolds axis {dim} to {sizes}: only a vector to (channels, 1, 1) has a meaning here"
        )
    return Operator(kind=Kind.FLATTEN, sources=(_tensor(node, 0),))


def _call_permute(node: fx.Node) -> Operator:
    axes = _argument(node, 1, "dims", None)
    if not isinstance(axes, tuple | list) or list(axes) != [0, 2, 1, 3, 4]:
        raise unsupported(node, f"it puts axes in the order {axes}: only channel shuffles have a kernel")
    return Operator(kind=Kind.SWAP, sources=(_tensor(node, 0),))


def _call_identity(node: fx.Node) -> Operator:
    return Operator(kind=Kind.IDENTITY, sources=(_tensor(node, 0),))


def _call_getitem(node: fx.Node) -> Operator:
    """`x[:, :, ::s, ::s]`."""
    index = _argument(node, 1, "", None)
    everything = slice(None)
    if isinstance(index, tuple) and len(index) == 4 and index[0] == index[1] == everything and index[2] == index[3]:
        pixels = index[2]
        if isinstance(pixels, slice) and pixels.start in (None, 0) and pixels.stop is None:
            stride = 1 if pixels.step is None else pixels.step
            return Operator(kind=Kind.SUBSAMPLE, sources=(_tensor(node, 0),), stride=stride)
    raise unsupported(node, f"the index {index}: only every s-th pixel, x[:, :, ::s, ::s], has a kernel")


def _call_pad(node: fx.Node) -> Operator:
    amounts = _argument(node, 1, "pad", ())
    mode, value = _argument(node, 2, "mode", "constant"), _argument(node, 3, "value", None)
    if len(amounts) != 6 or any(amounts[:4]) or min(amounts) < 0 or mode != "constant" or value not in (None, 0):
        raise unsupported(
            node,
            "of pads only zero channels have a kernel: give the convolution behind it the padding, zeros that are "
            "equal on all sides",
        )
    return Operator(kind=Kind.CHANNEL_PAD, sources=(_tensor(node, 0),), pad_before=amounts[4], pad_after=amounts[5])


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def _tensor(node: fx.Node, position: int, name: str = "input") -> fx.Node:
    source = _argument(node, position, name, None)
    if isinstance(source, int | float):
        raise unsupported(
            node,
            f"its operand is the number {source:g}: put it into the weights or the bias of a layer beside it; that of "
            "images into dataset.mean and dataset.std, and hard swish is F.hardswish",
        )
    if not isinstance(source, fx.Node):
        raise unsupported(node, f"its operand is {source!r} and not a tensor")
    return source


def _one(node: fx.Node, value: Any, what: str) -> int:
    """The one number that `value` states for both sides of an image."""
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(set(both)) != 1:
        raise unsupported(node, f"its {what} differs between height and width: {both}")
    return int(both[0])


def _require(node: fx.Node, value: int, expected: int, what: str) -> None:
    if value != expected:
        raise unsupported(node, f"a {what} of {value} has no kernel, only {expected}")


_ACTIVATION_MODULES: dict[type[nn.Module], Activation] = {
    nn.ReLU: Activation.RELU,
    nn.Sigmoid: Activation.SIGMOID,
    nn.Hardsigmoid: Activation.HARDSIGMOID,
    nn.Hardswish: Activation.HARDSWISH,
    nn.SiLU: Activation.SILU,
}

_ACTIVATION_CALLS: dict[Activation, tuple[Any, ...]] = {
    Activation.RELU: (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"),
    Activation.RELU6: (F.relu6,),
    Activation.SIGMOID: (torch.sigmoid, torch.sigmoid_, F.sigmoid, "sigmoid", "sigmoid_"),
    Activation.HARDSIGMOID: (F.hardsigmoid,),
    Activation.HARDSWISH: (F.hardswish,),
    Activation.SILU: (F.silu,),
}

_SOFTMAX = (torch.softmax, F.softmax, "softmax")

_CALLS: dict[Any, Callable[[fx.Node], Operator]] = {
    **{call: _call_activation(a) for a, calls in _ACTIVATION_CALLS.items() for call in calls},
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_"), _call_mul),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _call_add),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _call_max_pool),
    F.avg_pool2d: _call_avg_pool,
    F.adaptive_avg_pool2d: _call_adaptive_pool,
    **dict.fromkeys((torch.mean, "mean"), _call_mean),
    **dict.fromkeys(
        (torch.flatten, "flatten", "view", "reshape", torch.reshape, "squeeze", torch.squeeze), _call_flatten
    ),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _call_concat),
    **dict.fromkeys((torch.unflatten, "unflatten"), _call_unflatten),
    **dict.fromkeys((torch.permute, "permute"), _call_permute),
    # A detached tensor is the same one at inference.
    **dict.fromkeys((F.dropout, "contiguous", "detach"), _call_identity),
    operator.getitem: _call_getitem,
    F.pad: _call_pad,
}
