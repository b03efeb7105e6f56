"""From decisions to the fused kernels that will run: the plan of a pruned network, without touching a weight.

A search lowers every candidate, so what depends on the network alone is prepared once (`Lowering`), and kernels
are shared between candidates.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from device_agent.contracts import (
    DENSE,
    NETWORK_INPUT,
    ContractError,
    KernelSpec,
    NetworkPlan,
    Op,
    PlanOp,
    WeightPruning,
)
from search.domain.network import Axis, NetworkSpec
from search.domain.space import Decisions

#: How many networks `lower` keeps prepared. A worker handles one search at a time; the demo and tests a few.
_PREPARED_NETWORKS = 8

#: Operators whose output has as many channels as their first input, or a fixed number for each of them.
KEEPS_CHANNELS = frozenset(
    {
        Op.DEPTHWISE_CONV2D,
        Op.ADD,
        Op.MUL,
        Op.MAX_POOL,
        Op.AVG_POOL,
        Op.GLOBAL_AVG_POOL,
        Op.CHANNEL_SHUFFLE,
    }
)

#: Input and output channels, height, width, pruning; inputs and residual.
_OpKey = tuple[int, int, int, int, WeightPruning, tuple[str, ...], str | None]


def lower(spec: NetworkSpec, decisions: Decisions) -> NetworkPlan:
    """The plan of `spec` with `decisions` applied: blocks and channels removed, weights pruned, resolution changed.

    What `decisions` does not name stays as it is in `spec.plan`.

    Raises `ContractError` on a group, operator, block or count that the network does not have, and where the decisions
    lead to tensors that do not fit.
    """
    return _prepared(_ByIdentity(spec)).lower(decisions)


class Lowering:
    """A network prepared for lowering. Thread-safe as far as the caches are dictionaries: entries are only added."""

    def __init__(self, spec: NetworkSpec) -> None:
        self._spec = spec
        self._full_channels = {group.name: group.channels for group in spec.groups}
        self._made = _made_channels(spec)
        self._prunable = frozenset(spec.prunable_ops)
        _check_spec(spec, self._made)
        self._planned: list[dict[_OpKey, PlanOp]] = [{} for _ in spec.plan.ops]

    def lower(self, decisions: Decisions) -> NetworkPlan:
        """See `lower`."""
        self._check(decisions)
        channels, pruning = decisions.channels, decisions.pruning
        shape = self._spec.plan.input_shape
        if decisions.resolution is not None:
            shape = (shape[0], decisions.resolution, decisions.resolution)
        shapes: dict[str, tuple[int, int, int]] = {NETWORK_INPUT: shape}
        removed = self._spec.removed_ops(decisions.removed_blocks)
        tensors = _Renamed(self._spec, decisions.removed_blocks)
        ops = []
        for op, known in zip(self._spec.plan.ops, self._planned, strict=True):
            if op.name in removed:
                continue
            inputs = tuple(tensors[name] for name in op.inputs) if removed else op.inputs
            residual = op.residual if op.residual is None else tensors[op.residual]
            in_channels, height, width = shapes[inputs[0]]
            if op.kernel.op in KEEPS_CHANNELS:
                out_channels = in_channels * op.kernel.channel_multiplier
            elif op.kernel.op is Op.CONCAT:
                out_channels = in_channels + shapes[inputs[1]][0]
            else:
                made = self._made[op.name]
                out_channels = made.given + sum(channels.get(g, self._full_channels[g]) for g in made.groups)
            shape_key = (in_channels, out_channels, height, width, pruning.get(op.name, op.kernel.pruning))
            key = (*shape_key, inputs, residual)
            planned = known.get(key)
            if planned is None:
                rewired = op if inputs == op.inputs else dataclasses.replace(op, inputs=inputs)
                if residual != op.residual:
                    rewired = dataclasses.replace(rewired, residual=residual)
                planned = known[key] = with_shape(rewired, *shape_key)
            ops.append(planned)
            kernel = planned.kernel
            shapes[op.name] = (out_channels, kernel.output_h, kernel.output_w)
        return NetworkPlan(name=self._spec.plan.name, input_shape=shape, ops=tuple(ops))

    def _check(self, decisions: Decisions) -> None:
        for group, count in decisions.channels.items():
            full = self._full_channels.get(group)
            if full is None:
                known = ", ".join(self._full_channels) or "none"
                raise ContractError(f"no pruning group {group!r} in {self._spec.architecture}; there are {known}")
            if not 1 <= count <= full:
                raise ContractError(f"{count!r} channels of group {group!r} are not in 1..{full}")
        for name, pruned in decisions.pruning.items():
            if name not in self._prunable and pruned != DENSE:
                known = ", ".join(self._spec.prunable_ops) or "none"
                raise ContractError(
                    f"the weights of {name!r} cannot be pruned in {self._spec.architecture}; prunable are {known}"
                )
        if decisions.resolution is not None and decisions.resolution < 1:
            raise ContractError(f"the resolution {decisions.resolution!r} must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelCount:
    """What a number of channels is made of: a given one, and those of `groups`. Around concatenations, splits and
    shuffles these are several groups, or one more than once.
    """

    given: int = 0
    groups: tuple[str, ...] = ()

    @property
    def group(self) -> str | None:
        """The pruning group, where it is one alone."""
        return self.groups[0] if len(self.groups) == 1 and self.given == 0 else None

    @property
    def is_sum(self) -> bool:
        """Whether it changes, but is not the number of one group."""
        return bool(self.groups) and self.group is None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSources:
    """What decides how many channels an operator reads (of its first input) and writes."""

    inputs: ChannelCount
    outputs: ChannelCount


def channel_sources(spec: NetworkSpec) -> dict[str, ChannelSources]:
    """For each operator of `spec.plan` the groups that decide how many channels it reads and writes."""
    made = _made_channels(spec)
    written = {NETWORK_INPUT: ChannelCount(given=spec.plan.input_shape[0])}
    sources = {}
    for op in spec.plan.ops:
        read, *others = (written[name] for name in op.inputs)
        if op.kernel.op in KEEPS_CHANNELS:
            times = op.kernel.channel_multiplier
            counts = ChannelCount(given=read.given * times, groups=read.groups * times)
        elif op.kernel.op is Op.CONCAT:
            counts = ChannelCount(
                given=read.given + sum(other.given for other in others),
                groups=(*read.groups, *(group for other in others for group in other.groups)),
            )
        else:
            counts = made[op.name]
        written[op.name] = counts
        sources[op.name] = ChannelSources(inputs=read, outputs=counts)
    return sources


class _Renamed(dict[str, str]):
    """The tensor that is read in place of another when blocks are removed; the same one where nothing changes."""

    def __init__(self, spec: NetworkSpec, blocks: Sequence[str]) -> None:
        super().__init__({spec.block(name).writes: spec.block(name).reads for name in blocks})

    def __getitem__(self, tensor: str) -> str:
        while (other := self.get(tensor)) is not None:
            tensor = other
        return tensor


class _ByIdentity:
    """A network as a cache key: by identity, as hashing a whole plan would cost more than lowering it."""

    __slots__ = ("spec",)

    def __init__(self, spec: NetworkSpec) -> None:
        self.spec = spec

    def __hash__(self) -> int:
        return id(self.spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.spec is self.spec


@functools.lru_cache(maxsize=_PREPARED_NETWORKS)
def _prepared(key: _ByIdentity) -> Lowering:
    return Lowering(key.spec)


def _made_channels(spec: NetworkSpec) -> dict[str, ChannelCount]:
    """What the output channels are made of, of each operator that neither keeps its inputs' nor joins them."""
    groups: dict[str, list[str]] = {
        op.name: [] for op in spec.plan.ops if op.kernel.op not in KEEPS_CHANNELS and op.kernel.op is not Op.CONCAT
    }
    for group in spec.groups:
        for member in group.members:
            if member.axis is Axis.OUT and member.op in groups:
                groups[member.op].append(group.name)
    full = {group.name: group.channels for group in spec.groups}
    return {
        op.name: ChannelCount(
            given=op.kernel.out_channels - sum(full[g] for g in groups[op.name]), groups=tuple(groups[op.name])
        )
        for op in spec.plan.ops
        if op.name in groups
    }


