"""From kernels to whole networks: the fit, its robustness, and the card."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.contracts import KernelSpec, Op, PruningScheme, Source, WeightPruning
from search.errors import LatencyModelError
from search.latency.card import model_card, summarise_errors
from search.latency.network import CorrectionForm, NetworkLatencyModel, fit_correction, fit_network_model, sum_kernels
from search.latency.predictor import LatencyPredictor
from search.latency.runtime_weights import RuntimeWeights
from search.latency.table import KernelLatency, LatencyTable, NetworkLatency
from tests.unit.search.sample_networks import resnet_spec

PLAN = resnet_spec().plan


def linear(outputs: int) -> KernelSpec:
    return KernelSpec(op=Op.FULLY_CONNECTED, in_channels=4, out_channels=outputs)


PRUNED = dataclasses.replace(linear(1), pruning=WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.5))

TABLE = LatencyTable(
    device_id="d",
    setup_id="m",
    runtime="r",
    runtime_version="1",
    source=Source.SIMULATED,
    kernels=(
        *(KernelLatency(kernel=linear(n), latency_ns=1000.0 * n, std_ns=5.0) for n in (1, 100)),
        KernelLatency(kernel=PRUNED, latency_ns=1000.0, std_ns=5.0),
    ),
)
PREDICTOR, WEIGHTS = LatencyPredictor(TABLE), RuntimeWeights(TABLE.runtime, TABLE.kernels)
DENSE_BYTES, PRUNED_BYTES = WEIGHTS.weight_bytes([linear(1), PRUNED]).tolist()


def networks(sizes: list[int], latencies_ns: list[float]) -> list[NetworkLatency]:
    return [NetworkLatency(kernels=(linear(n),), latency_ns=t) for n, t in zip(sizes, latencies_ns, strict=True)]


def test_recovers_an_affine_correction() -> None:
    sizes = [1, 20, 40, 70, 100]
    correction = fit_correction(PREDICTOR, WEIGHTS, networks(sizes, [1.2 * 1000 * n + 5000 for n in sizes]))
    assert correction.form is CorrectionForm.AFFINE
    assert correction.scale == pytest.approx(1.2)
    assert correction.offset_ns == pytest.approx(5000)
    assert correction.relative_std == pytest.approx(0, abs=1e-9)


def test_one_outlier_does_not_carry_the_fit() -> None:
    sizes = [10, 20, 40, 60, 70, 85, 100]
    rng = np.random.default_rng(0)
    latencies = [1100 * n * (1 + 0.005 * rng.standard_normal()) + 2000 for n in sizes]
    latencies[3] *= 3.0
    correction = fit_correction(PREDICTOR, WEIGHTS, networks(sizes, latencies))
    assert correction.scale == pytest.approx(1.1, rel=0.05)
    assert abs(correction.relative_residuals[3]) > 0.5
    assert correction.relative_std < 0.05


def test_negative_constant_becomes_proportional() -> None:
    sizes = [20, 40, 70, 100]
    correction = fit_correction(PREDICTOR, WEIGHTS, networks(sizes, [1000.0 * n - 9000 for n in sizes]))
    assert correction.form is CorrectionForm.PROPORTIONAL
    assert correction.offset_ns == 0
    assert 0.5 < correction.scale < 1


def test_alike_networks_give_a_factor_only() -> None:
    correction = fit_correction(PREDICTOR, WEIGHTS, networks([50, 51, 52], [60e3, 55e3, 50e3]))
    assert correction.form is CorrectionForm.PROPORTIONAL
    assert correction.scale == pytest.approx(1.08, abs=0.02)


def mixed(shares: list[tuple[int, int]], latency_ns: Callable[[int, int], float]) -> list[NetworkLatency]:
    """Networks of so many dense and so many pruned kernels, which take 1000 ns each alone but read other bytes."""
    return [
        NetworkLatency(kernels=(linear(1),) * dense + (PRUNED,) * pruned, latency_ns=latency_ns(dense, pruned))
        for dense, pruned in shares
    ]


SHARES = [(40, 0), (30, 10), (20, 25), (12, 20), (8, 40), (4, 12)]


def whole_ns(dense: int, pruned: int, once_ns: float) -> float:
    """With 20 ns for each byte of weights."""
    return 1100.0 * (dense + pruned) + 20.0 * (dense * DENSE_BYTES + pruned * PRUNED_BYTES) + once_ns


def test_bytes_of_weights_have_a_price() -> None:
    assert DENSE_BYTES >= 16 > PRUNED_BYTES > 0
    measured = mixed(SHARES, lambda dense, pruned: whole_ns(dense, pruned, 3000))
    correction = fit_correction(PREDICTOR, WEIGHTS, measured)
    assert correction.form is CorrectionForm.WEIGHTS
    assert correction.scale == pytest.approx(1.1)
    assert correction.weight_byte_ns == pytest.approx(20.0)
    assert correction.offset_ns == pytest.approx(3000)
    model = NetworkLatencyModel(PREDICTOR, WEIGHTS, correction)
    assert model.kernel_ns(PRUNED) == pytest.approx(1100.0 + 20.0 * PRUNED_BYTES)


def test_a_constant_below_zero_leaves_the_price_of_bytes() -> None:
    measured = mixed(SHARES, lambda dense, pruned: whole_ns(dense, pruned, -2000))
    correction = fit_correction(PREDICTOR, WEIGHTS, measured)
    assert correction.form is CorrectionForm.WEIGHTS
    assert correction.offset_ns == 0


@pytest.mark.parametrize(
    "measured",
    [
        pytest.param(mixed(SHARES, lambda dense, pruned: 1100.0 * (dense + pruned) + 3000), id="no difference"),
        pytest.param(mixed(SHARES[:4], lambda dense, pruned: whole_ns(dense, pruned, 0)), id="too few"),
        pytest.param(
            mixed([(n, n) for n in (5, 10, 20, 30, 40)], lambda dense, pruned: whole_ns(dense, pruned, 0)),
            id="bytes are as the sums",
        ),
    ],
)
def test_bytes_have_no_price_where_it_says_no_more(measured: list[NetworkLatency]) -> None:
    correction = fit_correction(PREDICTOR, WEIGHTS, measured)
    assert correction.form is CorrectionForm.AFFINE or correction.form is CorrectionForm.PROPORTIONAL
    assert correction.weight_byte_ns == 0


def test_too_few_networks() -> None:
    with pytest.raises(LatencyModelError, match="2 whole networks were measured"):
        fit_correction(PREDICTOR, WEIGHTS, networks([1, 2], [1.0, 2.0]))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 100), st.floats(1e2, 1e7)), min_size=3, max_size=9))
def test_never_negative_whatever_was_measured(rows: list[tuple[int, float]]) -> None:
    correction = fit_correction(PREDICTOR, WEIGHTS, networks([n for n, _ in rows], [t for _, t in rows]))
    assert correction.scale > 0
    assert correction.offset_ns >= 0
    assert np.isfinite(correction.relative_std)


def test_whole_model_from_a_table() -> None:
    kernels = tuple(dict.fromkeys(PLAN.kernels))
    entries = tuple(KernelLatency(kernel=k, latency_ns=1000.0 + k.macs / 4, std_ns=7.0) for k in kernels)
    total = sum(1000.0 + k.macs / 4 for k in PLAN.kernels)
    table = LatencyTable(
        device_id="d",
        setup_id="m",
        runtime="r",
        runtime_version="1",
        source=Source.SIMULATED,
        kernels=entries,
        networks=tuple(NetworkLatency(kernels=PLAN.kernels, latency_ns=1.5 * total) for _ in range(3)),
    )
    model = fit_network_model(table)
    prediction = model.predict(PLAN)
    assert prediction.latency_ns == pytest.approx(1.5 * total)
    assert prediction.std_ns == pytest.approx(1.5 * 7.0 * len(PLAN.ops) ** 0.5)
    assert not prediction.exact
    assert model.latency_ms(PLAN) == pytest.approx(1.5e-6 * total)


def test_sum_is_exact_only_if_all_kernels_are() -> None:
    assert sum_kernels(PREDICTOR, [linear(1), linear(100)]).exact
    total = sum_kernels(PREDICTOR, [linear(1), linear(50)])
    assert total.latency_ns == pytest.approx(51000.0)
    assert not total.exact


def test_summary_by_hand() -> None:
    summary = summarise_errors([100, 100, 100, 200], [103, 92, 120, 200])
    assert summary.count == 4
    assert summary.median == pytest.approx(0.055)
    assert summary.within_5_percent == 0.5
    assert summary.within_10_percent == 0.75
    assert summary.rmspe == pytest.approx(((0.03**2 + 0.08**2 + 0.2**2) / 4) ** 0.5)
    # ranks (1, 1, 1, 3) against (1, 0, 2, 3)
    assert summary.spearman == pytest.approx(np.corrcoef([1, 1, 1, 3], [1, 0, 2, 3])[0, 1])


def test_spearman_without_spread_is_undefined() -> None:
    assert summarise_errors([1, 1, 1], [1, 2, 3]).spearman is None


def test_card() -> None:
    model = NetworkLatencyModel(
        PREDICTOR, WEIGHTS, fit_correction(PREDICTOR, WEIGHTS, networks([1, 50, 100], [1e3, 5e4, 1e5]))
    )
    card = model_card(PREDICTOR.held_out_by_family(), model.correction, 2)
    assert card.kernels is None
    assert card.families == {}
    assert card.num_families == 2
