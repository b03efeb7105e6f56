"""The published interpolation of JCW, as a baseline for latency models: trilinear over (in, out, density) in a grid.

Zhao et al. 2021 (JCW, arXiv 2110.08013) measure each convolution at knots of input channels, output channels and
density, and take the latency in between by linear interpolation (`interpn` in model_latency.py of the released code).
Their grids begin at 0 channels and density 0. Here they begin at the smallest measured knot, and nothing is
extrapolated: a line from 0 channels to the first knot is no latency of anything.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
from scipy.interpolate import RegularGridInterpolator

from device_agent.contracts import KernelSpec
from search.errors import KernelNotMeasured, LatencyModelError
from search.latency.families import Coordinates, KernelFamily, coordinates_of, family_of
from search.latency.table import KernelLatency


class TrilinearBaseline:
    """Latencies of kernels between the knots of full grids, one grid for each kernel family.

    Raises `LatencyModelError` where a family's knots are no full grid: the published method has no other.
    """

    def __init__(self, entries: Iterable[KernelLatency]) -> None:
        grids: dict[KernelFamily, dict[Coordinates, float]] = defaultdict(dict)
        for entry in entries:
            grids[family_of(entry.kernel)][coordinates_of(entry.kernel)] = entry.latency_ns
        self._grids = {family: _interpolator(family, grid) for family, grid in grids.items()}

    def predict_ns(self, kernel: KernelSpec) -> float:
        """The latency of `kernel` in ns. Raises `KernelNotMeasured` outside of its family's grid."""
        family, point = family_of(kernel), coordinates_of(kernel)
        found = self._grids.get(family)
        if found is None:
            raise KernelNotMeasured(f"no kernel of the family '{family}' was measured: measure its grid")
        axes, interpolate = found
        if any(not axis[0] <= value <= axis[-1] for axis, value in zip(axes, point, strict=True)):
            ranges = ", ".join(f"{axis[0]:g}..{axis[-1]:g}" for axis in axes)
            raise KernelNotMeasured(f"'{family}' at {point} is outside of its grid ({ranges}): measure wider")
        varying = [value for axis, value in zip(axes, point, strict=True) if len(axis) > 1]
        return float(interpolate(varying)[0]) if varying else float(interpolate([0.0])[0])


_Axes = tuple[tuple[float, ...], ...]


def _interpolator(family: KernelFamily, grid: Mapping[Coordinates, float]) -> tuple[_Axes, RegularGridInterpolator]:
    """The axes of a grid, and an interpolator over those that vary (of one dummy axis where none does)."""
    axes = tuple(tuple(sorted(set(values))) for values in zip(*grid, strict=True))
    points = list(itertools.product(*axes))
    missing = [point for point in points if point not in grid]
    if missing:
        raise LatencyModelError(
            f"'{family}' lacks {len(missing)} of {len(points)} knots of its grid, the first at {missing[0]}: trilinear "
            "interpolation needs all of them"
        )
    varying = [axis for axis in axes if len(axis) > 1]
    values = np.array([grid[point] for point in points])
    if not varying:
        return axes, RegularGridInterpolator(((0.0, 1.0),), np.repeat(values, 2), method="linear")
    shape = [len(axis) for axis in varying]
    return axes, RegularGridInterpolator(tuple(varying), values.reshape(shape), method="linear")
