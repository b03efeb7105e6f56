"""Running a pruned network on the weights of the whole one: prefixes of channels as views, and zeros by live norms."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from device_agent.contracts import PruningScheme, WeightPruning
from device_agent.synthesis import block_extent, num_kept_blocks
from search.domain.network import Axis, NetworkSpec
from search.domain.space import Decisions
from search.pruning.apply import mask_of
from search.pruning.channel_part import ChannelPart
from search.pruning.fuse import fused_modules, fused_parts
from search.pruning.groups import IndexArray, kept_sides

#: Schemes whose mask is a ranking of blocks of kernel positions.
_RANKED_BLOCKS = frozenset({PruningScheme.UNSTRUCTURED, PruningScheme.GROUP, PruningScheme.BLOCK_PUNCHED})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A layer with weights, by module: its operator, and how many inputs one channel is."""

    op: str
    inputs_per_channel: int
    norm: str | None


class SlicedNetwork:
    """A network whose weights are shared by all of its pruned forms.

    A form has the first channels of each group, weight[:out, :in], as in JCW's released code (there is no ranking), and
    the blocks that were not removed.
    `select` makes `form` one of them; running it sends gradients to `model`'s parameters. Its batch norm uses the
    statistics of each batch. Nothing is copied but where a layer reads several groups, one behind the other.

    Args:
        model: The whole network; it is copied, and the copy is `self.model`.
        spec: Its description.
    """

    def __init__(self, model: nn.Module, spec: NetworkSpec) -> None:
        self._spec = spec
        self.model = copy.deepcopy(model)
        self._layers = _layers(self.model, spec)
        self._split_parts = fused_parts(self.model, spec.plan.input_shape)
        self.form = copy.deepcopy(self.model).train()
        # By name, also while a block is out.
        self._parts = dict(self.form.named_modules())
        for name, module in self._parts.items():
            _share_parameters(module, self.model.get_submodule(name))

    def select(self, decisions: Decisions, *, with_masks: bool) -> None:
        """Become the form that `decisions` say; with `with_masks`, zeros where live norms are smallest."""
        removed = self._spec.removed_ops(decisions.removed_blocks)
        for block in self._spec.blocks:
            parent, _, attribute = block.name.rpartition(".")
            is_removed = block.name in decisions.removed_blocks
            self._parts[parent]._modules[attribute] = nn.Identity() if is_removed else self._parts[block.name]
        sides = kept_sides(self._spec, {n: np.arange(c, dtype=np.int64) for n, c in decisions.channels.items()})
        for op, name in self._split_parts.items():
            part, whole = self._parts[name], self.model.get_submodule(name)
            assert isinstance(part, ChannelPart)
            assert isinstance(whole, ChannelPart)
            part.count = len(sides[op, Axis.OUT]) if (op, Axis.OUT) in sides else whole.count
        for name, layer in self._layers.items():
            inputs = sides.get((layer.op, Axis.IN))
            if inputs is not None:
                pixels = np.arange(layer.inputs_per_channel)
                inputs = (inputs[:, None] * layer.inputs_per_channel + pixels).reshape(-1)
            self._slice(name, layer, sides.get((layer.op, Axis.OUT)), inputs)
        for name, pruning in decisions.pruning.items() if with_masks else ():
            if pruning.scheme is not PruningScheme.DENSE and name not in removed:
                module = self._parts[name]
                weight = module.weight
                assert isinstance(weight, Tensor)
                # A constant factor: the gradient of a masked weight is zero, as in the released code.
                _set(module, "weight", weight * live_mask(weight.detach(), pruning))

    def kept(self, decisions: Decisions) -> dict[str, IndexArray]:
        """The channels of each group that the form of `decisions` has, for `remove_channels` on `model`."""
        removed = self._spec.removed_ops(decisions.removed_blocks)
        return {
            name: np.arange(count, dtype=np.int64)
            for name, count in decisions.channels.items()
            if any(member.op not in removed for member in self._spec.group(name).members)
        }

    def _slice(self, name: str, layer: _Layer, outputs: IndexArray | None, inputs: IndexArray | None) -> None:
        whole, module = self.model.get_submodule(name), self._parts[name]
        weight = whole.weight
        assert isinstance(weight, Tensor)
        if inputs is not None:
            # Filters of a grouped convolution read the channels of their group.
            inputs = inputs[inputs < weight.shape[1]]
        _set(module, "weight", _chosen(_chosen(weight, 0, outputs), 1, inputs))
        if whole.bias is not None:
            assert isinstance(whole.bias, Tensor)
            _set(module, "bias", _chosen(whole.bias, 0, outputs))
        if isinstance(module, nn.Conv2d) and isinstance(whole, nn.Conv2d) and whole.groups == whole.in_channels > 1:
            multiplier = whole.out_channels // whole.in_channels
            module.groups = whole.groups if outputs is None else len(outputs) // multiplier
        if layer.norm is not None:
            whole_norm, norm = self.model.get_submodule(layer.norm), self._parts[layer.norm]
            for parameter in ("weight", "bias"):
                values = getattr(whole_norm, parameter)
                if values is not None:
                    _set(norm, parameter, _chosen(values, 0, outputs))