def _check_spec(spec: NetworkSpec, made: Mapping[str, ChannelCount]) -> None:
    by_name = {op.name: op.kernel for op in spec.plan.ops}
    members = (member.op for group in spec.groups for member in group.members)
    for name in (*members, *spec.prunable_ops):
        if name not in by_name:
            raise ContractError(f"{spec.architecture} names the operator {name!r}, which its plan does not have")
    for name, count in made.items():
        if count.given < 0:
            raise ContractError(
                f"the outputs of {name!r} are in the pruning groups {', '.join(map(repr, count.groups))}, which have "
                f"{by_name[name].out_channels - count.given} channels together, but there are "
                f"{by_name[name].out_channels}"
            )
    for claimed in spec.groups:
        for member in claimed.members:
            kernel = by_name[member.op]
            total = kernel.out_channels if member.axis is Axis.OUT else kernel.in_channels
            last = member.offset + member.step * (claimed.channels - 1)
            if member.offset < 0 or member.step < 1 or last >= total:
                raise ContractError(
                    f"group {claimed.name!r} has {claimed.channels} channels from {member.offset} to {last} among "
                    f"those of {member.op!r} ({member.axis}), which are {total}"
                )
    for block in spec.blocks:
        unknown = [name for name in (*block.ops, block.writes) if name not in by_name]
        if unknown or block.writes == spec.plan.output_name:
            raise ContractError(
                f"the block {block.name!r} names the operator {unknown[0]!r}, which the plan does not have"
                if unknown
                else f"the block {block.name!r} writes the network's output, so it cannot be removed"
            )
    for name in spec.prunable_ops:
        if not by_name[name].op.has_weights:
            raise ContractError(f"{name!r} is listed as prunable, but {by_name[name].op} has no weights")


