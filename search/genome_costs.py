"""Figures that a genome alone decides (latency, MACs, parameters, bytes), for many genomes at once.

Each is a sum over operators, and an operator's share depends on a handful of variables: the widths that it reads and
writes, its own density and scheme, the resolution, and whether its block stays. So every operator gets a table over the
choices of these variables, whose cells are filled when they are first needed. No plan is built for a candidate.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from device_agent.contracts import ContractError, KernelSpec, PlanOp, WeightPruning
from search.domain.network import NetworkSpec
from search.domain.space import Decisions, SchemeChoice, SearchSpace, VariableKind
from search.lowering import ChannelCount, ChannelSources, channel_sources, lower, with_shape
from search.pareto import FloatArray, IntArray

#: The share of one kernel in a figure.
KernelCost = Callable[[KernelSpec], float]

#: Adds to genomes (n, variables) the sums of channels that tables are over: `GenomeCosts.with_sums`.
WithSums = Callable[[ArrayLike], IntArray]

_IntArray = NDArray[np.integer]

#: Of the table of an operator that has channels of several groups.
_MAX_TABLE_CELLS = 1 << 17


class GenomeCosts:
    """Sums of kernel costs over the genomes of one space on one network.

    Equal to summing over `lower(spec, space.decode(genome)).kernels`. Not thread-safe.

    Args:
        spec: The network.
        space: Its search space.
        costs: A cost for each figure, by a name of the caller's choice. What a cost raises comes out of `sums`.
    """

    def __init__(self, spec: NetworkSpec, space: SearchSpace, costs: Mapping[str, KernelCost]) -> None:
        self._num_choices = np.array(space.num_choices, dtype=np.int64)
        self._costs = dict(costs)
        self._sums = _ChannelSums(space)
        sources = channel_sources(spec)
        axes = [_axes_of(op, spec, space, sources[op.name], self._sums) for op in spec.plan.ops]
        choices = [*(variable.choices for variable in space.variables), *self._sums.choices]
        sizes = [tuple(len(choices[p]) for p in a.variables) for a in axes]
        #: Where the cells of each operator begin, in one table of all operators: NaN where a cell was not needed yet.
        self._starts = np.concatenate(([0], np.cumsum([math.prod(s) for s in sizes])))
        self._cells: FloatArray = np.full((int(self._starts[-1]), len(costs)), np.nan)
        # For each operator the variables that decide it, and how far apart the cells of neighbouring choices are.
        most = max((len(s) for s in sizes), default=0)
        self._positions = np.zeros((len(axes), most), dtype=np.int64)
        self._strides = np.zeros((len(axes), most), dtype=np.int64)
        for row, (a, s) in enumerate(zip(axes, sizes, strict=True)):
            self._positions[row, : len(s)] = a.variables
            self._strides[row, : len(s)] = [math.prod(s[place + 1 :]) for place in range(len(s))]
        shapes = _ShapesByResolution(spec, space)
        self._operators = tuple(
            _OperatorCosts(op, a, shapes, space, choices, s, self._cells[first:last])
            for op, a, s, (first, last) in zip(
                spec.plan.ops, axes, sizes, itertools.pairwise(self._starts), strict=True
            )
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The figures, in the order of the columns of `sums`."""
        return tuple(self._costs)

    def sums(self, genomes: ArrayLike) -> FloatArray:
        """The figures (n, figures) of `genomes` (n, variables).

        Raises `ContractError` on choice indices outside the space.
        """
        genes = np.asarray(genomes, dtype=np.int64).reshape(-1, len(self._num_choices))
        if ((genes < 0) | (genes >= self._num_choices)).any():
            raise ContractError("a genome has a choice that its variable does not have")
        all_genes = self._sums.append(genes)
        cells = (all_genes[:, self._positions] * self._strides).sum(axis=2) + self._starts[:-1]
        found = self._cells[cells]
        if np.isnan(found).any():
            for column, operator in enumerate(self._operators):
                operator.fill(np.unique(cells[:, column]) - self._starts[column], self._costs)
            found = self._cells[cells]
        total: FloatArray = found.sum(axis=1)
        return total

    def tables(self, figure: str) -> tuple[CostTable, ...]:
        """The whole tables of one figure, an operator each: every cell is computed.

        Raises `ContractError` where an operator reads so many groups that its table would be too large.
        """
        column = self.names.index(figure)
        return tuple(operator.table(column, self._costs, self._sums) for operator in self._operators)

    def check_tables(self) -> None:
        """Raise `ContractError` where `tables` would; nothing is computed."""
        for operator in self._operators:
            operator.whole_shape(self._sums)

    def sum_tables(self, figure: str) -> tuple[CostTable, ...]:
        """As `tables`, but over the sum of channels where an operator reads several groups: few cells, however many
        groups. Positions behind the variables of the space are columns that `with_sums` adds. Cells that no genome
        leads to are NaN.
        """
        column = self.names.index(figure)
        return tuple(operator.sum_table(column, self._costs, self._sums) for operator in self._operators)

    def with_sums(self, genomes: ArrayLike) -> IntArray:
        """`genomes` (n, variables) with a column for each sum of channels, of indices into its values."""
        columns: IntArray = self._sums.append(np.asarray(genomes, dtype=np.int64))
        return columns


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CostTable:
    """The share of one operator: `values` has an axis for each of `variables` (positions in the space; in those of
    `GenomeCosts.sum_tables` sums of channels behind them).
    """

    operator: str
    variables: tuple[int, ...]
    values: FloatArray


