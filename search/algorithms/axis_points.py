"""Depth, width and resolution of a search space as three coordinates, and the genomes along them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from device_agent.contracts import ContractError
from search.domain.space import Genome, SearchSpace, VariableKind
from search.pareto import FloatArray, IntArray
from search.space_builder import spread

#: inferred (Wang et al., arXiv 2010.04879, do not say how many): points of a chain beside the unpruned network.
CHAIN_POINTS = 4


#: Axes in the order of their coordinates, with the variables that make them.
_AXES = {
    "depth": VariableKind.DEPTH,
    "width": VariableKind.CHANNELS,
    "resolution": VariableKind.RESOLUTION,
    "density": VariableKind.DENSITY,
}


class AxisPoints:
    """The coordinates that a space has of depth, width and resolution; all other variables stay unpruned.

    Depth is (kept blocks + 1) / (removable blocks + 1): the one stands for what cannot be removed, so that no network
    has depth 0. Width is the kept part of all channels, all groups being scaled by one ratio; resolution the side as a
    part of the largest. `with_density` adds the mean density of layers as one more axis, which the paper does not have:
    for a polynomial through networks that are pruned in that way, too.

    Raises `ContractError` where the space has none of them.
    """

    def __init__(self, space: SearchSpace, *, with_density: bool = False) -> None:
        self._space = space
        positions = {
            name: [p for p, v in enumerate(space.variables) if v.kind is kind]
            for name, kind in _AXES.items()
            if name != "density" or with_density
        }
        self.blocks, self._widths, self._sides = (positions[name] for name in ("depth", "width", "resolution"))
        self._densities = positions.get("density", [])
        self.names = tuple(name for name, found in positions.items() if found)
        if not self.names:
            raise ContractError(
                "the method 'three_dimensions' searches depth, width and resolution, but the space has none of them: "
                "open space.depth, space.channels or space.resolution, or use another method"
            )

    @property
    def origin(self) -> Genome:
        return self._space.unpruned

    def coordinates(self, genomes: Sequence[Genome]) -> FloatArray:
        """(n, axes), each in (0, 1]."""
        genes: IntArray = np.array(genomes, dtype=np.int64).reshape(len(genomes), -1)
        columns = []
        if self.blocks:
            columns.append((genes[:, self.blocks].sum(axis=1) + 1.0) / (len(self.blocks) + 1.0))
        for positions in (self._widths, self._sides, self._densities):
            if positions:
                chosen = sum(self._choices(p)[genes[:, p]] for p in positions)
                columns.append(np.asarray(chosen) / sum(float(self._choices(p)[-1]) for p in positions))
        return np.column_stack(columns)

    def without_one_block(self) -> tuple[Genome, ...]:
        """The unpruned network without each block in turn."""
        return tuple(self._with({p: 0}) for p in self.blocks)

    def depth_chain(self, order: Sequence[int]) -> tuple[Genome, ...]:
        """More and more blocks removed, in `order` of their positions, evenly over their number."""
        counts = spread(range(1, len(order) + 1), CHAIN_POINTS)
        return tuple(self._with(dict.fromkeys(order[:count], 0)) for count in counts)

    def width_chain(self) -> tuple[Genome, ...]:
        """All groups down by one ratio, evenly."""
        return self._ratio_chain(self._widths)

    def density_chain(self) -> tuple[Genome, ...]:
        """All layers' densities down by one ratio, evenly."""
        return self._ratio_chain(self._densities)

    def resolution_chain(self) -> tuple[Genome, ...]:
        """One side smaller at a time."""
        steps = [{p: g} for p in self._sides for g in range(len(self._choices(p)) - 2, -1, -1)]
        return tuple(self._with(step) for step in _towards_the_end(steps))

    def samples(self, order: Sequence[int]) -> tuple[Genome, ...]:
        """All points through which a polynomial goes: the unpruned network and the chains, each once."""
        chains = (self.depth_chain(order), self.width_chain(), self.resolution_chain(), self.density_chain())
        return tuple(dict.fromkeys((self.origin, *itertools.chain(*chains))))

    def legal(self, order: Sequence[int]) -> tuple[Genome, ...]:
        """Every combination of a number of blocks removed in `order`, a side, and ratios of widths and densities."""
        depths = [dict.fromkeys(order[:count], 0) for count in range(len(order) + 1)]
        sides = [{p: g} for p in self._sides for g in range(len(self._choices(p)))] or [{}]
        widths, densities = self.width_levels() or [{}], self._ratio_levels(self._densities) or [{}]
        return tuple(self._with(d | s | w | z) for d, s, w, z in itertools.product(depths, sides, widths, densities))

    def width_levels(self) -> list[dict[int, int]]:
        """The genes of all distinct networks that one ratio for all groups makes, narrowest first."""
        return self._ratio_levels(self._widths)

    def _ratio_chain(self, positions: Sequence[int]) -> tuple[Genome, ...]:
        levels = self._ratio_levels(positions)[:-1][::-1]
        return tuple(self._with(level) for level in _towards_the_end(levels))

    def _ratio_levels(self, positions: Sequence[int]) -> list[dict[int, int]]:
        if not positions:
            return []
        parts = {p: self._choices(p) / self._choices(p)[-1] for p in positions}
        # Snapped choices change halfway between two parts; one ratio from each interval shows all networks.
        edges = sorted({float(e) for part in parts.values() for e in (part[1:] + part[:-1]) / 2})
        ratios = [0.0, *((a + b) / 2 for a, b in itertools.pairwise(edges)), 1.0]
        levels = [{p: int(np.argmin(np.abs(part - ratio))) for p, part in parts.items()} for ratio in ratios]
        return list({tuple(level.values()): level for level in levels}.values())

    def _choices(self, position: int) -> FloatArray:
        return np.array(self._space.variables[position].choices, dtype=np.float64)

    def _with(self, genes: dict[int, int]) -> Genome:
        return tuple(genes.get(p, gene) for p, gene in enumerate(self._space.unpruned))


def _towards_the_end(steps: Sequence[dict[int, int]]) -> Sequence[dict[int, int]]:
    """At most `CHAIN_POINTS` of `steps`, evenly, the last among them; the first is too near the origin to be needed."""
    if len(steps) <= CHAIN_POINTS:
        return steps
    return [steps[round(len(steps) * k / CHAIN_POINTS) - 1] for k in range(1, CHAIN_POINTS + 1)]
