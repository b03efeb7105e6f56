"""Which networks XNNPACK runs with sparse 1x1 convolutions, and how their weights are stored for it.

XNNPACK turns a part of a network to NCHW, and skips the zeros of its 1x1 convolutions, when the whole part obeys the
rules of `xnn_subgraph_rewrite_for_nchw` (XNNPACK, src/subgraph.c). A part that breaks one is run dense without a word.
So the rules are checked here, before the file is written. On x86 with AVX the path is never taken: there the same file
runs dense, with the same result.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts.codec import ContractError
from device_agent.contracts.kernel import DType, KernelSpec, Op, PruningScheme
from device_agent.contracts.network import NETWORK_INPUT, NETWORK_RESIDUAL, NetworkPlan, PlanOp

#: The depthwise windows that have an NCHW kernel: extent -> padding.
_DEPTHWISE_PADDING = {3: 1, 5: 2}


class _Place(Enum):
    """Where a tensor lies: before the sparse part, in it (NCHW), or behind its MEAN."""

    BEFORE = 0
    INSIDE = 1
    BEHIND = 2


def sparse_blocks(plan: NetworkPlan, tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, int]:
    """The 1x1 convolutions that are stored without zeros, by operator, with the rows (filters) of a block.

    Filters that were pruned in groups are stored in blocks, which saves indices; XNNPACK looks for blocks by itself.
    An operator of which too little is zero stays dense in the file. It is in the result nowhere, and runs on the sparse
    path all the same.

    Raises `ContractError` that names the first operator that breaks a rule of the sparse path, and the rule.
    """
    inside = convolutions_inside(plan)
    weights = [tensors[f"{name}.weight"] for name in inside]
    num_weights = sum(weight.size for weight in weights)
    num_zeros = num_weights - sum(int(np.count_nonzero(weight)) for weight in weights)
    if num_zeros * 3 <= num_weights * 2:
        least = min(inside, key=lambda name: float(np.mean(tensors[f"{name}.weight"] == 0)))
        raise ContractError(
            f"{num_zeros} of {num_weights} weights of the 1x1 convolutions are zero "
            f"({num_zeros / num_weights:.1%}), and XNNPACK's sparse path needs more than two thirds over all of them "
            f"together: prune {least!r}, which has the fewest, further"
        )
    kernels = {op.name: op.kernel for op in plan.ops}
    blocks = {}
    for name, weight in zip(inside, weights, strict=True):
        block = _block_of(kernels[name])
        groups = (weight.reshape(-1, block, weight.shape[1]) != 0).any(axis=1)
        index_bytes = 4 * (int(groups.sum()) + groups.shape[0] + 1)
        if 4 * block * int(groups.sum()) + index_bytes < weight.nbytes:
            blocks[name] = block
    return blocks


def _block_of(kernel: KernelSpec) -> int:
    rows = kernel.pruning.block_filters if kernel.pruning.scheme is PruningScheme.GROUP else 1
    return rows if kernel.out_channels % rows == 0 else 1


def convolutions_inside(plan: NetworkPlan) -> list[str]:
    """The 1x1 convolutions of the sparse part, in plan order. Raises `ContractError` for the first broken rule."""
    places = {NETWORK_INPUT: _Place.BEFORE, NETWORK_RESIDUAL: _Place.BEFORE}
    inside = []
    for op in plan.ops:
        if op.kernel.dtype is not DType.FLOAT32:
            raise _broken(op, f"is {op.kernel.dtype}", "runs in float32 only")
        sources = [*op.inputs, *([op.residual] if op.residual is not None else [])]
        found = {places[name] for name in sources}
        if found == {_Place.BEHIND}:
            places[op.name] = _Place.BEHIND
        elif found == {_Place.INSIDE}:
            places[op.name] = _place_inside(op)
            if op.kernel.op is Op.CONV2D:
                inside.append(op.name)
        elif _Place.BEHIND in found:
            raise _broken(op, "joins tensors from inside and behind the sparse part", "has one MEAN, at its end")
        else:
            places[op.name] = _place_of_first(op, places)
    if places[plan.output_name] is not _Place.BEHIND:
        raise _broken(plan.ops[-1], "gives the network's output", "ends in a mean over h and w (global_avg_pool)")
    if not inside:
        raise ContractError(
            f"the network {plan.name!r} has no 1x1 convolution between its first operator and the mean over h and w: "
            "XNNPACK's sparse path has nothing to skip"
        )
    return inside


def _place_of_first(op: PlanOp, places: Mapping[str, _Place]) -> _Place:
    """The one entrance into NCHW: a 3x3 convolution of the image with stride 2."""
    kernel = op.kernel
    begins = "starts with a 3x3 convolution of 3 input channels with stride 2 and padding 1"
    if kernel.op is not Op.CONV2D:
        raise _broken(op, f"is {kernel.op} on the network's input", begins)
    for name, value, wanted in (
        ("kernel", f"{kernel.kernel_h}x{kernel.kernel_w}", "3x3"),
        ("in_channels", kernel.in_channels, 3),
        ("stride", kernel.stride, 2),
        ("padding", kernel.padding, 1),
        ("groups", kernel.groups, 1),
    ):
        if value != wanted:
            raise _broken(op, f"has {name} {value}, not {wanted}", begins)
    if op.residual is not None:
        raise _broken(op, f"adds {op.residual!r} to its result", begins)
    if places[op.inputs[0]] is not _Place.BEFORE or op.inputs[0] != NETWORK_INPUT:
        raise _broken(op, f"reads {op.inputs[0]!r}", begins)
    return _Place.INSIDE


def _place_inside(op: PlanOp) -> _Place:
    kernel = op.kernel
    if kernel.op is Op.GLOBAL_AVG_POOL:
        return _Place.BEHIND
    if kernel.op is Op.CONV2D:
        shape = (kernel.kernel_h, kernel.kernel_w, kernel.stride, kernel.padding)
        if kernel.groups > 1:
            raise _broken(op, f"has {kernel.groups} groups", "has convolutions of one group only")
        if shape != (1, 1, 1, 0):
            raise _broken(
                op,
                f"is a {kernel.kernel_h}x{kernel.kernel_w} convolution with stride {kernel.stride} "
                f"and padding {kernel.padding}",
                "has convolutions of 1x1 with stride 1 only behind the first",
            )
    elif kernel.op is Op.DEPTHWISE_CONV2D:
        if kernel.channel_multiplier > 1:
            wanted = "has depthwise convolutions that write one channel for each only"
            raise _broken(op, f"writes {kernel.channel_multiplier} channels for each that it reads", wanted)
        is_square = kernel.kernel_h == kernel.kernel_w
        if not is_square or _DEPTHWISE_PADDING.get(kernel.kernel_h) != kernel.padding or kernel.stride > 2:
            raise _broken(
                op,
                f"is a {kernel.kernel_h}x{kernel.kernel_w} depthwise convolution with stride {kernel.stride} "
                f"and padding {kernel.padding}",
                "has depthwise convolutions of 3x3 with padding 1 or 5x5 with padding 2, of stride 1 or 2",
            )
    elif kernel.op is not Op.ADD:
        raise _broken(op, f"is {kernel.op}", "has 1x1 and depthwise convolutions, additions and activations only")
    return _Place.INSIDE


def _broken(op: PlanOp, what: str, rule: str) -> ContractError:
    return ContractError(f"the operator {op.name!r} {what}, and XNNPACK's sparse path {rule}: write the file dense")
