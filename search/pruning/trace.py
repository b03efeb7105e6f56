"""From a torch module to a `NetworkSpec`: its fused plan and the pruning groups that are proved on it."""

from __future__ import annotations

from torch import nn

from device_agent.contracts import Op
from search.domain.network import NetworkSpec, PruningGroup, RefusedGroup
from search.pruning.fuse import fuse_network
from search.pruning.groups import discover_groups
from search.pruning.proof import GroupProver


def trace_network(model: nn.Module, input_shape: tuple[int, int, int], architecture: str) -> NetworkSpec:
    """Describe `model` for a search.

    Every group is tested by comparing the pruned network with the masked one (`search.pruning.proof`), first by itself
    and then all together; what fails is refused, with the reason.

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
    proved, failed = _prove(model, claimed)
    return NetworkSpec(
        architecture=architecture,
        plan=fused.plan,
        groups=proved,
        refused=(*refused, *failed),
        prunable_ops=prunable,
    )


def _prove(model: nn.Module, claimed: NetworkSpec) -> tuple[tuple[PruningGroup, ...], tuple[RefusedGroup, ...]]:
    if not claimed.groups:
        return (), ()
    prover = GroupProver(model, claimed)
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