@torch.no_grad()
def live_mask(weight: Tensor, pruning: WeightPruning) -> Tensor:
    """True where a weight stays: the blocks with the largest L1 norm per weight, as many as the density says.

    L1 is the norm of JCW's search (released code, ops.py; its training ranks by L2). Patterns and rows and columns of
    blocks are chosen as `mask_for` does, by L2. The smallest block that stays is found by a partition, not by sorting.

    Args:
        weight: (out, in, kh, kw), or (out, in) of a linear layer.
        pruning: The scheme and its density.
    """
    if pruning.scheme not in _RANKED_BLOCKS:
        return mask_of(weight, pruning)
    filters, channels = block_extent(pruning)
    sums = _block_sums(weight.abs(), filters, channels)
    if weight.shape[0] % filters or weight.shape[1] % channels:
        sums = sums / _block_sums(torch.ones_like(weight), filters, channels)
    scores = sums.reshape(-1)
    count = num_kept_blocks(pruning, scores.numel())
    if count == scores.numel():
        return torch.ones_like(weight, dtype=torch.bool)
    least = scores.kthvalue(scores.numel() - count + 1).values
    chosen = scores >= least
    if int(chosen.sum()) != count:
        # Equal norms: by position, the earlier first.
        chosen = torch.zeros_like(chosen)
        chosen[torch.argsort(scores, descending=True, stable=True)[:count]] = True
    blocks = chosen.reshape(sums.shape)
    if filters > 1:
        blocks = blocks.repeat_interleave(filters, dim=0)[: weight.shape[0]]
    if channels > 1:
        blocks = blocks.repeat_interleave(channels, dim=1)[:, : weight.shape[1]]
    return blocks


def _block_sums(values: Tensor, filters: int, channels: int) -> Tensor:
    """Sums over blocks of `filters` x `channels` at each kernel position; blocks at the edge are smaller."""
    outputs, inputs, *kernel = values.shape
    padding = [0, 0] * len(kernel) + [0, -inputs % channels, 0, -outputs % filters]
    padded = F.pad(values, padding) if any(padding) else values
    outputs, inputs = padded.shape[:2]
    return padded.reshape(outputs // filters, filters, inputs // channels, channels, *kernel).sum((1, 3))


def _layers(model: nn.Module, spec: NetworkSpec) -> dict[str, _Layer]:
    modules = fused_modules(model, spec.plan.input_shape)
    layers = {}
    for op in spec.plan.ops:
        if op.name not in modules:
            continue
        is_linear = isinstance(model.get_submodule(modules[op.name].weights), nn.Linear)
        layers[modules[op.name].weights] = _Layer(
            op=op.name,
            # A linear layer on a flattened image reads a run of pixels for each channel.
            inputs_per_channel=op.kernel.kernel_h * op.kernel.kernel_w if is_linear else 1,
            norm=modules[op.name].norm,
        )
    return layers


def _chosen(tensor: Tensor, axis: int, indices: IndexArray | None) -> Tensor:
    """The entries of `tensor` at ascending `indices`: a view where these are the first ones."""
    if indices is None:
        return tensor
    if int(indices[-1]) == len(indices) - 1:
        return tensor.narrow(axis, 0, len(indices))
    return tensor.index_select(axis, torch.from_numpy(indices))


def _share_parameters(module: nn.Module, whole: nn.Module) -> None:
    """Make the parameters of `module` plain attributes that are those of `whole`, so that views can replace them."""
    for name in [n for n, p in module.named_parameters(recurse=False) if p is not None]:
        del module._parameters[name]
        _set(module, name, getattr(whole, name))
    if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
        module.track_running_stats = False


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    module.__dict__[name] = value
