"""Pruning groups from a plan's data flow: which channels can only be removed together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import NETWORK_INPUT, NetworkPlan, Op, PlanOp
from search.domain.network import Axis, GroupMember, NetworkSpec, PruningGroup, RefusedGroup

IndexArray = NDArray[np.int64]


def discover_groups(plan: NetworkPlan) -> tuple[tuple[PruningGroup, ...], tuple[RefusedGroup, ...]]:
    """The channel groups of `plan`, in execution order of their first producer, and those that must stay dense.

    Tensors that an add, a residual, a gate, a depthwise convolution or a pool ties together share their channels; the
    parts of a concatenation stay apart. Those of the network's input and output are given and in neither list. What is
    found here is a claim, which `search.pruning.proof` tests on the network itself.
    """
    streams = _Streams({NETWORK_INPUT: (_Part(producer=NETWORK_INPUT, channels=plan.input_shape[0]),)})
    for op in plan.ops:
        streams.add(op)
    fixed = {streams.root(part) for tensor in (NETWORK_INPUT, plan.output_name) for part in streams.parts[tensor]}
    reasons = {streams.tied.root(producer): reason for producer, reason in streams.refused.items()}
    members: dict[str, list[GroupMember]] = {}
    channels: dict[str, int] = {}
    for op in plan.ops:
        sides = {}
        if op.kernel.op in (Op.CONV2D, Op.FULLY_CONNECTED):
            sides[Axis.IN] = streams.parts[op.inputs[0]]
        if op.kernel.op.has_weights:
            sides[Axis.OUT] = streams.parts[op.name]
        for axis, parts in sides.items():
            offset = 0
            for part in parts:
                root = streams.root(part)
                members.setdefault(root, []).append(GroupMember(op=op.name, axis=axis, offset=offset))
                offset += part.channels
                if axis is Axis.OUT:
                    channels[root] = part.channels
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


def kept_sides(spec: NetworkSpec, kept: Mapping[str, IndexArray]) -> dict[tuple[str, Axis], IndexArray]:
    """Which channels stay on each side of the operators, ascending, where `kept` says so for some groups by name.

    Raises `ContractError` on a group that the network does not have, `IndexError` where members do not fit.
    """
    kernels = {op.name: op.kernel for op in spec.plan.ops}
    stays: dict[tuple[str, Axis], NDArray[np.bool_]] = {}
    for name, indices in kept.items():
        group = spec.group(name)
        for member in group.members:
            kernel = kernels[member.op]
            total = kernel.out_channels if member.axis is Axis.OUT else kernel.in_channels
            mask = stays.setdefault((member.op, member.axis), np.ones(total, dtype=np.bool_))
            mask[member.offset : member.offset + group.channels] = False
            mask[member.offset + indices] = True
    return {side: np.flatnonzero(mask).astype(np.int64) for side, mask in stays.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A run of a tensor's channels: all those that one operator makes."""

    producer: str
    channels: int


@dataclass(slots=True)
class _Streams:
    """The parts of every tensor in their order, which producers are tied, and which stay dense, with the reason."""

    parts: dict[str, tuple[_Part, ...]]
    tied: _TiedNames = field(default_factory=lambda: _TiedNames())
    refused: dict[str, str] = field(default_factory=dict)

    def root(self, part: _Part) -> str:
        return self.tied.root(part.producer)

    def add(self, op: PlanOp) -> None:
        kernel = op.kernel
        others: tuple[str, ...] = ()
        read = self.parts[op.inputs[0]]
        own = (_Part(producer=op.name, channels=kernel.out_channels),)
        if kernel.op in (Op.CONV2D, Op.FULLY_CONNECTED):
            self.parts[op.name] = own
            if op.residual is not None:
                others = (op.residual,)
        elif kernel.op is Op.CONCAT:
            self.parts[op.name] = read + self.parts[op.inputs[1]]
        elif kernel.op is Op.SHORTCUT_PAD and kernel.in_channels != kernel.out_channels:
            self.parts[op.name] = own
            reason = f"{op.name!r} puts zero channels around its channels, which shifts them in a shortcut"
            self._refuse((*read, *own), reason)
        else:
            self.parts[op.name] = read
            others = op.inputs[1:]
        for other in others:
            self._tie(op, self.parts[other], self.parts[op.name])

    def _tie(self, op: PlanOp, first: tuple[_Part, ...], second: tuple[_Part, ...]) -> None:
        if [part.channels for part in first] != [part.channels for part in second]:
            sizes = " and ".join("+".join(str(part.channels) for part in parts) for parts in (first, second))
            self._refuse((*first, *second), f"{op.name!r} meets concatenations whose parts differ, {sizes} channels")
            return
        for one, other in zip(first, second, strict=True):
            self.tied.tie(one.producer, other.producer)

    def _refuse(self, parts: tuple[_Part, ...], reason: str) -> None:
        for part in parts:
            self.refused.setdefault(part.producer, reason)


class _TiedNames:
    """Disjoint sets of names."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def root(self, name: str) -> str:
        parent = self._parent.setdefault(name, name)
        if parent == name:
            return name
        self._parent[name] = self.root(parent)
        return self._parent[name]

    def tie(self, first: str, second: str) -> None:
        self._parent[self.root(second)] = self.root(first)
