"""From a torch module to a `NetworkSpec`: its fused plan, and the pruning groups and removable blocks that are proved
on it.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from device_agent.contracts import Op
from search.domain.network import NetworkSpec, PruningGroup, RefusedGroup
from search.pruning.block_proof import prove_blocks
from search.pruning.blocks import discover_blocks
from search.pruning.fuse import fuse_network
from search.pruning.groups import discover_groups
from search.pruning.proof import GroupProver, ProofNetwork


def trace_network(model: nn.Module, input_shape: tuple[int, int, int], architecture: str) -> NetworkSpec:
    """Describe `model` for a search.

    Every group is tested by comparing the pruned network with the masked one (`search.pruning.proof`), every removable
    block by comparing the network without it with the one whose branch is zero (`search.pruning.block_proof`): first by
    itself and then all together. What fails is refused, with the reason.

    Args:
        model: The network; it is not changed.
        input_shape: (channels, h, w).
        architecture: The name that the spec and its plan get.

    Raises:
        UnsupportedNetwork: The network cannot be lowered to fused kernels.
    """
    fused = fuse_network(model, input_shape, architecture)
    groups, refused = discover_groups(fused.plan)
    kernels = {op.name: op.kernel.op for op in fused.plan.ops}
    # A linear layer that runs as a convolution over an image stays dense: its weights' two axes are the other's four.
    prunable = tuple(
        name
        for name, modules in fused.modules.items()
        if kernels[name] is Op.FULLY_CONNECTED
        or (isinstance(layer := model.get_submodule(modules.weights), nn.Conv2d) and layer.groups == 1)
    )
    claimed = NetworkSpec(
        architecture=architecture, plan=fused.plan, groups=groups, refused=refused, prunable_ops=prunable
    )
    network = ProofNetwork(model, input_shape)
    proved, failed = _prove(network, claimed)
    claims, kept_blocks = discover_blocks(fused.plan)
    blocks, failed_blocks = prove_blocks(network, claimed, claims)
    return replace(
        claimed,
        groups=proved,
        refused=(*refused, *failed),
        blocks=blocks,
        refused_blocks=(*kept_blocks, *failed_blocks),
    )


def _prove(network: ProofNetwork, claimed: NetworkSpec) -> tuple[tuple[PruningGroup, ...], tuple[RefusedGroup, ...]]:
    prover = GroupProver(network, claimed)
    proved: list[PruningGroup] = []
    failed: list[RefusedGroup] = []
    for group in claimed.groups:
        reason = prover.reason_to_refuse((group,))
        if reason is None:
            proved.append(group)
        else:
            failed.append(RefusedGroup(name=group.name, channels=group.channels, reason=reason))
    reason = prover.reason_to_refuse(tuple(proved)) if len(proved) > 1 else None
    if reason is not None:
        failed += [
            RefusedGroup(name=g.name, channels=g.channels, reason=f"together with the other groups: {reason}")
            for g in proved
        ]
        proved = []
    return tuple(proved), tuple(failed)
