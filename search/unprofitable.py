"""Choices of density and scheme that do not pay are left out: a denser one takes no longer on any device.

Which do depends on the layer's shape as well, so they are left out shape by shape. The space stays as it is, and with
it genomes and what is stored of them: as in `search.canonical`, a genome with such a choice stands for another one.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from device_agent.contracts import DENSE, WeightPruning
from search.domain.result import ExcludedChoices
from search.domain.space import SchemeChoice, SearchSpace, VariableKind
from search.genome_costs import CostTable, WithSums
from search.pareto import FloatArray, IntArray

_BoolArray = NDArray[np.bool_]


class ProfitableForm:
    """Maps genomes (n, variables) to those in which every layer's pruning pays.

    A pruning is replaced where a denser one of the same scheme, or the dense kernel, takes no longer on every device at
    the layer's shape; of several, by the densest. That keeps all weights which it kept (a scheme keeps the largest
    blocks, so more of them at a higher density), and so is taken to be no less accurate. What the layers add to the
    latency of a network is what the search predicts with, so no latency grows.

    Args:
        space: The search space.
        latencies: For each device the tables of all operators, of `NetworkFigures.layer_latencies`.
        with_sums: Adds to genomes the sums of channels that these tables are over, as `NetworkFigures.with_sums` does.
    """

    def __init__(
        self,
        space: SearchSpace,
        latencies: Mapping[str, Sequence[CostTable]],
        with_sums: WithSums,
    ) -> None:
        self._with_sums = with_sums
        positions = {(v.kind, v.target): p for p, v in enumerate(space.variables)}
        self._layers: list[_Layer] = []
        for tables in zip(*latencies.values(), strict=True):
            own = [positions.get((kind, tables[0].operator)) for kind in (VariableKind.DENSITY, VariableKind.SCHEME)]
            if any(position is not None for position in own):
                self._layers.append(_Layer(space, tables, density=own[0], scheme=own[1]))
        self.excluded = ExcludedChoices(
            pruned=sum(layer.num_pruned for layer in self._layers),
            excluded=sum(layer.num_excluded for layer in self._layers),
        )

    def __call__(self, genomes: ArrayLike) -> IntArray:
        """The genomes that these stand for, a new array. Applied twice, it changes nothing more."""
        genes: IntArray = np.array(genomes, dtype=np.int64)
        # Of channels, which stay as they are.
        columns = self._with_sums(genes)
        for layer in self._layers:
            genes[:, layer.own] = layer.replacements[tuple(columns[:, layer.variables].T)]
        return genes


class _Layer:
    """One operator: `replacements` has an axis for each of `variables`, and last the genes of `own`."""

    def __init__(
        self, space: SearchSpace, tables: Sequence[CostTable], *, density: int | None, scheme: int | None
    ) -> None:
        self.variables = list(tables[0].variables)
        self.own = [position for position in (density, scheme) if position is not None]
        values = np.stack([table.values for table in tables])
        axes = [1 + self.variables.index(position) for position in self.own]
        # (devices, shapes, choices): what else varies than this layer's own pruning makes its shape.
        moved = np.moveaxis(values, axes, range(-len(axes), 0))
        sizes = moved.shape[1 : moved.ndim - len(axes)], moved.shape[moved.ndim - len(axes) :]
        choices = np.array(list(itertools.product(*map(range, sizes[1]))), dtype=np.int64)
        latencies = moved.reshape(len(tables), -1, len(choices))
        prunings = [_pruning(space, density, scheme, dict(zip(self.own, row, strict=True))) for row in choices.tolist()]
        best = _replacements(latencies, prunings)
        genes = choices[best].reshape(*sizes[0], *sizes[1], len(self.own))
        self.replacements: IntArray = np.moveaxis(genes, range(-len(axes) - 1, -1), [axis - 1 for axis in axes])
        # A removed operator costs nothing, and has no pruning to leave out; equal prunings count once.
        is_there = latencies[0].max(axis=1) > 0
        distinct = [prunings.index(p) == place and p != DENSE for place, p in enumerate(prunings)]
        self.num_pruned = int(is_there.sum()) * sum(distinct)
        self.num_excluded = int((best != np.arange(len(choices)))[is_there][:, distinct].sum())


def _replacements(latencies: FloatArray, prunings: Sequence[WeightPruning]) -> IntArray:
    """For each shape and choice the choice to take instead, itself where it pays. Of `latencies` (devices, shapes,
    choices).
    """
    best: IntArray = np.tile(np.arange(len(prunings)), (latencies.shape[1], 1))
    densest_first = sorted(range(len(prunings)), key=lambda place: (prunings[place] != DENSE, -prunings[place].density))
    for place, pruning in enumerate(prunings):
        left: _BoolArray = np.ones(latencies.shape[1], dtype=np.bool_)
        for other in densest_first:
            if _keeps_more(prunings[other], pruning):
                takes_no_longer = (latencies[:, :, other] <= latencies[:, :, place]).all(axis=0)
                best[left & takes_no_longer, place] = other
                left &= ~takes_no_longer
    return best


def _keeps_more(pruning: WeightPruning, than: WeightPruning) -> bool:
    """Whether `pruning` keeps all that `than` keeps, and more."""
    if pruning == DENSE or than == DENSE:
        return than != DENSE
    return pruning.density > than.density and dataclasses.replace(pruning, density=than.density) == than


def _pruning(space: SearchSpace, density: int | None, scheme: int | None, chosen: Mapping[int, int]) -> WeightPruning:
    """As `SearchSpace.decode` has it."""
    choice = space.default_scheme
    if scheme is not None:
        choice = SchemeChoice.parse(str(space.variables[scheme].choices[chosen[scheme]]))
    return choice.with_density(1.0 if density is None else float(space.variables[density].choices[chosen[density]]))
