"""The hard gate of block removal: a block is accepted only if the network without it computes what it does with the
block's branch at zero, and fuses to the plan that lowering says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from search.domain.network import NetworkSpec, RefusedBlock, RemovableBlock
from search.domain.space import Decisions
from search.lowering import lower
from search.pruning.blocks import BlockClaim
from search.pruning.fold import first_difference
from search.pruning.fuse import fuse_evaluating
from search.pruning.operators import UnsupportedNetwork
from search.pruning.proof import RELATIVE_TOLERANCE, ProofNetwork

#: Networks from files are one graph, and their modules hold layers without being called.
_NOT_CALLED = "its layers are called one by one and not as a module, which could be left out"


def prove_blocks(
    network: ProofNetwork, spec: NetworkSpec, claims: Sequence[BlockClaim]
) -> tuple[tuple[RemovableBlock, ...], tuple[RefusedBlock, ...]]:
    """The claims that hold, each by itself and all together, under the name of their module; the others with reasons.

    Args:
        network: The network with random weights.
        spec: Its description. Its blocks play no part.
        claims: What `discover_blocks` found in its plan.
    """
    proved: list[tuple[BlockClaim, RemovableBlock]] = []
    refused: list[RefusedBlock] = []
    for claim in claims:
        reasons = []
        for module in claim.modules:
            if type(network.model.get_submodule(module)) is nn.Module:
                reason: str | None = _NOT_CALLED
            else:
                reason = _reason_to_refuse(network, spec, [(claim, claim.named(module))])
            if reason is None:
                proved.append((claim, claim.named(module)))
                break
            reasons.append(reason)
        else:
            refused.append(RefusedBlock(name=claim.writes, reason=reasons[-1]))
    together = _reason_to_refuse(network, spec, proved) if len(proved) > 1 else None
    if together is not None:
        refused += [
            RefusedBlock(name=claim.writes, reason=f"together with the other blocks: {together}") for claim, _ in proved
        ]
        proved = []
    return tuple(block for _, block in proved), tuple(refused)


@torch.no_grad()
def _reason_to_refuse(
    network: ProofNetwork, spec: NetworkSpec, claimed: Sequence[tuple[BlockClaim, RemovableBlock]]
) -> str | None:
    """Remove all `claimed` blocks at once. None where the network without them is what it should be."""
    blocks = tuple(block for _, block in claimed)
    names = tuple(sorted(block.name for block in blocks))
    channels, height, width = (int(n) for n in network.x.shape[1:])
    resolution = None if (channels, height, width) == spec.plan.input_shape else height
    with _without(network.model, names):
        try:
            actual = network.model(network.x)
            fused = fuse_evaluating(network.model, (channels, height, width), spec.plan.name)
        except (RuntimeError, UnsupportedNetwork) as error:
            return f"the network does not run without it: {str(error).splitlines()[0]}"
    with _silenced(network, [claim.branch_end for claim, _ in claimed]):
        expected = network.model(network.x)
    scale = float(expected.abs().max())
    difference = float((actual - expected).abs().max()) if actual.shape == expected.shape else float("inf")
    if not difference <= RELATIVE_TOLERANCE * scale:
        return (
            f"the network without it differs by {difference:.3g} from the one whose branch is zero, where outputs go "
            f"up to {scale:.3g}: what follows its shortcut is not the identity"
        )
    if torch.equal(expected, network.dense):
        return "removing it has no effect, so nothing is proved"
    plan = lower(replace(spec, blocks=blocks), Decisions(removed_blocks=names, resolution=resolution))
    return first_difference(fused.plan, plan)


@contextmanager
def _without(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """The named modules are the identity: what `remove_blocks` does to a copy, done in place, as copies are slow."""
    blocks = {name: model.get_submodule(name) for name in names}
    try:
        for name in names:
            model.set_submodule(name, nn.Identity().eval())
        yield
    finally:
        for name, block in blocks.items():
            model.set_submodule(name, block)


@contextmanager
def _silenced(network: ProofNetwork, layers: Sequence[str]) -> Iterator[None]:
    """The named layers, their batch norm included, put out zeros."""
    tensors: list[Tensor] = []
    for layer in layers:
        modules = network.modules[layer]
        weights = network.model.get_submodule(modules.weights)
        assert isinstance(weights, nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.BatchNorm1d)
        tensors += [t for t in (weights.weight.data, weights.bias) if t is not None]
        if modules.norm is not None:
            norm = network.model.get_submodule(modules.norm)
            assert isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d)
            tensors += [t for t in (norm.running_mean, norm.bias) if t is not None]
    before = [tensor.clone() for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.zero_()
        yield
    finally:
        for tensor, values in zip(tensors, before, strict=True):
            tensor.copy_(values)
