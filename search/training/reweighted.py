"""Reweighted dynamic regularisation: groups of weights are pulled to zero, the smaller ones the harder.

The penalty is strength * sum over layers and groups of alpha_g * ||w_g||_2 with alpha_g = 1 / (||w_g||_2 + epsilon),
set from the trained weights and again at milestones (LinLabNEU/reweighted_pruning5, training/main.py, and its
reweighted_l1_pruning.pdf). inferred: the form for blocks, the idea of BLK-REW (arXiv 2001.08357) and of
arXiv 2111.11581. The penalty majorises the sum of log(||w_g|| + epsilon). One strength serves all layers: rates emerge
from one threshold at the end (`search.rates`).

Against the released code: norms are absolute values everywhere (its irregular branch divides by w + epsilon, singular
for w near -epsilon), and the pull on a weight is bounded, as alpha reaches 1 / epsilon where a group has vanished.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from device_agent.contracts import PruningScheme, WeightPruning, canonical_json
from device_agent.synthesis import block_extent
from search.errors import SearchError

#: epsilon, and the epochs' parts after which alpha is set anew (released code: epochs 60, 120, 180, 240 of 300).
EPSILON = 1e-3
MILESTONES = (0.2, 0.4, 0.6, 0.8)
#: No group is pulled harder than this times the strength.
_MAX_ALPHA = 100.0


class ReweightedRegulariser:
    """A `Regulariser`. Layers without an entry in `prunings` are not touched.

    Args:
        prunings: The scheme, by its blocks, of each module's weights; densities play no part.
        strength: The factor of the penalty (lambda).
        epochs: Length of the run, for the milestones.
    """

    def __init__(self, prunings: Mapping[str, WeightPruning], strength: float, epochs: float) -> None:
        self._prunings = dict(sorted(prunings.items()))
        self._strength = strength
        self._epochs = epochs
        self._milestones = {max(1, round(part * epochs)) for part in MILESTONES}
        self._alphas: dict[str, Tensor] = {}

    def begin(self, model: nn.Module) -> None:
        self._reweight(model)

    @torch.no_grad()
    def add_gradients(self, model: nn.Module) -> None:
        """The penalty's gradient alpha_g * w / ||w_g||; zero for a group that is zero."""
        for name, pruning in self._prunings.items():
            weight = _weight(model, name)
            pull = torch.zeros_like(weight)
            for kind, norms in group_norms(weight, pruning).items():
                factors = self._alphas[f"{name}.{kind}"] / norms.clamp(min=1e-12)
                pull += weight * spread(factors, weight, pruning, kind)
            if weight.grad is None:
                raise SearchError(f"{name} has no gradient: the layer is not part of the network's output")
            weight.grad.add_(pull, alpha=self._strength)

    def after_step(self, model: nn.Module, step: int) -> None:
        pass

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        if epoch + 1 in self._milestones:
            self._reweight(model)

    def tensors(self) -> Mapping[str, Tensor]:
        return self._alphas

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._alphas = {name: tensors[name].clone() for name in self._alphas}

    def fingerprint(self) -> str:
        settings = {name: canonical_json(pruning) for name, pruning in self._prunings.items()}
        return f"reweighted {self._strength!r} {self._epochs!r} {EPSILON!r} {settings}"

    @torch.no_grad()
    def _reweight(self, model: nn.Module) -> None:
        for name, pruning in self._prunings.items():
            for kind, norms in group_norms(_weight(model, name), pruning).items():
                self._alphas[f"{name}.{kind}"] = (1.0 / (norms + EPSILON)).clamp(max=_MAX_ALPHA)


def group_norms(weight: Tensor, pruning: WeightPruning) -> dict[str, Tensor]:
    """The L2 norms of a layer's groups: of blocks, (filter blocks, channel blocks, kh, kw), each kernel position by
    itself; of whole kernels for patterns; of rows and of columns of blocks for BLOCK.
    """
    squares = _four(weight).detach().square()
    filters, channels = block_extent(pruning)
    if pruning.scheme is PruningScheme.BLOCK:
        return {
            "columns": _summed(squares, filters, 1).sqrt(),
            "rows": _summed(squares, 1, channels).sqrt(),
        }
    sums = _summed(squares, filters, channels)
    if pruning.scheme is PruningScheme.PATTERN:
        sums = sums.sum(dim=(2, 3), keepdim=True)
    return {"groups": sums.sqrt()}


def spread(values: Tensor, weight: Tensor, pruning: WeightPruning, kind: str) -> Tensor:
    """A value for each group as one for each weight: the inverse of `group_norms`'s shapes."""
    filters, channels = block_extent(pruning)
    if pruning.scheme is PruningScheme.BLOCK:
        filters, channels = (filters, 1) if kind == "columns" else (1, channels)
    outputs, inputs = weight.shape[:2]
    wide = values.repeat_interleave(filters, 0)[:outputs].repeat_interleave(channels, 1)[:, :inputs]
    return wide.expand(_four(weight).shape).reshape(weight.shape)


def _summed(squares: Tensor, filters: int, channels: int) -> Tensor:
    """Sums over blocks; the last ones are smaller where blocks do not divide the channels."""
    outputs, inputs = squares.shape[:2]
    padded = nn.functional.pad(squares, (0, 0, 0, 0, 0, -inputs % channels, 0, -outputs % filters))
    rows, columns = padded.shape[0] // filters, padded.shape[1] // channels
    return padded.reshape(rows, filters, columns, channels, *squares.shape[2:]).sum(dim=(1, 3))


def _four(weight: Tensor) -> Tensor:
    return weight if weight.ndim == 4 else weight[:, :, None, None]


def _weight(model: nn.Module, name: str) -> nn.Parameter:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, nn.Parameter)
    return weight


def group_scores(model: nn.Module, prunings: Mapping[str, WeightPruning]) -> dict[str, np.ndarray]:
    """For each layer the root mean square of its groups' weights, as many times as the group has weights: what one
    threshold over all layers ranks. For BLOCK a weight has the smaller of its row's and its column's.
    """
    scores = {}
    with torch.no_grad():
        for name, pruning in prunings.items():
            weight = _weight(model, name)
            ones = torch.ones_like(weight)
            kinds = []
            for kind, norms in group_norms(weight, pruning).items():
                sizes = group_norms(ones, pruning)[kind]
                kinds.append(spread(norms / sizes, weight, pruning, kind))
            scores[name] = torch.stack(kinds).min(dim=0).values.numpy().reshape(-1).astype(np.float64)
    return scores
