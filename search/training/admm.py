"""ADMM for pruning: weights are drawn towards what their scheme and density allow, while they still learn.

S. Boyd et al.: Distributed optimization and statistical learning via the alternating direction method of multipliers,
2011, section 9.1 (non-convex constraint sets), in the scaled form; used for pruning by T. Zhang et al., arXiv
1804.03294. The order of updates is that of JCW's released code (lib/Trainer, stage ADMM), which calls the projected
copy U and the scaled dual variable Z.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from device_agent.contracts import ContractError, PruningScheme, WeightPruning, canonical_json, encode
from search.pruning.apply import mask_of

#: JCW's penalty (its released res18-train.yaml: rho_admm).
PENALTY = 0.01


class Admm:
    """The `Regulariser` of one ADMM run.

    Args:
        pruning: What each layer's weights shall become, by module; dense ones are left alone.
        period_steps: Steps between two projections. JCW projects once an epoch.
        penalty: Weight of the quadratic term (rho).
    """

    def __init__(self, pruning: Mapping[str, WeightPruning], *, period_steps: int, penalty: float = PENALTY) -> None:
        if period_steps < 1 or not penalty > 0:
            raise ContractError(f"ADMM needs period_steps >= 1 and a positive penalty: {period_steps!r}, {penalty!r}")
        self._pruning = {n: p for n, p in sorted(pruning.items()) if p.scheme is not PruningScheme.DENSE}
        self._period_steps = period_steps
        self._penalty = penalty
        self._projected: dict[str, Tensor] = {}
        self._dual: dict[str, Tensor] = {}

    @torch.no_grad()
    def begin(self, model: nn.Module) -> None:
        for name in self._pruning:
            self._dual[name] = torch.zeros_like(_weight(model, name))
        self._update(model)

    @torch.no_grad()
    def add_gradients(self, model: nn.Module) -> None:
        """grad += rho (W - U + Z): the gradient of rho / 2 |W - U + Z|^2 (released code, lib/Trainer)."""
        for name in self._pruning:
            weight = _weight(model, name)
            if weight.grad is None:  # frozen
                continue
            weight.grad.add_(weight - self._projected[name] + self._dual[name], alpha=self._penalty)

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        if (step + 1) % self._period_steps == 0:
            self._update(model)

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        """Periods are counted in steps."""

    def tensors(self) -> Mapping[str, Tensor]:
        return {f"{kind}.{name}": t for kind, ts in self._state().items() for name, t in ts.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for kind, ts in self._state().items():
            for name in ts:
                ts[name] = tensors[f"{kind}.{name}"]

    def fingerprint(self) -> str:
        pruning = {name: encode(p) for name, p in self._pruning.items()}
        return canonical_json(["admm", self._period_steps, self._penalty, pruning])

    def relative_residual(self, model: nn.Module) -> float:
        """|W - project(W)| / |W| over all projected layers: the part of the weights that masks would cut off."""
        cut = total = 0.0
        for name, pruning in self._pruning.items():
            weight = _weight(model, name).detach()
            total += float(weight.square().sum())
            cut += float((weight - project(weight, pruning)).square().sum())
        return (cut / total) ** 0.5 if total else 0.0

    def _state(self) -> dict[str, dict[str, Tensor]]:
        return {"projected": self._projected, "dual": self._dual}

    def _update(self, model: nn.Module) -> None:
        """U = project(W + Z), then Z = Z + W - U (released code, lib/Trainer)."""
        for name, pruning in self._pruning.items():
            weight = _weight(model, name)
            self._projected[name] = project(weight + self._dual[name], pruning)
            self._dual[name] += weight - self._projected[name]


def project(weight: Tensor, pruning: WeightPruning) -> Tensor:
    """The nearest weights of that scheme and density: the blocks with the largest L2 norms stay."""
    return weight * mask_of(weight, pruning)


def _weight(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight
