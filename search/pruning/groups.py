"""Pruning groups from a plan's data flow: which channels can only be removed together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import NETWORK_INPUT, KernelSpec, NetworkPlan, Op, PlanOp
from search.domain.network import Axis, GroupMember, NetworkSpec, PruningGroup, RefusedGroup

IndexArray = NDArray[np.int64]

#: Operators with channels of their own on the OUT side. The parts of a split are among them, as their counts change.
_PARTS = (Op.FIRST_CHANNELS, Op.LAST_CHANNELS)


def discover_groups(plan: NetworkPlan) -> tuple[tuple[PruningGroup, ...], tuple[RefusedGroup, ...]]:
    """The channel groups of `plan`, in execution order of their first producer, and those that must stay dense.

    Channels that an add, a residual, a gate or a shuffle ties together are removed together, as are those of a grouped
    convolution that have the same place in its groups; parts of a concatenation and of a split stay apart. Channels
    that go the same ways, in regular steps, make a group: its first channels may be tied to a part of an operator only.
    Those of the network's input and output are given and in neither list. What is found here is a claim, which
    `search.pruning.proof` tests on the network itself.
    """
    streams = _Streams()
    streams.tensors[NETWORK_INPUT] = streams.new(plan.input_shape[0])
    for op in plan.ops:
        streams.add(op)
    fixed = {streams.root(atom) for name in (NETWORK_INPUT, plan.output_name) for atom in streams.tensors[name]}
    reasons = {streams.root(atom): reason for atom, reason in streams.refused.items()}
    sides = list(_sides(plan, streams))
    places: dict[int, list[tuple[int, int]]] = {}
    for number, (_, _, atoms) in enumerate(sides):
        for channel, atom in enumerate(atoms.tolist()):
            places.setdefault(streams.root(atom), []).append((number, channel))
    runs: dict[tuple[str | None, tuple[int, ...]], list[_Run]] = {}
    for root, found in places.items():
        if root in fixed:
            continue
        own = runs.setdefault((reasons.get(root), tuple(number for number, _ in found)), [])
        channels = [channel for _, channel in found]
        if not own or not own[-1].takes(channels):
            own.append(_Run(first=channels, last=channels))
    kernels = {op.name: op.kernel for op in plan.ops}
    groups, refused = [], []
    for (reason, numbers), found_runs in runs.items():
        for run in found_runs:
            members = tuple(
                GroupMember(op=sides[number][0], axis=sides[number][1], offset=offset, step=step)
                for number, offset, step in zip(numbers, run.first, run.steps, strict=True)
            )
            makers = [(n, m) for n, m in zip(numbers, members, strict=True) if m.axis is Axis.OUT]
            if not makers:
                continue
            place, maker = makers[0]
            name = _name(maker, run.count, members, kernels[maker.op])
            if reason is None:
                group = PruningGroup(name=name, channels=run.count, members=members)
                groups.append(((place, maker.offset), group))
            else:
                refused.append(((place, maker.offset), RefusedGroup(name=name, channels=run.count, reason=reason)))
    return (
        tuple(group for _, group in sorted(groups, key=lambda found: found[0])),
        tuple(group for _, group in sorted(refused, key=lambda found: found[0])),
    )


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
            mask[member.channels(group.channels)] = False
            mask[member.offset + member.step * indices] = True
    return {side: np.flatnonzero(mask).astype(np.int64) for side, mask in stays.items()}


@dataclass(slots=True)
class _Run:
    """Channels one behind the other that go the same ways: on every side in steps of its own."""

    first: list[int]
    last: list[int]
    count: int = 1
    _steps: list[int] | None = None

    @property
    def steps(self) -> list[int]:
        return self._steps or [1] * len(self.first)

    def takes(self, channels: list[int]) -> bool:
        """Append a channel with these places, if they continue the steps; returns whether they do."""
        steps = [now - before for before, now in zip(self.last, channels, strict=True)]
        if min(steps) < 1 or self._steps not in (None, steps):
            return False
        self._steps, self.last = steps, channels
        self.count += 1
        return True


def _name(maker: GroupMember, count: int, members: tuple[GroupMember, ...], kernel: KernelSpec) -> str:
    """The first producer's name; of a part of its channels, with the first one of them."""
    own = sum(member.op == maker.op and member.axis is Axis.OUT for member in members) * count
    return maker.op if own == kernel.out_channels else f"{maker.op}:{maker.offset}"


def _sides(plan: NetworkPlan, streams: _Streams) -> Iterator[tuple[str, Axis, IndexArray]]:
    """The sides of operators that lose channels by themselves, with those channels, in execution order."""
    for op in plan.ops:
        if op.kernel.op in (Op.CONV2D, Op.FULLY_CONNECTED):
            yield op.name, Axis.IN, streams.tensors[op.inputs[0]]
        if op.kernel.op.has_weights or op.kernel.op in _PARTS:
            yield op.name, Axis.OUT, streams.tensors[op.name]


@dataclass(slots=True)
class _Streams:
    """The channels of every tensor as atoms, of which disjoint sets are tied, and those that stay dense with the
    reason.
    """

    tensors: dict[str, IndexArray] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    _parents: list[int] = field(default_factory=list)

    def new(self, count: int) -> IndexArray:
        """Atoms of their own."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, atom: int) -> int:
        parents = self._parents
        while parents[atom] != atom:
            parents[atom] = atom = parents[parents[atom]]
        return int(atom)

    def add(self, op: PlanOp) -> None:
        kernel = op.kernel
        read = self.tensors[op.inputs[0]]
        if kernel.op in (Op.CONV2D, Op.FULLY_CONNECTED):
            made = self.new(kernel.out_channels)
            if kernel.groups > 1:
                self._tie_blocks(read, kernel.groups)
                self._tie_blocks(made, kernel.groups)
            if op.residual is not None:
                self._tie(made, self.tensors[op.residual])
        elif kernel.op is Op.CONCAT:
            made = np.concatenate((read, self.tensors[op.inputs[1]]))
        elif kernel.op is Op.FIRST_CHANNELS:
            made = read[: kernel.out_channels]
        elif kernel.op is Op.LAST_CHANNELS:
            made = read[-kernel.out_channels :]
        elif kernel.op is Op.CHANNEL_SHUFFLE:
            # Blocks that keep the same places are shuffled to the same order as before.
            self._tie_blocks(read, kernel.groups)
            made = read.reshape(kernel.groups, -1).T.reshape(-1)
        elif kernel.op is Op.SHORTCUT_PAD and kernel.in_channels != kernel.out_channels:
            made = self.new(kernel.out_channels)
            reason = f"{op.name!r} puts zero channels around its channels, which shifts them in a shortcut"
            for atom in (*read.tolist(), *made.tolist()):
                self.refused.setdefault(atom, reason)
        else:
            made = np.repeat(read, kernel.channel_multiplier)
            for other in op.inputs[1:]:
                self._tie(made, self.tensors[other])
        self.tensors[op.name] = made

    def _tie_blocks(self, atoms: IndexArray, blocks: int) -> None:
        """Tie the channels that have the same place in each of several blocks."""
        first, *others = atoms.reshape(blocks, -1)
        for other in others:
            self._tie(first, other)

    def _tie(self, one: IndexArray, other: IndexArray) -> None:
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            # The earlier atom stands for all, so that groups come in the order of the network.
            first, second = sorted((self.root(a), self.root(b)))
            self._parents[second] = first
