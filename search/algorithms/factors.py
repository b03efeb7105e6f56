"""Sums of tables over a genome's choices, and their exact minimum by eliminating one variable after the other.

An operator's latency depends on its input and output widths and on its own density, so a whole network is a sum of
small tables that share variables: a factor graph. Where few tables meet in a variable (chains, residual stages), the
minimum over all genomes is found exactly by dynamic programming over an elimination order (U. Bertele, F. Brioschi:
Nonserial Dynamic Programming, 1972; AOWS, arXiv 2005.10481, does so for chains of widths).

Where too many tables meet for that, they are minimised in several parts, each as large as is affordable (mini-bucket
elimination: R. Dechter, I. Rish: Mini-buckets: a general scheme for bounded inference, Journal of the ACM 50(2), 2003).
The sum of their minima is a lower bound; the genome that the parts lead to is improved by coordinate descent, and is
as far from the minimum as it is from the bound, at most.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from search.pareto import FloatArray, IntArray

#: Cells of the largest table that exact elimination may make: 2^24 doubles are 128 MiB.
MAX_CELLS = 1 << 24
#: Cells of the largest table where that is not enough, and tables of a variable are minimised apart.
SPLIT_CELLS = 1 << 18
#: Cells of all tables of one step, where many sums are minimised at once.
_BATCH_CELLS = 1 << 20
#: Sweeps of the descent that follows where tables were minimised apart.
_MAX_SWEEPS = 50


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


class TableSum:
    """The sum of some tables at any genomes: all are looked up at once, and added up in their order."""

    def __init__(self, factors: Sequence[Factor]) -> None:
        self._cells = np.concatenate([np.zeros(0), *(factor.values.ravel() for factor in factors)])
        sizes = [factor.values.size for factor in factors]
        self._starts = np.cumsum([0, *sizes], dtype=np.int64)[:-1]
        axes = max((len(factor.variables) for factor in factors), default=0)
        #: (axes, tables): the variable of each axis, and the cells that a step along it skips; 0 beyond the last axis.
        self._variables = np.zeros((axes, len(factors)), dtype=np.int64)
        self._strides = np.zeros((axes, len(factors)), dtype=np.int64)
        for column, factor in enumerate(factors):
            count = len(factor.variables)
            self._variables[:count, column] = factor.variables
            self._strides[:count, column] = np.cumprod([1, *factor.values.shape[:0:-1]])[:count][::-1]

    def __call__(self, genomes: IntArray) -> FloatArray:
        """The sums (n,) at `genomes` (n, v)."""
        if not self._starts.size:
            return np.zeros(len(genomes))
        places = np.broadcast_to(self._starts, (len(genomes), len(self._starts))).copy()
        for variables, strides in zip(self._variables, self._strides, strict=True):
            places += genomes[:, variables] * strides
        # Not a plain sum, whose order depends on how many genomes there are.
        total: FloatArray = np.add.accumulate(self._cells[places], axis=1)[:, -1]
        return total


def evaluate(factors: Sequence[Factor], genomes: IntArray) -> FloatArray:
    """The sums (n,) at `genomes` (n, v)."""
    return TableSum(factors)(genomes)


def elimination_order(scopes: Sequence[tuple[int, ...]], num_choices: Sequence[int]) -> EliminationOrder:
    """An order that keeps tables over `scopes` small: always the variable whose neighbours make the smallest table."""
    neighbours: dict[int, set[int]] = {v: set() for v in range(len(num_choices))}
    for scope in scopes:
        for variable in scope:
            neighbours[variable] |= set(scope) - {variable}
    order: list[int] = []
    largest = 1
    sizes = {v: _cells((v, *around), num_choices) for v, around in neighbours.items()}
    while neighbours:
        variable = min(sizes, key=lambda v: (sizes[v], v))
        largest = max(largest, sizes.pop(variable))
        around = neighbours.pop(variable)
        for other in around:
            neighbours[other] = (neighbours[other] | around) - {other, variable}
            sizes[other] = _cells((other, *neighbours[other]), num_choices)
        order.append(variable)
    return EliminationOrder(variables=tuple(order), largest_cells=largest)


def _cells(variables: Collection[int], num_choices: Sequence[int]) -> int:
    return math.prod(num_choices[v] for v in variables)


class Minima(NamedTuple):
    """Genomes (n, v) with small sums, and what no sum is below (n,): the sums themselves where these are exact."""

    genomes: IntArray
    bounds: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Tables that have a variable, each with its shape in their joint table."""

    axis: int
    rest: tuple[int, ...]
    shape: tuple[int, ...]
    tables: tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """The elimination of one variable: the tables that have it, in one part where that is affordable."""

    variable: int
    parts: tuple[_Part, ...]


