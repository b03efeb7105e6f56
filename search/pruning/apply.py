"""Decisions of a search, carried out on a network."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from device_agent.contracts import PruningScheme, WeightPruning
from search.domain.network import NetworkSpec
from search.domain.space import Decisions
from search.lowering import lower
from search.pruning.channels import kept_channels, remove_channels
from search.pruning.depth import remove_blocks
from search.pruning.groups import IndexArray
from search.pruning.masks import mask_for


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrunedModel:
    """A network with blocks and channels removed and weights set to zero.

    `masks` has a boolean tensor of the weight's shape for each module that has zeros, True where a weight stays. `kept`
    has the channels that stay of each group that was made smaller. `resolution` is the input's height and width, if
    that was decided.
    """

    model: nn.Module
    masks: Mapping[str, Tensor]
    kept: Mapping[str, IndexArray]
    resolution: int | None = None

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Set pruned weights to zero again, after an optimiser changed them."""
        for name, mask in self.masks.items():
            self._weight(name).mul_(mask)

    def _weight(self, name: str) -> Tensor:
        weight = self.model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        return weight


def apply_decisions(model: nn.Module, spec: NetworkSpec, decisions: Decisions) -> PrunedModel:
    """A copy of `model` that is pruned as `decisions` say. The weights that stay are inherited.

    Blocks and channels are removed first, channels by their importance in what is left; then each layer's mask is taken
    on what is left of its weights (JCW).

    Raises `ContractError` where the decisions do not fit the network.
    """
    lower(spec, decisions)
    kept = kept_channels(model, spec, decisions)
    pruned = remove_channels(model, spec, kept) if kept else copy.deepcopy(model)
    removed = spec.removed_ops(decisions.removed_blocks)
    if removed:
        pruned = remove_blocks(pruned, decisions.removed_blocks)
    masks = {}
    for name, pruning in decisions.pruning.items():
        if pruning.scheme is PruningScheme.DENSE or name in removed:
            continue
        weight = pruned.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        masks[name] = mask_of(weight, pruning)
    result = PrunedModel(model=pruned, masks=masks, kept=kept, resolution=decisions.resolution)
    result.apply_masks()
    return result


def mask_of(weight: Tensor, pruning: WeightPruning) -> Tensor:
    """`mask_for` of a convolution's weights (out, in, kh, kw) or a linear layer's (out, in), on the weights' device."""
    values = weight.detach().cpu().numpy()
    # Linear layers have no kernel axes.
    shaped = values if values.ndim == 4 else values[:, :, None, None]
    return torch.tensor(mask_for(shaped, pruning).reshape(values.shape)).to(weight.device)
