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


class AxisPoints:
    """The coordinates that a space has of depth, width and resolution; all other variables stay unpruned.

    Depth is (kept blocks + 1) / (removable blocks + 1): the one stands for what cannot be removed, so that no network
    has depth 0. Width is the kept part of all channels, all groups being scaled by one ratio; resolution the side as a
    part of the largest. Raises `ContractError` where the space has none of them.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        positions = {
            kind: [p for p, v in enumerate(space.variables) if v.kind is kind]
            for kind in (VariableKind.DEPTH, VariableKind.CHANNELS, VariableKind.RESOLUTION)
        }
        self.blocks, self._widths, self._sides = positions.values()
        self.names = tuple(
            name for name, found in zip(("depth", "width", "resolution"), positions.values(), strict=True) if found
        )
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
        for positions in (self._widths, self._sides):
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
        levels = self.width_levels()[:-1][::-1]
        return tuple(self._with(level) for level in _towards_the_end(levels))

    def resolution_chain(self) -> tuple[Genome, ...]:
        """One side smaller at a time."""
        steps = [{p: g} for p in self._sides for g in range(len(self._choices(p)) - 2, -1, -1)]
        return tuple(self._with(step) for step in _towards_the_end(steps))

    def legal(self, order: Sequence[int]) -> tuple[Genome, ...]:
        """Every combination of a number of blocks removed in `order`, a side, and a ratio of widths."""
        depths = [dict.fromkeys(order[:count], 0) for count in range(len(order) + 1)]
        sides = [{p: g} for p in self._sides for g in range(len(self._choices(p)))] or [{}]
        widths = self.width_levels() or [{}]
        return tuple(self._with(d | s | w) for d, s, w in itertools.product(depths, sides, widths))

    def width_levels(self) -> list[dict[int, int]]:
        """The genes of all distinct networks that one ratio for all groups makes, narrowest first."""
        if not self._widths:
            return []
        parts = {p: self._choices(p) / self._choices(p)[-1] for p in self._widths}
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
