"""What a latency model has to beat, on the same measurements: each predicts the sum over a network's kernels in ns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from sklearn.ensemble import RandomForestRegressor

from device_agent.contracts import KernelSpec, Op, Source
from search.errors import KernelNotMeasured
from search.latency.families import coordinates_of, without_seed
from search.latency.model.features import kernel_features
from search.latency.predictor import LatencyPredictor
from search.latency.table import KernelLatency, LatencyTable

FloatArray = NDArray[np.float64]

#: The latencies of kernels in ns.
KernelPredictor = Callable[[Sequence[KernelSpec]], FloatArray]

_TREES = 200


def macs_baseline(entries: Sequence[KernelLatency]) -> KernelPredictor:
    """A time for each multiply-accumulate that is left, and one for each kernel, by relative least squares."""
    measured = np.array([entry.latency_ns for entry in entries])
    columns = np.array([[entry.kernel.macs, 1.0] for entry in entries])
    scale = columns.mean(axis=0)
    prices = nnls(columns / scale / measured[:, None], np.ones(len(measured)))[0] / scale

    def predict(kernels: Sequence[KernelSpec]) -> FloatArray:
        return np.array([[kernel.macs, 1.0] for kernel in kernels]) @ prices

    return predict


def additive_table_baseline(entries: Sequence[KernelLatency]) -> KernelPredictor:
    """The additive table: interpolated where measured kernels enclose one, else the nearest measured kernel.

    Nearest in the logarithms of channels and density, in the same family where it has any, else the same mode.
    """
    unique = {without_seed(entry.kernel): entry for entry in entries}
    table = LatencyTable(
        device_id="bench",
        setup_id="bench",
        runtime="native",
        runtime_version="bench",
        source=Source.MEASURED,
        kernels=tuple(unique.values()),
    )
    interpolated = LatencyPredictor(table)
    by_op: dict[object, list[KernelLatency]] = defaultdict(list)
    for entry in entries:
        by_op[_kind(entry.kernel)].append(entry)
        by_op[entry.kernel.op].append(entry)
    everything = list(entries)

    def one(kernel: KernelSpec) -> float:
        try:
            return interpolated.predict(kernel).latency_ns
        except KernelNotMeasured:
            candidates = by_op.get(_kind(kernel)) or by_op.get(kernel.op) or everything
            place = _place(kernel)
            return min(candidates, key=lambda e: float(((_place(e.kernel) - place) ** 2).sum())).latency_ns

    return lambda kernels: np.array([one(kernel) for kernel in kernels])


def trilinear_baseline(entries: Sequence[KernelLatency]) -> KernelPredictor:
    """Trilinear in input channels, output channels and density for each shape of layer, as cells of JCW's table.

    JCW (Zhao et al. 2021, arXiv 2110.08013) measures a full grid for each layer: some hundred kernels for one. Here the
    same function is fitted to what measurements of the same shape there are (inferred: grids for all layers of six
    networks would take tens of thousands), or of the operator, where there are fewer than eight.
    """
    by_shape: dict[object, list[KernelLatency]] = defaultdict(list)
    for entry in entries:
        by_shape[_shape(entry.kernel)].append(entry)
        by_shape[entry.kernel.op].append(entry)
    fitted: dict[object, FloatArray] = {}
    for key, found in by_shape.items():
        measured = np.array([entry.latency_ns for entry in found])
        corners = np.array([_corners(entry.kernel) for entry in found])
        scale = np.maximum(corners.max(axis=0), 1e-12)
        fitted[key] = nnls(corners / scale / measured[:, None], np.ones(len(found)))[0] / scale
    anything = next(iter(fitted.values()))

    def one(kernel: KernelSpec) -> float:
        shape = _shape(kernel)
        key = shape if len(by_shape.get(shape, ())) >= 8 else kernel.op
        return float(_corners(kernel) @ fitted.get(key, anything))

    return lambda kernels: np.array([one(kernel) for kernel in kernels])


def forest_baseline(entries: Sequence[KernelLatency], seed: int) -> KernelPredictor:
    """A random forest on shapes and multiply-accumulates of the dense kernel: it does not know of zeros."""
    forest = RandomForestRegressor(n_estimators=_TREES, random_state=seed, n_jobs=1)
    forest.fit([_dense_features(e.kernel) for e in entries], np.log([e.latency_ns for e in entries]))
    return lambda kernels: np.exp(forest.predict([_dense_features(kernel) for kernel in kernels]))


def _dense_features(kernel: KernelSpec) -> list[float]:
    return [
        *(float(kernel.op is op) for op in Op),
        float(kernel.in_channels),
        float(kernel.out_channels),
        float(kernel.output_h * kernel.output_w),
        float(kernel.input_h * kernel.input_w),
        float(kernel.kernel_h),
        float(kernel.stride),
        float(kernel.residual),
        float(kernel.dense_macs),
        float(kernel.in_channels * kernel.input_h * kernel.input_w),
        float(kernel.out_channels * kernel.output_h * kernel.output_w),
        float(kernel.num_weights),
    ]


def _corners(kernel: KernelSpec) -> FloatArray:
    """The products of a trilinear function; sizes of images are as good as constant where the shape is."""
    a, b, d = float(kernel.in_channels), float(kernel.out_channels), kernel.pruning.density
    positions = kernel.output_h * kernel.output_w
    return positions * np.array([1.0, a, b, d, a * b, a * d, b * d, a * b * d])


def _kind(kernel: KernelSpec) -> tuple[object, ...]:
    return (kernel_features(kernel, "native").mode, *_shape(kernel))


def _shape(kernel: KernelSpec) -> tuple[object, ...]:
    return (kernel.op, kernel.kernel_h, kernel.stride, kernel.input_h, kernel.residual)


def _place(kernel: KernelSpec) -> FloatArray:
    channels = [*coordinates_of(kernel)]
    first, last = channels[0], channels[-2] if len(channels) > 2 else channels[0]
    return np.log(np.array([first, last, kernel.pruning.density, kernel.input_h * kernel.input_w]))
