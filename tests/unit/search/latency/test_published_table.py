"""The predictor on real latencies: the table that JCW's authors measured for ResNet-18 on a Cortex-A72."""

from __future__ import annotations

import itertools

import numpy as np

from device_agent.contracts import KernelSpec, Op, PruningScheme, Source, WeightPruning
from search.latency.card import summarise_errors
from search.latency.predictor import LatencyPredictor
from search.latency.table import KernelLatency, LatencyTable
from tests.shared_data import shared_data

EIGHTHS = (4, 5, 6, 7, 8)
TENTHS = (3, 4, 5, 6, 7, 8, 9, 10)
#: 3 x 3 x 4 knots a layer, as many as `knots_for` takes where input and output channels vary together.
KNOT_EIGHTHS = (4, 6, 8)
KNOT_TENTHS = (3, 5, 8, 10)


def kernel(row: list[str], out_eighths: int, in_eighths: int, tenths: int) -> KernelSpec:
    in_channels, extent, out_channels, size, stride = map(int, row[:5])
    return KernelSpec(
        op=Op.CONV2D,
        in_channels=in_channels * in_eighths // 8,
        out_channels=out_channels * out_eighths // 8,
        input_h=extent,
        input_w=extent,
        kernel_h=size,
        kernel_w=size,
        stride=stride,
        padding=size // 2,
        pruning=WeightPruning(scheme=PruningScheme.GROUP, density=tenths / 10, block_filters=4),
    )


def test_36_cells_a_layer_reproduce_the_rest() -> None:
    latency_ms = np.load(shared_data("jcw-resnet18-latency-ms.npy"))
    rows = [line.split() for line in shared_data("jcw-resnet18-convs.txt").read_text().splitlines()]
    measured, predicted = [], []
    for layer, row in enumerate(rows):
        if layer == 0:
            continue  # the stem's input channels do not vary
        cells = {
            kernel(row, o, i, d): float(latency_ms[layer, o, i, d]) * 1e6
            for o, i, d in itertools.product(EIGHTHS, EIGHTHS, TENTHS)
        }
        knots = {kernel(row, *k) for k in itertools.product(KNOT_EIGHTHS, KNOT_EIGHTHS, KNOT_TENTHS)}
        predictor = LatencyPredictor(
            LatencyTable(
                device_id="a72",
                setup_id="published",
                runtime="jcw",
                runtime_version="2021",
                source=Source.IMPORTED,
                kernels=tuple(KernelLatency(kernel=k, latency_ns=t) for k, t in cells.items() if k in knots),
            )
        )
        for spec, latency_ns in cells.items():
            if spec not in knots:
                measured.append(latency_ns)
                predicted.append(predictor.predict(spec).latency_ns)
    summary = summarise_errors(measured, predicted)
    assert summary.count == 19 * (25 * 8 - 36)
    assert summary.median < 0.015
    assert summary.p95 < 0.05
    assert summary.within_10_percent > 0.99
    assert summary.spearman is not None
    assert summary.spearman > 0.999