class _ChannelSums:
    """Numbers of channels that several groups make up, as variables of their own behind those of a space.

    A kernel depends on such a sum alone, which takes far fewer values than the groups have combinations.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._positions = {v.target: p for p, v in enumerate(space.variables) if v.kind is VariableKind.CHANNELS}
        #: For each sum what is given, and the positions of the variables of its groups.
        self._sums: list[tuple[int, tuple[int, ...]]] = []
        #: The values of each sum, ascending.
        self.choices: list[tuple[int, ...]] = []

    def position(self, count: ChannelCount, full_channels: Mapping[str, int]) -> int | None:
        """The position of what decides `count`, a variable of the space or a sum; None where it does not vary."""
        positions = tuple(sorted(self._positions[g] for g in count.groups if g in self._positions))
        given = count.given + sum(full_channels[g] for g in count.groups if g not in self._positions)
        if not positions:
            return None
        if given == 0 and len(positions) == 1:
            return positions[0]
        if (given, positions) not in self._sums:
            values = {given}
            for position, times in Counter(positions).items():
                values = {v + times * int(c) for v in values for c in self._space.variables[position].choices}
            self._sums.append((given, positions))
            self.choices.append(tuple(sorted(values)))
        return len(self._space.variables) + self._sums.index((given, positions))

    def variables(self, position: int) -> tuple[int, ...]:
        """The positions in the space of what decides `position`."""
        own = len(self._space.variables)
        return (position,) if position < own else self._sums[position - own][1]

    def reachable(self, positions: Sequence[int]) -> IntArray:
        """The combinations (n, positions) of choices of `positions` that some genome has: sums may share groups."""
        own = len(self._space.variables)
        # For each position what is given, and how often it counts each group; a variable of the space counts choices.
        parts = [
            (0, Counter([p])) if p < own else (self._sums[p - own][0], Counter(self._sums[p - own][1]))
            for p in positions
        ]
        found = {tuple(given for given, _ in parts)}
        for group in sorted({group for _, counts in parts for group in counts}):
            choices = self._space.variables[group].choices
            found = {
                tuple(
                    value + counts[group] * (index if position < own else int(choice))
                    for value, position, (_, counts) in zip(reached, positions, parts, strict=True)
                )
                for reached in found
                for index, choice in enumerate(choices)
            }
        values: IntArray = np.array(sorted(found), dtype=np.int64).reshape(len(found), len(positions))
        for column, position in enumerate(positions):
            if position >= own:
                values[:, column] = np.searchsorted(self.choices[position - own], values[:, column])
        return values

    def append(self, genes: IntArray) -> IntArray:
        """`genes` (n, variables) with a column for each sum."""
        columns = [genes]
        for (given, positions), values in zip(self._sums, self.choices, strict=True):
            total = np.full(len(genes), given, dtype=np.int64)
            for position in positions:
                total += np.array(self._space.variables[position].choices, dtype=np.int64)[genes[:, position]]
            columns.append(np.searchsorted(values, total)[:, None])
        return np.concatenate(columns, axis=1) if len(columns) > 1 else genes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axes:
    """Positions of the variables, or sums of them, that decide an operator's kernel; None where nothing varies."""

    inputs: int | None
    outputs: int | None
    density: int | None
    scheme: int | None
    resolution: int | None
    #: Of the blocks that the operator is in: without any one of them it is gone, and costs nothing.
    depths: tuple[int, ...] = ()

    @property
    def variables(self) -> tuple[int, ...]:
        """The distinct positions, ascending."""
        found = {self.inputs, self.outputs, self.density, self.scheme, self.resolution, *self.depths} - {None}
        return tuple(sorted(v for v in found if v is not None))


