"""JCW's trilinear interpolation over full grids."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from device_agent.contracts import KernelSpec, Op, PruningScheme, WeightPruning
from search.errors import KernelNotMeasured, LatencyModelError
from search.latency.interpolation import TrilinearBaseline
from search.latency.table import KernelLatency


def kernel(in_channels: int, out_channels: int, density: float) -> KernelSpec:
    pruning = WeightPruning(scheme=PruningScheme.GROUP, density=density, block_filters=4)
    return KernelSpec(
        op=Op.CONV2D, in_channels=in_channels, out_channels=out_channels, input_h=8, input_w=8, pruning=pruning
    )


def latency_ns(spec: KernelSpec) -> float:
    return 10.0 + spec.in_channels * spec.out_channels * (1.0 + 3.0 * spec.pruning.density)


GRID = [kernel(*knot) for knot in itertools.product((8, 16, 32), (8, 32), (0.2, 1.0))]


def entries(kernels: list[KernelSpec]) -> list[KernelLatency]:
    return [KernelLatency(kernel=k, latency_ns=latency_ns(k)) for k in kernels]


@pytest.mark.parametrize("knot", [(8, 8, 0.2), (12, 20, 0.5), (31, 9, 0.99)])
def test_it_is_exact_where_latency_is_linear_in_each(knot: tuple[int, int, float]) -> None:
    spec = kernel(*knot)
    assert TrilinearBaseline(entries(GRID)).predict_ns(spec) == pytest.approx(latency_ns(spec))


def test_an_axis_may_have_one_knot() -> None:
    flat = [k for k in GRID if k.in_channels == 8]
    spec = kernel(8, 20, 0.6)
    assert TrilinearBaseline(entries(flat)).predict_ns(spec) == pytest.approx(latency_ns(spec))
    assert TrilinearBaseline(entries(GRID[:1])).predict_ns(GRID[0]) == latency_ns(GRID[0])
    with pytest.raises(KernelNotMeasured, match="outside of its grid"):
        TrilinearBaseline(entries(flat)).predict_ns(kernel(9, 20, 0.6))


def test_it_neither_extrapolates_nor_fills_gaps() -> None:
    baseline = TrilinearBaseline(entries(GRID))
    with pytest.raises(KernelNotMeasured, match=r"8\.\.32"):
        baseline.predict_ns(kernel(4, 8, 0.5))
    with pytest.raises(KernelNotMeasured, match="measure its grid"):
        baseline.predict_ns(dataclasses.replace(kernel(8, 8, 0.5), input_h=9))
    with pytest.raises(LatencyModelError, match="lacks 1 of 12 knots"):
        TrilinearBaseline(entries(GRID[1:]))
