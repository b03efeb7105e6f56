"""Sums of tables over a genome's choices, and their exact minimum by eliminating one variable after the other.

An operator's latency depends on its input and output widths and on its own density, so a whole network is a sum of
small tables that share variables: a factor graph. Where few tables meet in a variable (chains, residual stages), the
minimum over all genomes is found exactly by dynamic programming over an elimination order (U. Bertele, F. Brioschi:
Nonserial Dynamic Programming, 1972; AOWS, arXiv 2005.10481, does so for chains of widths).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from device_agent.contracts import ContractError
from search.domain.space import Genome
from search.pareto import FloatArray, IntArray

#: Cells of the largest table that elimination may make: 2^24 doubles are 128 MiB.
MAX_CELLS = 1 << 24
#: Cells of all tables of one step, where many sums are minimised at once.
_BATCH_CELLS = 1 << 20


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
    sizes = {v: _cells(v, around, num_choices) for v, around in neighbours.items()}
    while neighbours:
        variable = min(sizes, key=lambda v: (sizes[v], v))
        largest = max(largest, sizes.pop(variable))
        if largest > MAX_CELLS:
            raise ContractError(
                f"the variables of this network depend on each other so much that exact search needs tables of "
                f"{largest} cells, more than {MAX_CELLS}: offer fewer channel counts (space.channels.max_choices)"
            )
        around = neighbours.pop(variable)
        for other in around:
            neighbours[other] = (neighbours[other] | around) - {other, variable}
            sizes[other] = _cells(other, neighbours[other], num_choices)
        order.append(variable)
    return EliminationOrder(variables=tuple(order), largest_cells=largest)


def _cells(variable: int, around: Collection[int], num_choices: Sequence[int]) -> int:
    """Cells of a table over a variable and its neighbours."""
    return math.prod(num_choices[v] for v in (variable, *around))


def minimise(factors: Sequence[Factor], num_choices: Sequence[int], order: EliminationOrder) -> Genome:
    """The genome with the smallest sum; of equal ones, that with the smaller choices of late variables."""
    elimination = Elimination([f.variables for f in factors], num_choices, order)
    return tuple(int(g) for g in elimination.minimise([f.values[None] for f in factors])[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """The elimination of one variable: the tables that have it, each with its shape in the joint table."""

    variable: int
    axis: int
    rest: tuple[int, ...]
    shape: tuple[int, ...]
    tables: tuple[tuple[int, tuple[int, ...]], ...]


class Elimination:
    """Minimises sums of tables over the same variables again and again, many sums at once.

    Args:
        scopes: The variables of each table.
        num_choices: Choices of each variable.
        order: From `elimination_order`.
    """

    def __init__(self, scopes: Sequence[tuple[int, ...]], num_choices: Sequence[int], order: EliminationOrder) -> None:
        self._num_choices = tuple(num_choices)
        self._largest_cells = order.largest_cells
        known: list[tuple[int, ...]] = list(scopes)
        remaining = list(range(len(scopes)))
        self._steps: list[_Step] = []
        for variable in order.variables:
            touching = [n for n in remaining if variable in known[n]]
            remaining = [n for n in remaining if variable not in known[n]]
            scope = tuple(sorted({variable}.union(*(known[n] for n in touching))))
            axis = scope.index(variable)
            rest = (*scope[:axis], *scope[axis + 1 :])
            self._steps.append(
                _Step(
                    variable=variable,
                    axis=axis + 1,
                    rest=rest,
                    shape=tuple(num_choices[v] for v in scope),
                    tables=tuple((n, tuple(num_choices[v] if v in known[n] else 1 for v in scope)) for n in touching),
                )
            )
            known.append(rest)
            remaining.append(len(known) - 1)

    def minimise(self, tables: Sequence[FloatArray]) -> IntArray:
        """The genomes (n, v) with the smallest sums of `tables`, each (n, *choices of its scope)."""
        count = max((len(table) for table in tables), default=1)
        part = max(1, _BATCH_CELLS // self._largest_cells)
        found = [
            self._minimised([t[a : a + part] for t in tables], min(part, count - a)) for a in range(0, count, part)
        ]
        return np.concatenate(found)

    def _minimised(self, tables: Sequence[FloatArray], count: int) -> IntArray:
        known = list(tables)
        decided: list[tuple[_Step, IntArray]] = []
        for step in self._steps:
            joint = np.zeros((count, *step.shape))
            for number, shape in step.tables:
                joint += known[number].reshape(-1, *shape)
            decided.append((step, joint.argmin(axis=step.axis)))
            known.append(joint.min(axis=step.axis))
        genomes = np.zeros((count, len(self._num_choices)), dtype=np.int64)
        rows = np.arange(count)
        for step, best in reversed(decided):
            genomes[:, step.variable] = best[(rows, *(genomes[:, v] for v in step.rest))]
        return genomes
