"""The network being pruned, as data: a dense plan and what may be removed from it. No torch here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from device_agent.contracts import ContractError, NetworkPlan


class Axis(StrEnum):
    """The side of an operator on which a pruning group's channels lie."""

    OUT = "out"
    IN = "in"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMember:
    """An operator that a pruning group runs through. Depthwise convolutions and parts of a channel split are members on
    their OUT side.

    Around concatenations, splits and shuffles an operator has channels of several groups, or of one group more than
    once: those of this member are every `step`-th from `offset` on among the operator's.
    """

    op: str
    axis: Axis
    offset: int = 0
    step: int = 1

    def channels(self, count: int) -> slice:
        """The places among the operator's channels of a group of `count`."""
        return slice(self.offset, self.offset + self.step * count, self.step)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningGroup:
    """Channels that can only be removed together, in all members at once. Its name is that of its first producer; of a
    part of that one's channels, with the number of the first of them behind a colon.
    """

    name: str
    channels: int
    members: tuple[GroupMember, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedGroup:
    """Channels that stay dense, and why: what cannot be proved is not pruned."""

    name: str
    channels: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovableBlock:
    """A residual block around which its shortcut alone is left when it is removed.

    `name` is the module that becomes the identity, `ops` its operators in the plan's order. Readers of the tensor
    `writes`, which the last of them makes, then read the tensor `reads`.
    """

    name: str
    ops: tuple[str, ...]
    reads: str
    writes: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedBlock:
    """A residual block that always stays, and why. Its name is that of its last operator."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    """A traced network. `plan` is dense and fused; operators are named after the module that holds their weights.

    `prunable_ops` are those whose weights may be pruned to zero (all convolutions but the depthwise ones, and
    fully connected layers; a search opens those only where its config has schemes for them).
    """

    architecture: str
    plan: NetworkPlan
    groups: tuple[PruningGroup, ...]
    refused: tuple[RefusedGroup, ...]
    prunable_ops: tuple[str, ...]
    blocks: tuple[RemovableBlock, ...] = ()
    refused_blocks: tuple[RefusedBlock, ...] = ()

    def group(self, name: str) -> PruningGroup:
        for group in self.groups:
            if group.name == name:
                return group
        raise ContractError(
            f"no pruning group {name!r} in {self.architecture}; there are {', '.join(g.name for g in self.groups)}"
        )

    def block(self, name: str) -> RemovableBlock:
        for block in self.blocks:
            if block.name == name:
                return block
        known = ", ".join(b.name for b in self.blocks) or "none"
        raise ContractError(f"no removable block {name!r} in {self.architecture}; there are {known}")

    def removed_ops(self, blocks: Iterable[str]) -> frozenset[str]:
        """The operators of the named blocks. Raises `ContractError` on a block that the network does not have."""
        return frozenset(op for name in blocks for op in self.block(name).ops)
