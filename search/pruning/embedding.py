"""A pruned network's weights back in the places that they had in the unpruned one."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from search.domain.network import Axis, NetworkSpec
from search.pruning.apply import PrunedModel
from search.pruning.fuse import fused_modules
from search.pruning.groups import IndexArray, kept_sides


@torch.no_grad()
def embed(pruned: PrunedModel, model: nn.Module, spec: NetworkSpec) -> nn.Module:
    """A copy of the unpruned `model` with the weights of `pruned`, zeros where channels were removed.

    Removed channels have no importance there, so that pruning the copy further keeps what `pruned` kept. Removed blocks
    keep the weights of `model`.
    """
    full = copy.deepcopy(model)
    tensors = full.state_dict()
    places = _places(model, spec, pruned.kept)
    for name, values in pruned.model.state_dict().items():
        module, _, part = name.rpartition(".")
        target = tensors[name]
        outputs, inputs = places.get(module, (None, None))
        if values.ndim == 0 or (outputs is None and inputs is None):
            target.copy_(values)
            continue
        # The variance of a removed channel must stay positive.
        target.fill_(1.0 if part == "running_var" else 0.0)
        if values.ndim == 1:
            target[... if outputs is None else outputs] = values
            continue
        rows = torch.arange(len(target)) if outputs is None else outputs
        columns = torch.arange(target.shape[1]) if inputs is None else inputs
        target[rows[:, None], columns[None, :]] = values
    return full.eval()


def _places(
    model: nn.Module, spec: NetworkSpec, kept: Mapping[str, IndexArray]
) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """For each module with removed channels where those lie that stay: outputs and inputs; None where all stay."""
    modules = fused_modules(model, spec.plan.input_shape)
    kernels = {op.name: op.kernel for op in spec.plan.ops}
    found: dict[str, tuple[Tensor | None, Tensor | None]] = {}
    for (op, axis), indices in kept_sides(spec, kept).items():
        if op not in modules:  # a part of a channel split has no weights
            continue
        channels = torch.from_numpy(indices)
        entry, kernel = modules[op], kernels[op]
        outputs, inputs = found.get(entry.weights, (None, None))
        if axis is Axis.OUT:
            found[entry.weights] = (channels, inputs)
            if entry.norm is not None:
                found[entry.norm] = (channels, None)
        elif isinstance(model.get_submodule(entry.weights), nn.Linear):
            # A flattened image: each channel is a run of pixels.
            pixels = torch.arange(kernel.kernel_h * kernel.kernel_w)
            found[entry.weights] = (outputs, (channels[:, None] * len(pixels) + pixels).reshape(-1))
        else:
            found[entry.weights] = (outputs, channels[channels < kernel.in_channels // kernel.groups])
    return found
