"""One genome for each design: genes that change nothing are at their last choice."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from device_agent.contracts import WeightPruning
from search.domain.network import NetworkSpec
from search.domain.space import SchemeChoice, SearchSpace, Variable, VariableKind
from search.pareto import IntArray


class CanonicalForm:
    """Maps genomes (n, variables) to those of the same designs, equal designs to one.

    Three kinds of genes change nothing: density and scheme of an operator that is removed with its block, a channel
    count where all operators of its group are, and one of the several pairs of density and scheme that are the same
    pruning (every scheme but a pattern is dense at density 1, and a pattern caps the density).
    """

    def __init__(self, spec: NetworkSpec, space: SearchSpace) -> None:
        self._last = np.array(space.num_choices, dtype=np.int64) - 1
        variables = list(enumerate(space.variables))
        self._pairs = [_Pair(space, position) for position, v in variables if _is_paired(space, v)]
        self._depths = [p for p, v in variables if v.kind is VariableKind.DEPTH]
        targets = {p: operators for p, v in variables if (operators := _operators_of(v, spec))}
        self._dependent = list(targets)
        order = {op.name: index for index, op in enumerate(spec.plan.ops)}
        #: Operators that a block removes, and operators that a variable acts on.
        self._removes = np.zeros((len(self._depths), len(order)), dtype=np.float32)
        for row, position in enumerate(self._depths):
            for name in spec.block(space.variables[position].target).ops:
                self._removes[row, order[name]] = 1.0
        self._acts_on = np.zeros((len(order), len(self._dependent)), dtype=np.float32)
        for column, operators in enumerate(targets.values()):
            for name in operators:
                self._acts_on[order[name], column] = 1.0

    def __call__(self, genomes: ArrayLike) -> IntArray:
        """The canonical genomes, a new array."""
        genes: IntArray = np.array(genomes, dtype=np.int64).reshape(-1, len(self._last))
        for pair in self._pairs:
            genes[:, pair.positions] = pair.canonical[tuple(genes[:, pair.positions].T)]
        if self._depths and self._dependent:
            kept = (genes[:, self._depths] == 0).astype(np.float32) @ self._removes == 0
            without_effect = kept.astype(np.float32) @ self._acts_on == 0
            chosen = genes[:, self._dependent]
            genes[:, self._dependent] = np.where(without_effect, self._last[self._dependent], chosen)
        return genes


class _Pair:
    """The density and the scheme of one operator: `canonical` (densities, schemes, 2) holds the last equal pair."""

    def __init__(self, space: SearchSpace, scheme: int) -> None:
        target = space.variables[scheme].target
        density = next(p for p, v in enumerate(space.variables) if (v.kind, v.target) == (VariableKind.DENSITY, target))
        self.positions = [density, scheme]
        densities = [float(c) for c in space.variables[density].choices]
        schemes = [SchemeChoice.parse(str(c)) for c in space.variables[scheme].choices]
        prunings = {
            (row, column): choice.with_density(value)
            for row, value in enumerate(densities)
            for column, choice in enumerate(schemes)
        }
        last: dict[WeightPruning, tuple[int, int]] = {pruning: pair for pair, pruning in prunings.items()}
        self.canonical: IntArray = np.zeros((len(densities), len(schemes), 2), dtype=np.int64)
        for pair, pruning in prunings.items():
            self.canonical[pair] = last[pruning]


def _is_paired(space: SearchSpace, variable: Variable) -> bool:
    return variable.kind is VariableKind.SCHEME and any(
        (v.kind, v.target) == (VariableKind.DENSITY, variable.target) for v in space.variables
    )


def _operators_of(variable: Variable, spec: NetworkSpec) -> frozenset[str]:
    """The operators that a variable acts on; none for those that act on the whole network or remove operators."""
    if variable.kind in (VariableKind.DENSITY, VariableKind.SCHEME):
        return frozenset({variable.target})
    if variable.kind is VariableKind.CHANNELS:
        return frozenset(member.op for member in spec.group(variable.target).members)
    return frozenset()
