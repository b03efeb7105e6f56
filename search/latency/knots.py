"""Which kernels to measure so that every candidate of a space can be predicted.

Kernels of all operators are pooled by family. Each family gets a grid over the channel counts and densities that the
space can reach in it, its corners included, so that prediction only ever interpolates. JCW's published table shows what
that takes: 3 x 3 x 4 cells a layer reproduce the rest of it to 1.4 % on average (arXiv 2110.08013, released table).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from device_agent.contracts import ContractError, KernelSpec, WeightPruning
from search.domain.network import NetworkSpec
from search.domain.space import Decisions, SchemeChoice, SearchSpace, Variable, VariableKind
from search.latency.families import KernelFamily, coordinates_of, family_of, kernel_at, without_seed
from search.lowering import channel_sources, lower

#: Measured values along an axis, where `max_kernels` leaves room: 4 keep the error near the noise of measuring.
KNOTS_PER_AXIS = 4

#: The same for channels where input and output vary together: latency is nearly linear in each, and the grid is large.
_KNOTS_PER_JOINT_CHANNELS = 3

#: The two ends: with fewer, candidates would lie outside of the measured range.
_MIN_KNOTS = 2


@dataclass(slots=True)
class _Grid:
    """The region of one family that a space reaches, and how many knots each axis gets. The last axis is density."""

    like: KernelSpec
    values: list[set[float]]
    #: The kernels of the dense network in this family, measured whether they are on the grid or not.
    dense: dict[KernelSpec, None] = field(default_factory=dict)
    knots: list[int] = field(default_factory=list)
    kernels: dict[KernelSpec, None] = field(default_factory=dict)

    def start(self) -> None:
        joint = sum(len(values) > 1 for values in self.values[:-1]) > 1
        channels = _KNOTS_PER_JOINT_CHANNELS if joint else KNOTS_PER_AXIS
        limits = [channels] * (len(self.values) - 1) + [KNOTS_PER_AXIS]
        self.knots = [min(limit, len(values)) for limit, values in zip(limits, self.values, strict=True)]
        self._fill()

    @property
    def can_coarsen(self) -> bool:
        return any(count > _MIN_KNOTS for count in self.knots)

    def coarsen(self) -> None:
        """Take one knot from the longest axis. On ties the channels give way first: density is less linear."""
        longest = max(range(len(self.knots)), key=lambda axis: (self.knots[axis], -axis))
        self.knots[longest] -= 1
        self._fill()

    def _fill(self) -> None:
        axes = [even_knots(sorted(v), n) for v, n in zip(self.values, self.knots, strict=True)]
        self.kernels = dict.fromkeys(kernel_at(self.like, point) for point in itertools.product(*axes)) | self.dense


def knots_for(spec: NetworkSpec, space: SearchSpace, max_kernels: int) -> tuple[KernelSpec, ...]:
    """The kernels to measure for `space` on `spec`: at most `max_kernels`, those of the dense network among them.

    When there are too many, the largest grids are made coarser, down to the two ends of each axis; no family is
    dropped. The order is that of the network. All kernels have seed 0.

    Raises `ContractError` where even the coarsest grids exceed `max_kernels`.
    """
    grids = list(_regions(spec, space).values())
    for grid in grids:
        grid.start()
    # Families share no kernel, so the sizes add up.
    while (total := sum(len(grid.kernels) for grid in grids)) > max_kernels:
        sparing = [grid for grid in grids if grid.can_coarsen]
        if not sparing:
            raise ContractError(
                f"{len(grids)} kernel families of {spec.architecture} need at least {total} kernels, but "
                f"max_kernels is {max_kernels}: raise measuring.max_kernels, or open fewer schemes"
            )
        max(sparing, key=lambda grid: len(grid.kernels)).coarsen()
    return tuple(kernel for grid in grids for kernel in grid.kernels)


def corners_for(spec: NetworkSpec, space: SearchSpace) -> tuple[KernelSpec, ...]:
    """The corners of what `space` can reach in each family, and the kernels of the dense network: what every prediction
    lies between. The order is that of the network. All kernels have seed 0.
    """
    grids = _regions(spec, space).values()
    for grid in grids:
        grid.start()
        while grid.can_coarsen:
            grid.coarsen()
    return tuple(kernel for grid in grids for kernel in grid.kernels)


def even_knots(values: Sequence[float], count: int) -> tuple[float, ...]:
    """`count` of the ascending `values`, as evenly spaced in value as they allow, with both ends."""
    if count >= len(values):
        return tuple(values)
    chosen: list[float] = []
    for target in np.linspace(values[0], values[-1], count):
        left = [v for v in values if v not in chosen]
        chosen.append(left[int(np.argmin(np.abs(np.array(left) - target)))])
    return tuple(sorted(chosen))


def _regions(spec: NetworkSpec, space: SearchSpace) -> dict[KernelFamily, _Grid]:
    """For each family the values that its kernels' coordinates take in `space`, in the order of the network."""
    prunings = _reachable_prunings(space)
    reached: dict[str, dict[KernelSpec, None]] = {op.name: {} for op in spec.plan.ops}
    for decisions in _channel_probes(spec, space):
        for op in lower(spec, decisions).ops:
            reached[op.name][op.kernel] = None
    grids: dict[KernelFamily, _Grid] = {}
    for name, kernels in reached.items():
        for kernel in kernels:
            # A grouped convolution may be left with one channel for each group, and is another operator then.
            points = [coordinates_of(other) for other in kernels if other.op is kernel.op]
            for pruning in prunings.get(name, (kernel.pruning,)):
                like = _with_pruning(kernel, pruning, name)
                family = family_of(like)
                point = coordinates_of(like)
                grid = grids.setdefault(family, _Grid(like=like, values=[set() for _ in point]))
                grid.values[-1].add(point[-1])
                for axis in range(len(point) - 1):
                    grid.values[axis].update(other[axis] for other in points)
    for size in _resolutions(space):
        for kernel in map(without_seed, lower(spec, Decisions(resolution=size)).kernels):
            if family_of(kernel) in grids:
                grids[family_of(kernel)].dense[kernel] = None
            else:  # every scheme that the space offers here is sparse, at any density
                grids[family_of(kernel)] = _Grid(
                    like=kernel, values=[{v} for v in coordinates_of(kernel)], dense={kernel: None}
                )
    return grids


