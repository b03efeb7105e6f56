"""The hard gate of channel removal: a group is accepted only if the pruned network computes what the masked one does.

Tracing tools for pruning fail silently on some graphs: a shifted index still runs. So each group's claim is tested on a
copy of the network with random weights (real ones may hide an error behind zeros), in double precision.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from search.domain.network import Axis, NetworkSpec, PruningGroup
from search.pruning.channels import remove_channels
from search.pruning.fuse import fused_modules
from search.pruning.groups import IndexArray

#: Sums of some thousand products in double precision agree much better than this.
RELATIVE_TOLERANCE = 1e-9
_PROOF_RESOLUTION = 32


class ProofNetwork:
    """A network with random weights in double precision, an input for it, and its output.

    Large inputs are replaced by small ones where the network runs on them: which channel meets which does not depend
    on the number of pixels.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, int, int]) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.model = _randomised(model, self.generator)
        self.modules = fused_modules(self.model, input_shape)
        self.x = self._proof_input(input_shape)
        with torch.no_grad():
            self.dense: Tensor = self.model(self.x)

    @torch.no_grad()
    def _proof_input(self, input_shape: tuple[int, int, int]) -> Tensor:
        full = torch.randn((2, *input_shape), generator=self.generator, dtype=torch.float64)
        if min(input_shape[1:]) <= _PROOF_RESOLUTION:
            return full
        small = full[:, :, :_PROOF_RESOLUTION, :_PROOF_RESOLUTION]
        try:
            runs = bool(torch.isfinite(self.model(small)).all())
        except RuntimeError:
            runs = False
        return small if runs else full


class GroupProver:
    """Tests pruning groups of one network."""

    def __init__(self, network: ProofNetwork, spec: NetworkSpec) -> None:
        self._spec = spec
        self._generator = network.generator
        self._model = network.model
        self._modules = network.modules
        self._x = network.x
        self._dense = network.dense
        self._in_channels = {op.name: op.kernel.in_channels for op in spec.plan.ops}
        self._groups = {op.name: op.kernel.groups for op in spec.plan.ops}

    @torch.no_grad()
    def reason_to_refuse(self, groups: tuple[PruningGroup, ...]) -> str | None:
        """Remove half of the channels of all `groups` at once. None where pruned and masked network agree."""
        if any(group.channels == 1 for group in groups):
            return "it has one channel, so there is none to remove"
        kept = {group.name: self._random_half(group.channels) for group in groups}
        masked = copy.deepcopy(self._model)
        for group in groups:
            self._mask(masked, group, kept[group.name])
        expected = masked(self._x)
        try:
            actual = remove_channels(self._model, self._spec, kept)(self._x)
        except (RuntimeError, IndexError, ValueError) as error:
            return f"the network does not run with channels removed: {str(error).splitlines()[0]}"
        if actual.shape != expected.shape:
            return f"the output's shape changes from {tuple(expected.shape)} to {tuple(actual.shape)}"
        scale = float(expected.abs().max())
        difference = float((actual - expected).abs().max())
        if not difference <= RELATIVE_TOLERANCE * scale:
            return (
                f"the pruned network's output differs from the masked one's by {difference:.3g}, "
                f"where outputs go up to {scale:.3g}"
            )
        if torch.equal(expected, self._dense):
            return "removing its channels has no effect, so nothing is proved"
        return None

    def _mask(self, model: nn.Module, group: PruningGroup, kept: IndexArray) -> None:
        """Zero what every consumer reads of the removed channels: exact for any operator in between."""
        removed = np.setdiff1d(np.arange(group.channels), kept)
        for member in group.members:
            if member.axis is Axis.IN:
                weight = model.get_submodule(self._modules[member.op].weights).weight
                assert isinstance(weight, Tensor)
                groups = self._groups[member.op]
                channels = member.offset + member.step * removed
                of_group, in_group = np.divmod(channels, self._in_channels[member.op] // groups)
                # A filter reads the channels of its group.
                blocks = weight.data.view(groups, len(weight) // groups, self._in_channels[member.op] // groups, -1)
                blocks[of_group, :, in_group] = 0.0

    def _random_half(self, channels: int) -> IndexArray:
        order = torch.randperm(channels, generator=self._generator).numpy()
        return np.sort(order[: max(1, channels // 2)])


def verify_group(model: nn.Module, spec: NetworkSpec, group: PruningGroup) -> str | None:
    """Why `group` cannot be pruned in `model`, or None where that is proved to be right."""
    return GroupProver(ProofNetwork(model, spec.plan.input_shape), spec).reason_to_refuse((group,))


@torch.no_grad()
def _randomised(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy in double precision with random parameters and statistics, scaled to keep activations at size one."""
    model = copy.deepcopy(model).double().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.normal_(0.0, 0.1, generator=generator)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            if module.affine:
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0.0, 0.2, generator=generator)
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_(0.0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model