class _ShapesByResolution:
    """The height and width that each operator reads, for each choice of the resolution (None: as in the plan)."""

    def __init__(self, spec: NetworkSpec, space: SearchSpace) -> None:
        sizes: set[int | None] = {None}
        sizes |= {int(c) for v in space.variables if v.kind is VariableKind.RESOLUTION for c in v.choices}
        self._extents: dict[tuple[str, int | None], tuple[int, int]] = {}
        for size in sizes:
            for op in lower(spec, Decisions(resolution=size)).ops:
                self._extents[op.name, size] = (op.kernel.input_h, op.kernel.input_w)

    def input_extent(self, operator: str, resolution: int | None) -> tuple[int, int]:
        return self._extents[operator, resolution]


class _OperatorCosts:
    """One operator's part of the table, `cells` (cells, figures), an axis of `sizes` for each of its variables."""

    def __init__(
        self,
        op: PlanOp,
        axes: _Axes,
        shapes: _ShapesByResolution,
        space: SearchSpace,
        choices: Sequence[Sequence[int | float | str]],
        sizes: tuple[int, ...],
        cells: FloatArray,
    ) -> None:
        self._op = op
        self._axes = axes
        self._shapes = shapes
        self._space = space
        self._choices = choices
        self._sizes = sizes
        self._cells = cells

    def whole_shape(self, sums: _ChannelSums) -> dict[int, int]:
        """The variables of the space that `table` is over, ascending, each with its number of choices.

        Raises `ContractError` where that makes too many cells.
        """
        variables = sorted({v for position in self._axes.variables for v in sums.variables(position)})
        shape = {v: self._space.num_choices[v] for v in variables}
        num_cells = math.prod(shape.values())
        if tuple(variables) != self._axes.variables and num_cells > _MAX_TABLE_CELLS:
            groups = [v for v in variables if self._space.variables[v].kind is VariableKind.CHANNELS]
            raise ContractError(
                f"{self._op.name!r} has channels of {len(groups)} groups, so a table over all of their choices would "
                f"have {num_cells} cells, above {_MAX_TABLE_CELLS}: give the groups fewer choices "
                "(space.channels.max_choices), or use another method, such as 'jcw' or 'nsga2'"
            )
        return shape

    def table(self, column: int, costs: Mapping[str, KernelCost], sums: _ChannelSums) -> CostTable:
        """Over variables of the space alone."""
        sizes = self.whole_shape(sums)
        variables, shape = tuple(sizes), tuple(sizes.values())
        genes = np.zeros((math.prod(shape), len(self._space.variables)), dtype=np.int64)
        genes[:, list(variables)] = np.indices(shape).reshape(len(variables), math.prod(shape)).T
        chosen = sums.append(genes)[:, list(self._axes.variables)]
        cells = np.ravel_multi_index(tuple(chosen.T), self._sizes) if self._sizes else np.zeros(1, dtype=np.int64)
        self.fill(np.unique(cells), costs)
        values = self._cells[cells, column].reshape(shape)
        return CostTable(operator=self._op.name, variables=variables, values=values)

    def sum_table(self, column: int, costs: Mapping[str, KernelCost], sums: _ChannelSums) -> CostTable:
        """Over its own variables and sums."""
        variables = self._axes.variables
        channels = sorted({p for p in (self._axes.inputs, self._axes.outputs) if p is not None})
        is_needed = np.zeros(self._sizes, dtype=np.bool_)
        # Of channel counts only what goes together: a concatenation writes at least what it reads.
        np.moveaxis(is_needed, [variables.index(p) for p in channels], range(len(channels)))[
            tuple(sums.reachable(channels).T)
        ] = True
        cells = np.flatnonzero(is_needed)
        self.fill(cells, costs)
        values = np.full(self._sizes, np.nan)
        values.flat[cells] = self._cells[cells, column]
        return CostTable(operator=self._op.name, variables=variables, values=values)

    def fill(self, cells: _IntArray, costs: Mapping[str, KernelCost]) -> None:
        """Compute those of `cells` that were not needed before."""
        for cell in cells[np.isnan(self._cells[cells]).any(axis=1)]:
            indices = (int(i) for i in np.unravel_index(int(cell), self._sizes))
            chosen = {p: self._choices[p][i] for p, i in zip(self._axes.variables, indices, strict=True)}
            if any(not chosen[p] for p in self._axes.depths):
                self._cells[cell] = 0.0
            else:
                kernel = self._kernel(chosen)
                self._cells[cell] = [cost(kernel) for cost in costs.values()]

    def _kernel(self, chosen: Mapping[int, int | float | str]) -> KernelSpec:
        kernel, axes = self._op.kernel, self._axes
        size = None if axes.resolution is None else int(chosen[axes.resolution])
        height, width = self._shapes.input_extent(self._op.name, size)
        return with_shape(
            self._op,
            kernel.in_channels if axes.inputs is None else int(chosen[axes.inputs]),
            kernel.out_channels if axes.outputs is None else int(chosen[axes.outputs]),
            height,
            width,
            self._pruning(chosen),
        ).kernel

    def _pruning(self, chosen: Mapping[int, int | float | str]) -> WeightPruning:
        axes = self._axes
        if axes.density is None and axes.scheme is None:
            return self._op.kernel.pruning
        scheme = self._space.default_scheme
        if axes.scheme is not None:
            scheme = SchemeChoice.parse(str(chosen[axes.scheme]))
        return scheme.with_density(1.0 if axes.density is None else float(chosen[axes.density]))


def _axes_of(op: PlanOp, spec: NetworkSpec, space: SearchSpace, sources: ChannelSources, sums: _ChannelSums) -> _Axes:
    positions = {(v.kind, v.target): p for p, v in enumerate(space.variables)}
    full_channels = {group.name: group.channels for group in spec.groups}
    return _Axes(
        inputs=sums.position(sources.inputs, full_channels),
        outputs=sums.position(sources.outputs, full_channels),
        density=_position(positions, VariableKind.DENSITY, op.name),
        scheme=_position(positions, VariableKind.SCHEME, op.name),
        resolution=_position(positions, VariableKind.RESOLUTION, ""),
        depths=tuple(
            position
            for block in spec.blocks
            if op.name in block.ops and (position := _position(positions, VariableKind.DEPTH, block.name)) is not None
        ),
    )


def _position(positions: Mapping[tuple[VariableKind, str], int], kind: VariableKind, target: str) -> int | None:
    return positions.get((kind, target))