def _channel_probes(spec: NetworkSpec, space: SearchSpace) -> Iterable[Decisions]:
    """Decisions that together show every channel count and every resolution that an operator can have.

    Where an operator's input and its output belong to one group each, one group at a time shows them all. Of sums of
    several groups, all groups at a time show the ends and some between.
    """
    counts = [count for s in channel_sources(spec).values() for count in (s.inputs, s.outputs)]
    variables = _variables(space, VariableKind.CHANNELS)
    most = max((len(variable.choices) for variable in variables), default=0)
    for size in _resolutions(space):
        yield Decisions(resolution=size)
        for variable in variables:
            for choice in variable.choices:
                yield Decisions(channels={variable.target: int(choice)}, resolution=size)
        for rank in range(most) if any(count.is_sum for count in counts) else ():
            channels = {v.target: int(v.choices[min(rank, len(v.choices) - 1)]) for v in variables}
            yield Decisions(channels=channels, resolution=size)


def _resolutions(space: SearchSpace) -> tuple[int | None, ...]:
    sizes = [int(c) for v in _variables(space, VariableKind.RESOLUTION) for c in v.choices]
    return tuple(sizes) or (None,)


def _variables(space: SearchSpace, kind: VariableKind) -> list[Variable]:
    return [v for v in space.variables if v.kind is kind]


def _reachable_prunings(space: SearchSpace) -> dict[str, tuple[WeightPruning, ...]]:
    """For each operator with a density or scheme variable: all prunings that it can get."""
    densities = {v.target: tuple(float(c) for c in v.choices) for v in _variables(space, VariableKind.DENSITY)}
    schemes = {
        v.target: tuple(SchemeChoice.parse(str(c)) for c in v.choices) for v in _variables(space, VariableKind.SCHEME)
    }
    return {
        target: tuple(
            dict.fromkeys(
                scheme.with_density(density)
                for scheme in schemes.get(target, (space.default_scheme,))
                for density in densities.get(target, (1.0,))
            )
        )
        for target in dict.fromkeys((*densities, *schemes))
    }


def _with_pruning(kernel: KernelSpec, pruning: WeightPruning, name: str) -> KernelSpec:
    try:
        return dataclasses.replace(kernel, pruning=pruning, seed=0)
    except ContractError as error:
        raise ContractError(f"{name}: {error}") from None