class Elimination:
    """Minimises sums of tables over the same variables again and again, many sums at once.

    Of equal minima, that with the smaller choices of late variables is found.

    Args:
        scopes: The variables of each table.
        num_choices: Choices of each variable.
        max_cells: Of a table that exact elimination may make.
        split_cells: Of a table that is made where that is not enough; given tables may be larger.
    """

    def __init__(
        self,
        scopes: Sequence[tuple[int, ...]],
        num_choices: Sequence[int],
        *,
        max_cells: int = MAX_CELLS,
        split_cells: int = SPLIT_CELLS,
    ) -> None:
        order = elimination_order(scopes, num_choices)
        self._num_choices = tuple(num_choices)
        self._num_given = len(scopes)
        #: Whether what is found is the minimum.
        self.is_exact = order.largest_cells <= max_cells
        self._scopes: list[tuple[int, ...]] = list(scopes)
        self._remaining = list(range(len(scopes)))
        limit = max_cells if self.is_exact else split_cells
        self._steps = [self._step(variable, limit) for variable in order.variables]
        self._largest_cells = max((math.prod(p.shape) for s in self._steps for p in s.parts), default=1)

    def minimise(self, tables: Sequence[FloatArray]) -> Minima:
        """The smallest sums of `tables`, each (n, *choices of its scope)."""
        count = max((len(table) for table in tables), default=1)
        size = max(1, _BATCH_CELLS // self._largest_cells)
        found = [
            self._minimised([t[a : a + size] for t in tables], min(size, count - a)) for a in range(0, count, size)
        ]
        return Minima(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

    def _step(self, variable: int, limit: int) -> _Step:
        """The next step, whose results are noted as tables."""
        touching = [n for n in self._remaining if variable in self._scopes[n]]
        self._remaining = [n for n in self._remaining if variable not in self._scopes[n]]
        parts = []
        for numbers in self._affordable(variable, touching, limit):
            scope = tuple(sorted({variable}.union(*(self._scopes[n] for n in numbers))))
            axis = scope.index(variable)
            rest = (*scope[:axis], *scope[axis + 1 :])
            shapes = ((n, tuple(self._num_choices[v] if v in self._scopes[n] else 1 for v in scope)) for n in numbers)
            shape = tuple(self._num_choices[v] for v in scope)
            parts.append(_Part(axis=axis + 1, rest=rest, shape=shape, tables=tuple(shapes)))
            self._scopes.append(rest)
            self._remaining.append(len(self._scopes) - 1)
        return _Step(variable=variable, parts=tuple(parts))

    def _affordable(self, variable: int, touching: Sequence[int], limit: int) -> list[list[int]]:
        """The tables in as few parts as joint tables of `limit` cells allow: the largest first, each where it fits."""
        parts: list[tuple[set[int], list[int]]] = []
        for number in sorted(touching, key=lambda n: -_cells(self._scopes[n], self._num_choices)):
            for scope, numbers in parts:
                if _cells(scope | set(self._scopes[number]), self._num_choices) <= limit:
                    scope |= set(self._scopes[number])
                    numbers.append(number)
                    break
            else:
                parts.append((set(self._scopes[number]), [number]))
        return [sorted(numbers) for _, numbers in parts] or [[]]

    def _minimised(self, tables: Sequence[FloatArray], count: int) -> tuple[IntArray, FloatArray]:
        known = list(tables)
        decided: list[tuple[_Step, IntArray | None]] = []
        for step in self._steps:
            best = None
            for part in step.parts:
                joint = None
                for number, shape in part.tables:
                    table = known[number].reshape(-1, *shape)
                    joint = table if joint is None else joint + table
                shape = (count, *part.shape)
                if joint is None:
                    joint = np.zeros(shape)
                elif joint.shape != shape:
                    joint = np.broadcast_to(joint, shape)
                if len(step.parts) == 1:
                    best = joint.argmin(axis=part.axis)
                known.append(np.minimum.reduce(joint, axis=part.axis))
            decided.append((step, best))
        genomes = np.zeros((count, len(self._num_choices)), dtype=np.int64)
        rows = np.arange(count)
        for step, best in reversed(decided):
            if best is None:
                numbers = [n for part in step.parts for n, _ in part.tables]
                genomes[:, step.variable] = self._sums(known, numbers, step.variable, genomes).argmin(axis=1)
            else:
                genomes[:, step.variable] = best[(rows, *(genomes[:, v] for v in step.parts[0].rest))]
        if not self.is_exact:
            self._descend(tables, genomes)
        bounds = np.zeros(count)
        for number in self._remaining:
            bounds += known[number]
        return genomes, bounds

    def _sums(
        self, known: Sequence[FloatArray], numbers: Sequence[int], variable: int, genomes: IntArray
    ) -> FloatArray:
        """The sum of some tables for each choice of `variable`, (n, choices), other genes being those of `genomes`."""
        choices = np.arange(self._num_choices[variable])
        sums = np.zeros((len(genomes), len(choices)))
        for number in numbers:
            index = (choices if v == variable else genomes[:, v, None] for v in self._scopes[number])
            sums += known[number][(np.arange(len(genomes))[:, None], *index)]
        return sums

    def _descend(self, tables: Sequence[FloatArray], genomes: IntArray) -> None:
        """Improve `genomes` in place, a gene at a time, until none can be."""
        rows = np.arange(len(genomes))
        touching = [
            [n for n in range(self._num_given) if variable in self._scopes[n]]
            for variable in range(len(self._num_choices))
        ]
        for _ in range(_MAX_SWEEPS):
            before = genomes.copy()
            for variable, numbers in enumerate(touching):
                sums = self._sums(tables, numbers, variable, genomes)
                better = sums.min(axis=1) < sums[rows, genomes[:, variable]]
                genomes[better, variable] = sums[better].argmin(axis=1)
            if (genomes == before).all():
                return
