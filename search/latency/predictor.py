"""Latency of single kernels: from the table where it was measured, else between measured neighbours of the family.

Interpolation is linear in in_channels, out_channels and density at once (as the trilinear table of Zhao et al. 2021,
JCW, arXiv 2110.08013), which is exact for latencies like a + b * in * out * density. It never leaves the range of its
corners, so it cannot overshoot, and it never extrapolates: not below the smallest measured channel count, and not from
one family into another.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from device_agent.contracts import KernelSpec
from search.errors import KernelNotMeasured
from search.latency.families import Coordinates, KernelFamily, coordinates_of, family_of, without_seed
from search.latency.table import KernelLatency, LatencyTable

#: How many measured values to each side of a coordinate are tried as corners, when nearer cells have gaps.
_NEIGHBOURS = 6

#: The error of linear interpolation grows with the square of the spacing, and leaving a knot out doubles the spacing.
_HELD_OUT_TO_ACTUAL = 0.25

_Bracket = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A latency with its standard deviation. `exact` says that it was measured, not interpolated."""

    latency_ns: float
    std_ns: float
    exact: bool


class KernelPredictor(Protocol):
    """Predicts single kernels: from a table, or from a model of them."""

    def predict(self, kernel: KernelSpec) -> Prediction:
        """The latency of `kernel`. Raises `KernelNotMeasured` where it cannot be told."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """A measured kernel, and what its two neighbours along one axis would have predicted for it."""

    kernel: KernelSpec
    axis: str
    measured_ns: float
    predicted_ns: float

    @property
    def relative_error(self) -> float:
        return self.predicted_ns / self.measured_ns - 1.0


class LatencyPredictor:
    """Predicts the kernels of one latency table. Predictions depend on the table alone and are remembered."""

    def __init__(self, table: LatencyTable) -> None:
        self._exact = table.by_kernel()
        grids: dict[KernelFamily, dict[Coordinates, KernelLatency]] = defaultdict(dict)
        for entry in table.kernels:
            grids[family_of(entry.kernel)][coordinates_of(entry.kernel)] = entry
        self._grids: Mapping[KernelFamily, Mapping[Coordinates, KernelLatency]] = dict(grids)
        self._axes = {family: _axes(grid) for family, grid in self._grids.items()}
        self._held_out = {family: tuple(self._leave_each_out(family)) for family in self._grids}
        self._relative_std = self._interpolation_errors()
        self._known: dict[KernelSpec, Prediction] = {}

    @property
    def families(self) -> tuple[KernelFamily, ...]:
        return tuple(self._grids)

    def held_out(self, family: KernelFamily) -> tuple[HeldOut, ...]:
        """Every knot of `family` between two others along an axis, predicted from them: more than the actual error."""
        return self._held_out[family]

    def held_out_by_family(self) -> dict[KernelFamily, tuple[HeldOut, ...]]:
        """The same of all families."""
        return dict(self._held_out)

    def predict(self, kernel: KernelSpec) -> Prediction:
        """The latency of `kernel`.

        Raises `KernelNotMeasured` where no measured cell of its family encloses it.
        """
        known = self._known.get(kernel)
        if known is None:
            known = self._known[kernel] = self._predict(without_seed(kernel))
        return known

    def _predict(self, kernel: KernelSpec) -> Prediction:
        entry = self._exact.get(kernel)
        if entry is not None:
            return Prediction(latency_ns=entry.latency_ns, std_ns=entry.std_ns, exact=True)
        family = family_of(kernel)
        if family not in self._grids:
            raise KernelNotMeasured(
                f"no kernel of the family '{family}' is in the latency table: measure it, or build the table for "
                "this network and space"
            )
        point = coordinates_of(kernel)
        interpolated = _interpolate(self._grids[family], self._axes[family], point)
        if interpolated is None:
            ranges = ", ".join(
                f"{name} {axis[0]:g}..{axis[-1]:g}" for name, axis in zip(family.axes, self._axes[family], strict=True)
            )
            wanted = ", ".join(f"{name} {value:g}" for name, value in zip(family.axes, point, strict=True))
            raise KernelNotMeasured(
                f"'{family}' at {wanted} is not enclosed by measured kernels (measured: {ranges}); latencies are not "
                "extrapolated: measure this kernel"
            )
        latency_ns, variance = interpolated
        variance += (self._relative_std[family] * latency_ns) ** 2
        return Prediction(latency_ns=latency_ns, std_ns=math.sqrt(variance), exact=False)

    def _leave_each_out(self, family: KernelFamily) -> Iterator[HeldOut]:
        grid, axes = self._grids[family], self._axes[family]
        for point, entry in grid.items():
            for axis, name in enumerate(family.axes):
                line = tuple(v for v in axes[axis] if (*point[:axis], v, *point[axis + 1 :]) in grid)
                place = line.index(point[axis])
                if 0 < place < len(line) - 1:
                    around = (line[place - 1], line[place + 1])
                    cell = tuple(around if i == axis else (v, v) for i, v in enumerate(point))
                    predicted_ns, _ = _multilinear(grid, cell, point)
                    yield HeldOut(
                        kernel=entry.kernel, axis=name, measured_ns=entry.latency_ns, predicted_ns=predicted_ns
                    )

    def _interpolation_errors(self) -> dict[KernelFamily, float]:
        """The relative standard deviation that interpolation adds, by family: the axes' errors, as if independent.

        An axis without inner knots gets the error of that axis over all families, and 0 where no family has any: then
        nothing is known beyond the measurements' own uncertainty.
        """
        by_axis: dict[tuple[KernelFamily | None, str], list[HeldOut]] = defaultdict(list)
        for family, held_out in self._held_out.items():
            for item in held_out:
                by_axis[family, item.axis].append(item)
                by_axis[None, item.axis].append(item)
        errors = {}
        for family, axes in self._axes.items():
            squares = [
                _mean_square(by_axis.get((family, name)) or by_axis.get((None, name), []))
                for name, axis in zip(family.axes, axes, strict=True)
                if len(axis) > 1
            ]
            errors[family] = _HELD_OUT_TO_ACTUAL * math.sqrt(sum(squares))
        return errors


def _mean_square(held_out: list[HeldOut]) -> float:
    return sum(h.relative_error**2 for h in held_out) / len(held_out) if held_out else 0.0


def _axes(grid: Mapping[Coordinates, KernelLatency]) -> tuple[tuple[float, ...], ...]:
    """The distinct values of each coordinate, ascending."""
    return tuple(tuple(sorted(set(values))) for values in zip(*grid, strict=True))


def _interpolate(
    grid: Mapping[Coordinates, KernelLatency], axes: tuple[tuple[float, ...], ...], point: Coordinates
) -> tuple[float, float] | None:
    """Latency and its variance at `point`, from the tightest cell whose corners were all measured; None without one."""
    brackets = [_brackets(axis, value) for axis, value in zip(axes, point, strict=True)]
    if not all(brackets):
        return None
    tightest = tuple(choices[0] for choices in brackets)
    if _complete(grid, tightest):
        return _multilinear(grid, tightest, point)
    # The table has gaps here (a kernel that failed, or single kernels of other searches): look for a wider cell.
    extents = [axis[-1] - axis[0] or 1.0 for axis in axes]

    def looseness(cell: tuple[_Bracket, ...]) -> float:
        return sum((high - low) / extent for (low, high), extent in zip(cell, extents, strict=True))

    for cell in sorted(itertools.product(*brackets), key=looseness):
        if _complete(grid, cell):
            return _multilinear(grid, cell, point)
    return None


def _brackets(axis: tuple[float, ...], value: float) -> list[_Bracket]:
    """Pairs of measured values around `value`, tightest first; a measured value brackets itself."""
    below = [v for v in axis if v < value][-_NEIGHBOURS:]
    above = [v for v in axis if v > value][:_NEIGHBOURS]
    pairs = sorted(itertools.product(below, above), key=lambda pair: pair[1] - pair[0])
    return [(value, value), *pairs] if value in axis else pairs


def _complete(grid: Mapping[Coordinates, KernelLatency], cell: tuple[_Bracket, ...]) -> bool:
    return all(corner in grid for corner in itertools.product(*cell))


def _multilinear(
    grid: Mapping[Coordinates, KernelLatency], cell: tuple[_Bracket, ...], point: Coordinates
) -> tuple[float, float]:
    latency_ns = variance = 0.0
    sides = [
        ((low, 1.0),) if low == high else ((low, (high - value) / (high - low)), (high, (value - low) / (high - low)))
        for (low, high), value in zip(cell, point, strict=True)
    ]
    for corner in itertools.product(*sides):
        entry = grid[tuple(value for value, _ in corner)]
        weight = math.prod(w for _, w in corner)
        latency_ns += weight * entry.latency_ns
        variance += (weight * entry.std_ns) ** 2
    return latency_ns, variance
