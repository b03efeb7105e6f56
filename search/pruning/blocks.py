"""Residual blocks from a plan's data flow: what may be taken out so that only its shortcut is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from device_agent.contracts import NetworkPlan, Op, PlanOp
from search.domain.network import RefusedBlock, RemovableBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockClaim:
    """A residual block that seems removable. `modules` are those that hold just its layers, the innermost first: data
    flow does not tell whether the add belongs to a module, so the proof tries them in this order.

    `branch_end` is the last layer of the branch that is added to the shortcut.
    """

    ops: tuple[str, ...]
    reads: str
    writes: str
    branch_end: str
    modules: tuple[str, ...]

    def named(self, module: str) -> RemovableBlock:
        return RemovableBlock(name=module, ops=self.ops, reads=self.reads, writes=self.writes)


def discover_blocks(plan: NetworkPlan) -> tuple[tuple[BlockClaim, ...], tuple[RefusedBlock, ...]]:
    """The residual blocks of `plan` with the identity as their shortcut, in execution order, and those that must stay.

    What is found here is a claim, which `search.pruning.block_proof` tests on the network itself.
    """
    flow = _Flow(plan)
    claims: list[BlockClaim] = []
    refused: list[RefusedBlock] = []
    for op in plan.ops:
        operands = _operands(op)
        found = [
            (shortcut, branch, ops)
            for shortcut, branch in operands
            if (ops := flow.between(shortcut, op.name)) is not None
        ]
        if not operands:
            continue
        if not found:
            refused.append(RefusedBlock(name=op.name, reason="its shortcut is not the identity, so its shape changes"))
            continue
        shortcut, branch, ops = found[0]
        reason = flow.reason_to_stay(shortcut, op.name, ops)
        modules = _modules_of([name for name in ops if flow.has_weights(name)], plan)
        if reason is None and not modules:
            reason = "no module holds just its layers: write the block as a module of its own"
        if reason is None and not flow.has_weights(branch):
            reason = "its branch does not end in a layer with weights"
        contained = [claim for claim in claims if set(claim.ops) < set(ops)]
        if reason is None and contained:
            reason = f"other removable blocks are inside, such as that of {contained[0].writes!r}"
        if reason is not None:
            refused.append(RefusedBlock(name=op.name, reason=reason))
        else:
            claims.append(BlockClaim(ops=ops, reads=shortcut, writes=op.name, branch_end=branch, modules=modules))
    return tuple(claims), tuple(refused)


def _operands(op: PlanOp) -> tuple[tuple[str, str], ...]:
    """(shortcut, end of the branch) as an addition may have them; none for other operators."""
    if op.residual is not None:
        return ((op.residual, op.name),)
    if op.kernel.op is Op.ADD:
        return ((op.inputs[0], op.inputs[1]), (op.inputs[1], op.inputs[0]))
    return ()


def _modules_of(layers: Sequence[str], plan: NetworkPlan) -> tuple[str, ...]:
    """Names of modules that hold `layers` and no other layer of the plan, the innermost first."""
    if not layers:
        return ()
    paths = [name.split(".")[:-1] for name in layers]
    shared = 0
    while all(len(path) > shared and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    weighted = [op.name for op in plan.ops if op.kernel.op.has_weights]
    prefixes = [".".join(paths[0][:depth]) for depth in range(shared, 0, -1)]
    return tuple(p for p in prefixes if {n for n in weighted if n.startswith(f"{p}.")} == set(layers))


class _Flow:
    """Who reads what in a plan."""

    def __init__(self, plan: NetworkPlan) -> None:
        self._plan = plan
        self._ops = {op.name: op for op in plan.ops}
        self._reads = {op.name: (*op.inputs, *([] if op.residual is None else [op.residual])) for op in plan.ops}
        self._readers: dict[str, list[str]] = {}
        for name, tensors in self._reads.items():
            for tensor in tensors:
                self._readers.setdefault(tensor, []).append(name)

    def has_weights(self, name: str) -> bool:
        return name in self._ops and self._ops[name].kernel.op.has_weights

    def between(self, tensor: str, last: str) -> tuple[str, ...] | None:
        """The operators on the ways from `tensor` to the operator `last`, if all that they read comes from `tensor`."""
        behind: set[str] = set()
        for op in self._plan.ops:
            if any(source == tensor or source in behind for source in self._reads[op.name]):
                behind.add(op.name)
        wanted = [last]
        found: set[str] = set()
        while wanted:
            name = wanted.pop()
            if name == tensor or name in found:
                continue
            if name not in behind:
                return None
            found.add(name)
            wanted += self._reads[name]
        # The branch must leave from the shortcut's tensor, too: a residual that is added to itself is no block.
        if len([name for name in found if tensor in self._reads[name]]) < 2 and len(found) > 1:
            return None
        return tuple(op.name for op in self._plan.ops if op.name in found)

    def reason_to_stay(self, tensor: str, last: str, ops: Sequence[str]) -> str | None:
        if last == self._plan.output_name:
            return "it writes the network's output"
        inside = set(ops)
        for name in ops:
            outside = [reader for reader in self._readers.get(name, ()) if reader not in inside]
            if name != last and outside:
                return f"{outside[0]!r} outside of it reads {name!r}"
        return None