def with_shape(
    op: PlanOp, in_channels: int, out_channels: int, height: int, width: int, pruning: WeightPruning
) -> PlanOp:
    """`op` with another shape and pruning. Raises `ContractError`, naming the operator, where that is impossible."""
    kernel = op.kernel
    if kernel.op is Op.CONV2D and kernel.groups == in_channels > 1:
        # A grouped convolution that is left with one input channel for each group.
        kernel = dataclasses.replace(
            kernel, op=Op.DEPTHWISE_CONV2D, groups=1, in_channels=in_channels, out_channels=out_channels
        )
    if kernel.op is Op.SHORTCUT_PAD and (in_channels, out_channels) != (kernel.in_channels, kernel.out_channels):
        # The zero channels would have to be shared out anew in front and behind, which depends on which were removed.
        raise ContractError(
            f"{op.name}: the channels around a {kernel.op} cannot be pruned: keep {kernel.in_channels} -> "
            f"{kernel.out_channels}, not {in_channels} -> {out_channels}"
        )
    if kernel.op is Op.FULLY_CONNECTED and (height, width) != (kernel.input_h, kernel.input_w):
        raise ContractError(
            f"{op.name}: its weights fit a {kernel.input_h}x{kernel.input_w} input, not {height}x{width}: "
            "put a global pool in front, or keep the resolution"
        )
    try:
        replaced: KernelSpec = dataclasses.replace(
            kernel,
            in_channels=in_channels,
            out_channels=out_channels,
            input_h=height,
            input_w=width,
            pruning=pruning,
        )
    except ContractError as error:
        raise ContractError(f"{op.name}: {error}") from None
    return dataclasses.replace(op, kernel=replaced)
