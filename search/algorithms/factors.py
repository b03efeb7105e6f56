"""Sums of tables over a genome's choices, and their exact minimum by eliminating one variable after the other.

An operator's latency depends on its input and output widths and on its own density, so a whole network is a sum of
small tables that share variables: a factor graph. Where few tables meet in a variable (chains, residual stages), the
minimum over all genomes is found exactly by dynamic programming over an elimination order (U. Bertele, F. Brioschi:
Nonserial Dynamic Programming, 1972; AOWS, arXiv 2005.10481, does so for chains of widths).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from device_agent.contracts import ContractError
from search.domain.space import Genome
from search.pareto import FloatArray, IntArray

#: Cells of the largest table that elimination may make: 2^24 doubles are 128 MiB.
MAX_CELLS = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factor:
    """A term of the sum: `values` has an axis for each of `variables`, which ascend."""

    variables: tuple[int, ...]
    values: FloatArray

    def __post_init__(self) -> None:
        if list(self.variables) != sorted(set(self.variables)) or self.values.ndim != len(self.variables):
            raise ValueError(
                f"a table of shape {self.values.shape} does not fit the variables {self.variables}: one axis each, "
                "ascending"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EliminationOrder:
    """Variables in the order in which they are eliminated, with the largest table that this makes."""

    variables: tuple[int, ...]
    largest_cells: int


def evaluate(factors: Sequence[Factor], genomes: IntArray) -> FloatArray:
    """The sums (n,) at `genomes` (n, v)."""
    total = np.zeros(len(genomes))
    for factor in factors:
        total += factor.values[tuple(genomes[:, v] for v in factor.variables)]
    return total


def elimination_order(factors: Sequence[Factor], num_choices: Sequence[int]) -> EliminationOrder:
    """An order that keeps tables small: always the variable whose neighbours make the smallest table.

    Raises `ContractError` where a table of more than `MAX_CELLS` is needed: too many widths depend on each other.
    """
    neighbours: dict[int, set[int]] = {v: set() for v in range(len(num_choices))}
    for factor in factors:
        for variable in factor.variables:
            neighbours[variable] |= set(factor.variables) - {variable}
    order: list[int] = []
    largest = 1
    while neighbours:
        sizes = {v: int(np.prod([num_choices[n] for n in (v, *around)])) for v, around in neighbours.items()}
        variable = min(sizes, key=lambda v: (sizes[v], v))
        largest = max(largest, sizes[variable])
        if largest > MAX_CELLS:
            raise ContractError(
                f"the variables of this network depend on each other so much that exact search needs tables of "
                f"{largest} cells, more than {MAX_CELLS}: offer fewer channel counts (space.channels.max_choices)"
            )
        around = neighbours.pop(variable)
        for other in around:
            neighbours[other] = (neighbours[other] | around) - {other, variable}
        order.append(variable)
    return EliminationOrder(variables=tuple(order), largest_cells=largest)


def minimise(factors: Sequence[Factor], num_choices: Sequence[int], order: EliminationOrder) -> Genome:
    """The genome with the smallest sum; of equal ones, that with the smaller choices of late variables."""
    remaining = list(factors)
    decided: list[tuple[int, tuple[int, ...], IntArray]] = []
    for variable in order.variables:
        touching = [f for f in remaining if variable in f.variables]
        remaining = [f for f in remaining if variable not in f.variables]
        scope = tuple(sorted({variable}.union(*(f.variables for f in touching))))
        joint = np.zeros([num_choices[v] for v in scope])
        for factor in touching:
            joint += _spread(factor, scope)
        axis = scope.index(variable)
        rest = (*scope[:axis], *scope[axis + 1 :])
        decided.append((variable, rest, joint.argmin(axis=axis)))
        remaining.append(Factor(variables=rest, values=joint.min(axis=axis)))
    genome = [0] * len(num_choices)
    for variable, rest, best in reversed(decided):
        genome[variable] = int(best[tuple(genome[v] for v in rest)])
    return tuple(genome)


def _spread(factor: Factor, scope: tuple[int, ...]) -> FloatArray:
    """The values with an axis of length 1 for each variable of `scope` that the factor does not have."""
    shape = iter(factor.values.shape)
    return factor.values.reshape([next(shape) if v in factor.variables else 1 for v in scope])
