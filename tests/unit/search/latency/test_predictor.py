"""Predicting kernels: exact where measured, bounded by the neighbours between, refused outside."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.contracts import Activation, KernelSpec, Op, PruningScheme, Source, WeightPruning
from search.errors import KernelNotMeasured
from search.latency.predictor import LatencyPredictor
from search.latency.table import KernelLatency, LatencyTable


def conv(in_channels: int, out_channels: int, density: float | None = None, **changes: object) -> KernelSpec:
    pruning = WeightPruning()
    if density is not None:
        pruning = WeightPruning(scheme=PruningScheme.GROUP, density=density, block_filters=4)
    kernel = KernelSpec(
        op=Op.CONV2D, in_channels=in_channels, out_channels=out_channels, input_h=8, input_w=8, kernel_h=3, kernel_w=3,
        padding=1, activation=Activation.RELU, pruning=pruning,
    )  # fmt: skip
    return dataclasses.replace(kernel, **changes)


def predictor_of(*entries: tuple[KernelSpec, float, float]) -> LatencyPredictor:
    table = LatencyTable(
        device_id="d",
        setup_id="m",
        runtime="r",
        runtime_version="1",
        source=Source.SIMULATED,
        kernels=tuple(KernelLatency(kernel=k, latency_ns=t, std_ns=s) for k, t, s in entries),
    )
    return LatencyPredictor(table)


GRID = predictor_of(
    *((conv(i, o, d), 100.0 + i * o * d, 1.0) for i, o, d in itertools.product((8, 16, 32), (8, 32), (0.2, 0.8))),
    (conv(32, 32), 900.0, 2.0),
    (conv(8, 32), 300.0, 2.0),
)


def test_exact_hit_comes_first_whatever_its_seed() -> None:
    prediction = GRID.predict(conv(16, 32, 0.2, seed=5))
    assert prediction.exact
    assert prediction.latency_ns == 100 + 16 * 32 * 0.2
    assert prediction.std_ns == 1.0


@given(st.integers(8, 32), st.integers(8, 32), st.sampled_from((0.2, 0.35, 0.5, 0.8)))
def test_interpolation_is_exact_for_products_and_stays_between(in_channels: int, out_channels: int, d: float) -> None:
    prediction = GRID.predict(conv(in_channels, out_channels, d))
    assert prediction.latency_ns == pytest.approx(100 + in_channels * out_channels * d)


def test_by_hand_in_one_dimension() -> None:
    # dense: 300 at 8 and 900 at 32 input channels; 14 is a quarter of the way
    prediction = GRID.predict(conv(14, 32))
    assert prediction.latency_ns == pytest.approx(450.0)
    assert not prediction.exact
    assert prediction.std_ns >= ((0.75 * 2) ** 2 + (0.25 * 2) ** 2) ** 0.5 - 1e-12


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (conv(4, 8, 0.2), r"not enclosed by measured kernels \(measured: in_channels 8..32"),
        (conv(8, 64, 0.2), "not extrapolated"),
        (conv(8, 8, 0.1), "density 0.1"),
        (conv(8, 8), "out_channels 8"),  # dense kernels were measured with 32 outputs only: sparse ones do not help
        (conv(8, 8, 0.5, stride=2), "no kernel of the family"),
        (conv(8, 8, 0.5, residual=True), "no kernel of the family"),
        (conv(8, 8, 0.5, activation=Activation.NONE), "no kernel of the family"),
    ],
)
def test_outside_is_refused(kernel: KernelSpec, message: str) -> None:
    with pytest.raises(KernelNotMeasured, match=message):
        GRID.predict(kernel)


def test_gap_in_the_grid_widens_the_cell() -> None:
    whole = {(i, d): 100.0 + i * d for i in (8, 16, 24, 32) for d in (0.2, 0.5, 0.8)}
    del whole[16, 0.2]  # this kernel failed on the device
    predictor = predictor_of(*((conv(i, 8, d), t, 0.0) for (i, d), t in whole.items()))
    assert predictor.predict(conv(16, 8, 0.2)).latency_ns == pytest.approx(100 + 16 * 0.2)
    assert predictor.predict(conv(12, 8, 0.3)).latency_ns == pytest.approx(100 + 12 * 0.3)


def test_stray_kernel_does_not_disturb() -> None:
    # one kernel of another search, which is no corner of any cell
    stray = predictor_of(
        *((conv(i, 8, d), 100.0 + i * d, 0.0) for i in (8, 32) for d in (0.2, 0.8)), (conv(20, 8, 0.5), 999.0, 0.0)
    )
    assert stray.predict(conv(16, 8, 0.5)).latency_ns == pytest.approx(108.0)
    assert stray.predict(conv(20, 8, 0.5)).latency_ns == 999.0


def test_tied_channels() -> None:
    def depthwise(channels: int) -> KernelSpec:
        return conv(channels, channels, op=Op.DEPTHWISE_CONV2D)

    predictor = predictor_of((depthwise(8), 80.0, 0.0), (depthwise(16), 160.0, 0.0))
    assert predictor.predict(depthwise(12)).latency_ns == pytest.approx(120.0)


def test_held_out_knots_and_what_they_say_about_uncertainty() -> None:
    # the middle knot lies 20 % below the line between its neighbours
    entries = [(conv(i, 8), t, 0.0) for i, t in ((8, 100.0), (16, 125.0), (24, 200.0))]
    predictor = predictor_of(*entries)
    (family,) = predictor.families
    (held_out,) = predictor.held_out(family)
    assert held_out.predicted_ns == 150.0
    assert held_out.relative_error == pytest.approx(0.2)
    between = predictor.predict(conv(12, 8))
    assert between.std_ns == pytest.approx(0.25 * 0.2 * between.latency_ns)
