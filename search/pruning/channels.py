"""Which channels of a group to keep, and removing the others from a network for good."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from device_agent.contracts import ContractError
from search.domain.network import Axis, NetworkSpec, PruningGroup
from search.domain.space import Decisions
from search.pruning.channel_part import ChannelPart
from search.pruning.fuse import FusedModules, fused_modules, fused_parts
from search.pruning.groups import IndexArray, kept_sides


def importance(
    model: nn.Module,
    spec: NetworkSpec,
    group: PruningGroup,
    *,
    order: int = 1,
    without: Collection[str] = (),
) -> NDArray[np.float64]:
    """How much each channel of a group matters, (channels,): the norm of the filters that write it.

    The filters of all members are ranked together, so that an add never meets two different choices of channels (AACP's
    code, arXiv 2102.00390, ranks each layer by itself). Each member's norms are divided by their mean, as layers differ
    in scale; batch norm's factor counts, as it is part of the filter that will run.

    Args:
        model: The unpruned network.
        spec: Its description.
        group: One of `spec.groups`.
        order: 1 for the L1 norm, as in AACP; 2 for L2.
        without: Operators that do not count, since their block is removed.
    """
    modules = fused_modules(model, spec.plan.input_shape)
    total = np.zeros(group.channels)
    for member in group.members:
        # Parts of a channel split have no filters.
        if member.axis is not Axis.OUT or member.op in without or member.op not in modules:
            continue
        weight = _filter_weights(model, modules[member.op])[member.channels(group.channels)]
        norms = np.linalg.norm(weight.reshape(len(weight), -1), ord=order, axis=1)
        total += norms / max(float(norms.mean()), np.finfo(np.float64).tiny)
    return total


def kept_channels(
    model: nn.Module, spec: NetworkSpec, decisions: Decisions, *, order: int = 1
) -> dict[str, IndexArray]:
    """The channels that stay, ascending, for each group that `decisions` makes smaller: the most important ones.

    Groups all of whose operators are removed with their blocks are left out.

    Raises `ContractError` where a count is not in 1..channels of its group.
    """
    removed = spec.removed_ops(decisions.removed_blocks)
    kept = {}
    for name, count in decisions.channels.items():
        group = spec.group(name)
        if not 1 <= count <= group.channels:
            raise ContractError(f"{count!r} channels of group {name!r} are not in 1..{group.channels}")
        if count < group.channels and any(member.op not in removed for member in group.members):
            ranking = np.argsort(-importance(model, spec, group, order=order, without=removed), kind="stable")
            kept[name] = np.sort(ranking[:count]).astype(np.int64)
    return kept


def remove_channels(model: nn.Module, spec: NetworkSpec, kept: Mapping[str, IndexArray]) -> nn.Module:
    """A copy of `model` with only the channels in `kept` of each named group; other groups stay whole."""
    modules = fused_modules(model, spec.plan.input_shape)
    parts = fused_parts(model, spec.plan.input_shape)
    outputs: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for (op, axis), indices in kept_sides(spec, kept).items():
        if op in parts:
            counts[parts[op]] = len(indices)
            continue
        side = outputs if axis is Axis.OUT else inputs
        side[modules[op].weights] = torch.from_numpy(indices)
    # `copy.deepcopy` takes what its memo holds instead of copying: the sliced tensors, in place of the large ones.
    memo: dict[int, object] = {}
    norm_of = {entry.weights: entry.norm for entry in modules.values()}
    changed: list[str] = []
    for name in dict.fromkeys((*outputs, *inputs)):
        layer = model.get_submodule(name)
        norm = norm_of[name]
        changed += [name] if norm is None else [name, norm]
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            _slice_norm(memo, layer, outputs[name])
            continue
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        _replace(memo, layer, "weight", _sliced_weight(layer, outputs.get(name), inputs.get(name), spec, name))
        if name in outputs:
            _replace(memo, layer, "bias", _selected(layer.bias, outputs[name]))
            if norm is not None:
                _slice_norm(memo, model.get_submodule(norm), outputs[name])
    pruned = copy.deepcopy(model, memo)
    for name in changed:
        _set_sizes(pruned.get_submodule(name))
    for name, count in counts.items():
        part = pruned.get_submodule(name)
        assert isinstance(part, ChannelPart)
        part.count = count
    return pruned


def _slice_norm(memo: dict[int, object], norm: nn.Module, outputs: Tensor) -> None:
    for tensor in ("weight", "bias", "running_mean", "running_var"):
        _replace(memo, norm, tensor, _selected(getattr(norm, tensor), outputs))


def _filter_weights(model: nn.Module, entry: FusedModules) -> NDArray[np.float64]:
    """A layer's weights, (out, ...), times the factor of its batch norm, which may be all that there is."""
    layer = model.get_submodule(entry.weights)
    if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
        return _gain(layer)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    filters = weight.detach().numpy().astype(np.float64)
    if entry.norm is None:
        return filters
    return filters * _gain(model.get_submodule(entry.norm)).reshape(-1, *(1,) * (filters.ndim - 1))


def _gain(norm: nn.Module) -> NDArray[np.float64]:
    """The size of a batch norm's factors, (channels,)."""
    assert isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d)
    assert norm.running_var is not None
    gain: NDArray[np.float64] = 1.0 / np.sqrt(norm.running_var.numpy().astype(np.float64) + norm.eps)
    return gain * np.abs(norm.weight.detach().numpy().astype(np.float64)) if norm.affine else gain


def _sliced_weight(
    layer: nn.Conv2d | nn.Linear, outputs: Tensor | None, inputs: Tensor | None, spec: NetworkSpec, name: str
) -> Tensor:
    weight: Tensor = layer.weight.detach()
    if outputs is not None:
        weight = weight.index_select(0, outputs)
    if inputs is not None:
        if isinstance(layer, nn.Linear):
            # A flattened image: each channel is a run of pixels.
            kernel = next(op.kernel for op in spec.plan.ops if op.name == name)
            pixels = torch.arange(kernel.kernel_h * kernel.kernel_w)
            inputs = (inputs[:, None] * len(pixels) + pixels).reshape(-1)
        # The filters of all groups of a grouped convolution read the same places of their group's channels.
        inputs = inputs[inputs < weight.shape[1]]
        weight = weight.index_select(1, inputs)
    return weight


def _selected(tensor: Tensor | None, indices: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.detach().index_select(0, indices)


def _replace(memo: dict[int, object], owner: nn.Module, name: str, value: Tensor | None) -> None:
    original = getattr(owner, name)
    if original is None or value is None:
        return
    if isinstance(original, nn.Parameter):
        memo[id(original)] = nn.Parameter(value, requires_grad=original.requires_grad)
    else:
        memo[id(original)] = value


def _set_sizes(layer: nn.Module) -> None:
    """Make a layer's declared sizes those of its weights."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
        return
    if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
        assert layer.running_mean is not None
        layer.num_features = len(layer.running_mean)
        return
    assert isinstance(layer, nn.Conv2d)
    multiplier = layer.out_channels // layer.in_channels
    layer.out_channels = layer.weight.shape[0]
    if layer.groups == layer.in_channels > 1:
        layer.groups = layer.in_channels = layer.out_channels // multiplier
    else:
        layer.in_channels = layer.weight.shape[1] * layer.groups
