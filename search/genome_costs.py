"""Figures that a genome alone decides (latency, MACs, parameters, bytes), for many genomes at once.

Each is a sum over operators, and an operator's share depends on a handful of variables: the widths that it reads and
writes, its own density and scheme, the resolution, and whether its block stays. So every operator gets a table over the
choices of these variables, whose cells are filled when they are first needed. No plan is built for a candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from device_agent.contracts import KernelSpec, PlanOp, WeightPruning
from search.domain.network import NetworkSpec
from search.domain.space import Decisions, SchemeChoice, SearchSpace, VariableKind
from search.lowering import channel_sources, lower, with_shape
from search.pareto import FloatArray

#: The share of one kernel in a figure.
KernelCost = Callable[[KernelSpec], float]

_IntArray = NDArray[np.integer]


class GenomeCosts:
    """Sums of kernel costs over the genomes of one space on one network.

    Equal to summing over `lower(spec, space.decode(genome)).kernels`. Not thread-safe.

    Args:
        spec: The network.
        space: Its search space.
        costs: A cost for each figure, by a name of the caller's choice. What a cost raises comes out of `sums`.
    """

    def __init__(self, spec: NetworkSpec, space: SearchSpace, costs: Mapping[str, KernelCost]) -> None:
        self._num_variables = len(space.variables)
        self._costs = dict(costs)
        shapes = _ShapesByResolution(spec, space)
        self._operators = tuple(
            _OperatorCosts(op, _axes_of(op, spec, space), shapes, space, len(costs)) for op in spec.plan.ops
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The figures, in the order of the columns of `sums`."""
        return tuple(self._costs)

    def sums(self, genomes: ArrayLike) -> FloatArray:
        """The figures (n, figures) of `genomes` (n, variables), choice indices inside the space."""
        genes = np.asarray(genomes, dtype=np.int64).reshape(-1, self._num_variables)
        total = np.zeros((len(genes), len(self._costs)))
        for operator in self._operators:
            total += operator.shares(genes, self._costs)
        return total

    def tables(self, figure: str) -> tuple[CostTable, ...]:
        """The whole tables of one figure, an operator each: every cell is computed."""
        column = self.names.index(figure)
        return tuple(operator.table(column, self._costs) for operator in self._operators)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CostTable:
    """The share of one operator: `values` has an axis for each of `variables` (positions in the space)."""

    operator: str
    variables: tuple[int, ...]
    values: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axes:
    """Positions of the variables that decide an operator's kernel; None where nothing varies."""

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
    """One operator's table of all figures, (cells, figures), NaN where a cell was not needed yet."""

    def __init__(
        self, op: PlanOp, axes: _Axes, shapes: _ShapesByResolution, space: SearchSpace, num_figures: int
    ) -> None:
        self._op = op
        self._axes = axes
        self._shapes = shapes
        self._space = space
        self._positions = list(axes.variables)
        self._sizes = tuple(space.num_choices[p] for p in self._positions)
        self._cells: FloatArray = np.full((int(np.prod(self._sizes)), num_figures), np.nan)

    def shares(self, genes: _IntArray, costs: Mapping[str, KernelCost]) -> FloatArray:
        if self._positions:
            cells = np.ravel_multi_index(tuple(genes[:, p] for p in self._positions), self._sizes)
        else:
            cells = np.zeros(len(genes), dtype=np.int64)
        found = self._cells[cells]
        if np.isnan(found).any():
            self._fill(np.unique(cells), costs)
            found = self._cells[cells]
        return found

    def table(self, column: int, costs: Mapping[str, KernelCost]) -> CostTable:
        self._fill(np.arange(len(self._cells)), costs)
        values = self._cells[:, column].reshape(self._sizes)
        return CostTable(operator=self._op.name, variables=tuple(self._positions), values=values.copy())

    def _fill(self, cells: _IntArray, costs: Mapping[str, KernelCost]) -> None:
        for cell in cells[np.isnan(self._cells[cells]).any(axis=1)]:
            indices = (int(i) for i in np.unravel_index(int(cell), self._sizes))
            chosen = {p: self._space.variables[p].choices[i] for p, i in zip(self._positions, indices, strict=True)}
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


def _axes_of(op: PlanOp, spec: NetworkSpec, space: SearchSpace) -> _Axes:
    positions = {(v.kind, v.target): p for p, v in enumerate(space.variables)}
    sources = channel_sources(spec)[op.name]
    return _Axes(
        inputs=_position(positions, VariableKind.CHANNELS, sources.inputs),
        outputs=_position(positions, VariableKind.CHANNELS, sources.outputs),
        density=_position(positions, VariableKind.DENSITY, op.name),
        scheme=_position(positions, VariableKind.SCHEME, op.name),
        resolution=_position(positions, VariableKind.RESOLUTION, ""),
        depths=tuple(
            position
            for block in spec.blocks
            if op.name in block.ops and (position := _position(positions, VariableKind.DEPTH, block.name)) is not None
        ),
    )


def _position(positions: Mapping[tuple[VariableKind, str], int], kind: VariableKind, target: str | None) -> int | None:
    return None if target is None else positions.get((kind, target))
