"""The closed set of operators of a `.kerf` file, version 1: what each reads, its attributes and its tensors.

All attributes of an operator must be given, so that a file says all that it means. Shapes and axes count the batch as
axis 0; an operator never touches it. No torch here: a server checks files without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

#: Larger extents are no network but a try to fill the memory.
MAX_EXTENT = 1 << 24
MAX_RANK = 8
MAX_INPUTS = 1024


class NetworkOp(StrEnum):
    """What a node computes."""

    CONV2D = "conv2d"
    CONV_TRANSPOSE2D = "conv_transpose2d"
    LINEAR = "linear"
    BATCH_NORM = "batch_norm"
    GROUP_NORM = "group_norm"
    LAYER_NORM = "layer_norm"
    #: A tensor of its own, that other nodes add or multiply; without the batch axis.
    PARAMETER = "parameter"
    RELU = "relu"
    RELU6 = "relu6"
    LEAKY_RELU = "leaky_relu"
    GELU = "gelu"
    SIGMOID = "sigmoid"
    HARDSIGMOID = "hardsigmoid"
    SILU = "silu"
    HARDSWISH = "hardswish"
    TANH = "tanh"
    CLAMP = "clamp"
    SOFTMAX = "softmax"
    ADD = "add"
    MUL = "mul"
    #: x * scale + offset, with two numbers.
    AFFINE = "affine"
    CONCAT = "concat"
    SLICE = "slice"
    #: Every `stride`-th pixel.
    SUBSAMPLE = "subsample"
    PAD = "pad"
    MAX_POOL = "max_pool"
    AVG_POOL = "avg_pool"
    ADAPTIVE_AVG_POOL = "adaptive_avg_pool"
    MEAN = "mean"
    FLATTEN = "flatten"
    RESHAPE = "reshape"
    PERMUTE = "permute"
    EXPAND = "expand"
    PIXEL_SHUFFLE = "pixel_shuffle"
    UPSAMPLE = "upsample"
    DROPOUT = "dropout"
    #: The tensor without its gradient.
    DETACH = "detach"
    IDENTITY = "identity"


@dataclass(frozen=True, slots=True)
class Attribute:
    """What values an attribute may have, as a test and in words."""

    accepts: Callable[[Any], bool]
    expected: str


#: Shapes of an operator's tensors, by role, from its attributes.
WeightShapes = Callable[[Mapping[str, Any]], Mapping[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpSpec:
    """One operator: its number of inputs, its attributes, and its tensors. `optional` names groups of roles that are
    given together or not at all; `statistics` are no parameters, and never trained by gradients.
    """

    min_inputs: int = 1
    max_inputs: int = 1
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    weights: WeightShapes | None = None
    optional: tuple[tuple[str, ...], ...] = ()
    statistics: tuple[str, ...] = ()
    #: What two attributes must have to do with each other: the problem in words, or None.
    problem: Callable[[Mapping[str, Any]], str | None] | None = None


def _is_int(value: Any, least: int, most: int = MAX_EXTENT) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _integer(least: int, most: int = MAX_EXTENT) -> Attribute:
    return Attribute(lambda value: _is_int(value, least, most), f"an integer in {least}..{most}")


def _pair(least: int) -> Attribute:
    return Attribute(
        lambda value: isinstance(value, list) and len(value) == 2 and all(_is_int(v, least) for v in value),
        f"two integers of at least {least}",
    )


def _integers(least: int, most: int = MAX_EXTENT, *, empty: bool = False) -> Attribute:
    return Attribute(
        lambda value: (
            isinstance(value, list)
            and (empty or bool(value))
            and len(value) <= 2 * MAX_RANK
            and all(_is_int(v, least, most) for v in value)
        ),
        f"a list of integers in {least}..{most}",
    )


def _one_of(*values: str) -> Attribute:
    return Attribute(lambda value: isinstance(value, str) and value in values, f"one of {', '.join(values)}")


def _optional(attribute: Attribute) -> Attribute:
    return Attribute(lambda value: value is None or attribute.accepts(value), f"{attribute.expected}, or null")


_NUMBER = Attribute(_is_number, "a finite number")
_POSITIVE = Attribute(lambda value: _is_number(value) and value > 0, "a positive number")
_PART = Attribute(lambda value: _is_number(value) and 0 <= value <= 1, "a number in 0..1")
_FLAG = Attribute(lambda value: isinstance(value, bool), "true or false")
_SCALE = Attribute(
    lambda value: isinstance(value, list) and len(value) == 2 and all(_is_number(v) and 0 < v <= 1024 for v in value),
    "two numbers in (0, 1024]",
)
_AXIS = _integer(1, MAX_RANK - 1)
_CONVOLUTION = {
    "in_channels": _integer(1),
    "out_channels": _integer(1),
    "kernel": _pair(1),
    "stride": _pair(1),
    "padding": _pair(0),
    "dilation": _pair(1),
    "groups": _integer(1),
}
_BIAS = (("bias",),)
_AFFINE_PAIR = (("weight", "bias"),)


def _convolution_weights(a: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {
        "weight": (a["out_channels"], a["in_channels"] // a["groups"], *a["kernel"]),
        "bias": (a["out_channels"],),
    }


def _transposed_weights(a: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {
        "weight": (a["in_channels"], a["out_channels"] // a["groups"], *a["kernel"]),
        "bias": (a["out_channels"],),
    }


def _groups_problem(a: Mapping[str, Any]) -> str | None:
    if a["in_channels"] % a["groups"] or a["out_channels"] % a["groups"]:
        return f"{a['groups']} groups do not divide {a['in_channels']} input and {a['out_channels']} output channels"
    return None


def _upsample_problem(a: Mapping[str, Any]) -> str | None:
    if (a["size"] is None) == (a["scale"] is None):
        return "exactly one of size and scale must be given"
    if a["mode"] == "nearest" and a["align_corners"]:
        return "align_corners has no meaning with mode 'nearest'"
    return None


def _norm_weights(channels: str) -> WeightShapes:
    return lambda a: dict.fromkeys(("weight", "bias"), (a[channels],))


_SIMPLE = OpSpec()

OPS: dict[NetworkOp, OpSpec] = {
    NetworkOp.CONV2D: OpSpec(
        attributes=_CONVOLUTION, weights=_convolution_weights, optional=_BIAS, problem=_groups_problem
    ),
    NetworkOp.CONV_TRANSPOSE2D: OpSpec(
        attributes={**_CONVOLUTION, "output_padding": _pair(0)},
        weights=_transposed_weights,
        optional=_BIAS,
        problem=_groups_problem,
    ),
    NetworkOp.LINEAR: OpSpec(
        attributes={"in_features": _integer(1), "out_features": _integer(1)},
        weights=lambda a: {"weight": (a["out_features"], a["in_features"]), "bias": (a["out_features"],)},
        optional=_BIAS,
    ),
    NetworkOp.BATCH_NORM: OpSpec(
        # `dimensions` is that of the module in torch: 2 for images, 1 for vectors. A momentum of null is the mean over
        # all batches.
        attributes={
            "channels": _integer(1),
            "dimensions": _integer(1, 2),
            "eps": _POSITIVE,
            "momentum": _optional(_PART),
        },
        weights=lambda a: dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (a["channels"],)),
        optional=_AFFINE_PAIR,
        statistics=("running_mean", "running_var"),
    ),
    NetworkOp.GROUP_NORM: OpSpec(
        attributes={"groups": _integer(1), "channels": _integer(1), "eps": _POSITIVE},
        weights=_norm_weights("channels"),
        optional=_AFFINE_PAIR,
        problem=lambda a: (
            f"{a['groups']} groups do not divide {a['channels']} channels" if a["channels"] % a["groups"] else None
        ),
    ),
    NetworkOp.LAYER_NORM: OpSpec(
        attributes={"shape": _integers(1), "eps": _POSITIVE},
        weights=lambda a: dict.fromkeys(("weight", "bias"), tuple(a["shape"])),
        optional=_AFFINE_PAIR,
    ),
    NetworkOp.PARAMETER: OpSpec(
        min_inputs=0,
        max_inputs=0,
        attributes={"shape": _integers(1, empty=True)},
        weights=lambda a: {"value": tuple(a["shape"])},
    ),
    **dict.fromkeys(
        (
            NetworkOp.RELU,
            NetworkOp.RELU6,
            NetworkOp.SIGMOID,
            NetworkOp.HARDSIGMOID,
            NetworkOp.SILU,
            NetworkOp.HARDSWISH,
            NetworkOp.TANH,
            NetworkOp.DETACH,
            NetworkOp.IDENTITY,
        ),
        _SIMPLE,
    ),
    NetworkOp.LEAKY_RELU: OpSpec(attributes={"slope": _NUMBER}),
    NetworkOp.GELU: OpSpec(attributes={"approximate": _one_of("none", "tanh")}),
    NetworkOp.CLAMP: OpSpec(
        attributes={"min": _optional(_NUMBER), "max": _optional(_NUMBER)},
        problem=lambda a: "one of min and max must be given" if a["min"] is None and a["max"] is None else None,
    ),
    NetworkOp.SOFTMAX: OpSpec(attributes={"axis": _AXIS}),
    NetworkOp.ADD: OpSpec(min_inputs=2, max_inputs=2),
    NetworkOp.MUL: OpSpec(min_inputs=2, max_inputs=2),
    NetworkOp.AFFINE: OpSpec(attributes={"scale": _NUMBER, "offset": _NUMBER}),
    NetworkOp.CONCAT: OpSpec(max_inputs=MAX_INPUTS, attributes={"axis": _AXIS}),
    NetworkOp.SLICE: OpSpec(
        # A stop of null is the end.
        attributes={
            "axis": _AXIS,
            "start": _integer(-MAX_EXTENT),
            "stop": _optional(_integer(-MAX_EXTENT)),
            "step": _integer(1),
        }
    ),
    NetworkOp.SUBSAMPLE: OpSpec(attributes={"stride": _integer(1)}),
    NetworkOp.PAD: OpSpec(
        # Before and after each axis, the last axis first, as torch.nn.functional.pad has them; negative ones cut.
        attributes={
            "amounts": _integers(-MAX_EXTENT),
            "mode": _one_of("constant", "reflect", "replicate"),
            "value": _NUMBER,
        },
        problem=lambda a: "amounts must come in pairs" if len(a["amounts"]) % 2 else None,
    ),
    NetworkOp.MAX_POOL: OpSpec(
        attributes={
            "kernel": _pair(1),
            "stride": _pair(1),
            "padding": _pair(0),
            "dilation": _pair(1),
            "ceil_mode": _FLAG,
        }
    ),
    NetworkOp.AVG_POOL: OpSpec(
        attributes={
            "kernel": _pair(1),
            "stride": _pair(1),
            "padding": _pair(0),
            "ceil_mode": _FLAG,
            "count_include_pad": _FLAG,
        }
    ),
    NetworkOp.ADAPTIVE_AVG_POOL: OpSpec(attributes={"size": _pair(1)}),
    NetworkOp.MEAN: OpSpec(attributes={"axes": _integers(1, MAX_RANK - 1), "keep": _FLAG}),
    NetworkOp.FLATTEN: OpSpec(attributes={"start": _AXIS}),
    # Without the batch.
    NetworkOp.RESHAPE: OpSpec(attributes={"shape": _integers(1, empty=True)}),
    NetworkOp.EXPAND: OpSpec(attributes={"shape": _integers(1, empty=True)}),
    NetworkOp.PERMUTE: OpSpec(
        attributes={"axes": _integers(0, MAX_RANK - 1)},
        problem=lambda a: (
            None
            if a["axes"][0] == 0 and sorted(a["axes"]) == list(range(len(a["axes"])))
            else f"{a['axes']} is no order of axes with the batch in front"
        ),
    ),
    NetworkOp.PIXEL_SHUFFLE: OpSpec(attributes={"factor": _integer(1)}),
    NetworkOp.UPSAMPLE: OpSpec(
        attributes={
            "size": _optional(_pair(1)),
            "scale": _optional(_SCALE),
            "mode": _one_of("nearest", "bilinear"),
            "align_corners": _FLAG,
        },
        problem=_upsample_problem,
    ),
    NetworkOp.DROPOUT: OpSpec(attributes={"probability": _PART, "per_channel": _FLAG}),
}
