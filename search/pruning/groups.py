"""Pruning groups from a plan's data flow: which channels can only be removed together."""

from __future__ import annotations

from device_agent.contracts import NETWORK_INPUT, NetworkPlan, Op
from search.domain.network import Axis, GroupMember, PruningGroup, RefusedGroup


def discover_groups(plan: NetworkPlan) -> tuple[tuple[PruningGroup, ...], tuple[RefusedGroup, ...]]:
    """The channel groups of `plan`, in execution order of their first producer, and those that must stay dense.

    Tensors that an add, a residual, a depthwise convolution or a pool ties together share their channels. Those of the
    network's input and output are given and in neither list. What is found here is a claim, which
    `search.pruning.proof` tests on the network itself.
    """
    tied = _TiedTensors()
    mixed: dict[str, str] = {}
    for op in plan.ops:
        if op.kernel.op in (Op.CONV2D, Op.FULLY_CONNECTED):
            sources: tuple[str, ...] = () if op.residual is None else (op.residual,)
        elif op.kernel.op is Op.SHORTCUT_PAD and op.kernel.in_channels != op.kernel.out_channels:
            sources = ()
            for tensor in (op.inputs[0], op.name):
                mixed[tensor] = f"{op.name!r} puts zero channels around its channels, which shifts them in a shortcut"
        else:
            sources = op.inputs
        for source in sources:
            tied.tie(source, op.name)
    fixed = {tied.root(NETWORK_INPUT), tied.root(plan.output_name)}
    reasons = {tied.root(tensor): reason for tensor, reason in mixed.items()}
    members: dict[str, list[GroupMember]] = {}
    channels: dict[str, int] = {}
    for op in plan.ops:
        if op.kernel.op in (Op.CONV2D, Op.FULLY_CONNECTED):
            members.setdefault(tied.root(op.inputs[0]), []).append(GroupMember(op=op.name, axis=Axis.IN))
        if op.kernel.op.has_weights:
            root = tied.root(op.name)
            members.setdefault(root, []).append(GroupMember(op=op.name, axis=Axis.OUT))
            channels[root] = op.kernel.out_channels
    groups, refused = [], []
    for root, count in channels.items():
        if root in fixed:
            continue
        name = next(member.op for member in members[root] if member.axis is Axis.OUT)
        if root in reasons:
            refused.append(RefusedGroup(name=name, channels=count, reason=reasons[root]))
        else:
            groups.append(PruningGroup(name=name, channels=count, members=tuple(members[root])))
    return tuple(groups), tuple(refused)


class _TiedTensors:
    """Disjoint sets of tensor names."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def root(self, tensor: str) -> str:
        parent = self._parent.setdefault(tensor, tensor)
        if parent == tensor:
            return tensor
        self._parent[tensor] = self.root(parent)
        return self._parent[tensor]

    def tie(self, first: str, second: str) -> None:
        self._parent[self.root(second)] = self.root(first)
