"""Latency of a whole network: the sum over its kernels, corrected by what whole networks on the device really took.

A kernel timed alone finds its weights in the nearest cache, where they stay from run to run. In a network they come
from further away, and there is an executor around it. Both show as a factor, a price for each byte of weights and a
constant per device, fitted on a few whole pruned networks. Bytes are priced where that predicts networks better that
the prices were not fitted to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar

import numpy as np
from scipy.optimize import nnls

from device_agent.contracts import KernelSpec, NetworkPlan
from search.errors import LatencyModelError
from search.latency.predictor import KernelPredictor, LatencyPredictor, Prediction
from search.latency.runtime_weights import RuntimeWeights
from search.latency.table import LatencyTable, NetworkLatency
from search.normal import SIGMA_PER_MAD
from search.pareto import FloatArray

#: Two parameters and one network to judge them by.
MIN_NETWORKS = 3
#: Three parameters; and one network may be left out, with one more to judge by.
_MIN_NETWORKS_FOR_WEIGHTS = 5
#: What the price of bytes must gain, as a part of latency: less is chance.
_MIN_GAIN = 0.001

#: Where the largest sum is less than this multiple of the smallest, slope and constant cannot be told apart.
_MIN_SPREAD = 1.2

#: Huber's constant: residuals beyond 1.345 standard deviations count less, at 95 % efficiency on clean data
#: (P. J. Huber, Robust Statistics, 1981).
_HUBER = 1.345

#: Reweighting converges in a few rounds for so few parameters; the bound keeps cycles between weights finite.
_MAX_ROUNDS = 50

_NS_PER_MS = 1e6

#: The columns that have prices.
_SUM, _BYTES, _ONCE = range(3)

#: Of one network, or of many.
Ns = TypeVar("Ns", float, FloatArray)


class CorrectionForm(StrEnum):
    """What the whole networks allowed to fit."""

    #: scale * sum + weight_byte_ns * bytes + offset
    WEIGHTS = "weights"
    #: scale * sum + offset
    AFFINE = "affine"
    #: scale * sum: the sums are too alike to tell a constant, or the constant came out as nothing.
    PROPORTIONAL = "proportional"


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """From kernels to a whole network: each kernel's latency times `scale`, `weight_byte_ns` for each byte of weights
    that it reads, and `offset_ns` once. None is negative, `scale` is positive.

    `relative_residuals` are (fitted - measured) / measured of the networks it was fitted on, in their order;
    `relative_std` is their robust standard deviation.
    """

    form: CorrectionForm
    scale: float
    weight_byte_ns: float
    offset_ns: float
    relative_residuals: tuple[float, ...]
    relative_std: float

    def network_ns(self, sums_ns: Ns, weight_bytes: Ns) -> Ns:
        """Whole networks, from the sums over their kernels of latencies and of bytes of weights."""
        return self.scale * sums_ns + self.weight_byte_ns * weight_bytes + self.offset_ns


class ReadsWeights(Protocol):
    """Knows what a runtime reads."""

    def weight_bytes(self, kernels: Sequence[KernelSpec]) -> FloatArray:
        """The bytes of weights that each kernel reads (n,), in the form that the runtime keeps them in."""
        ...


class NetworkLatencyModel:
    """Predicts whole networks on one device, from what its kernels take. Deterministic: the table alone decides."""

    def __init__(self, predictor: KernelPredictor, weights: ReadsWeights, correction: Correction) -> None:
        self.predictor = predictor
        self.weights = weights
        self.correction = correction

    def predict(self, plan: NetworkPlan) -> Prediction:
        """The latency of `plan`. Raises `KernelNotMeasured` where one of its kernels is outside of the table.

        Never `exact`. The kernels' uncertainties are taken as independent of each other, the correction's as common.
        """
        total = sum_kernels(self.predictor, plan.kernels)
        correction = self.correction
        latency_ns = correction.network_ns(total.latency_ns, float(self.weights.weight_bytes(plan.kernels).sum()))
        std_ns = math.hypot(correction.scale * total.std_ns, correction.relative_std * latency_ns)
        return Prediction(latency_ns=latency_ns, std_ns=std_ns, exact=False)

    def latency_ms(self, plan: NetworkPlan) -> float:
        """The predicted latency in milliseconds."""
        return self.predict(plan).latency_ns / _NS_PER_MS

    def kernel_ns(self, kernel: KernelSpec) -> float:
        """What `kernel` adds to a whole network. Raises `KernelNotMeasured`."""
        alone_ns = self.predictor.predict(kernel).latency_ns
        correction = self.correction
        return correction.network_ns(alone_ns, float(self.weights.weight_bytes([kernel])[0])) - correction.offset_ns


def fit_network_model(table: LatencyTable) -> NetworkLatencyModel:
    """The model of a table with kernels and whole networks.

    Raises `LatencyModelError` where the networks do not support a correction, and `KernelNotMeasured` where the table
    lacks one of their kernels.
    """
    predictor, weights = LatencyPredictor(table), RuntimeWeights(table.runtime, table.kernels)
    return NetworkLatencyModel(predictor, weights, fit_correction(predictor, weights, table.networks))


def fit_correction(predictor: KernelPredictor, weights: ReadsWeights, networks: Sequence[NetworkLatency]) -> Correction:
    """Fit the correction on measured networks.

    Raises `LatencyModelError` with fewer than `MIN_NETWORKS`.
    """
    if len(networks) < MIN_NETWORKS:
        raise LatencyModelError(
            f"{len(networks)} whole networks were measured, but a correction needs at least {MIN_NETWORKS}: measure "
            "more (measuring.calibration_networks), or look why measurements failed"
        )
    return correction_of_sums(
        np.array([sum_kernels(predictor, network.kernels).latency_ns for network in networks]),
        np.array([float(weights.weight_bytes(network.kernels).sum()) for network in networks]),
        np.array([network.latency_ns for network in networks]),
    )


def correction_of_sums(sums_ns: FloatArray, weight_bytes: FloatArray, measured_ns: FloatArray) -> Correction:
    """The correction that takes sums over kernels and their bytes of weights to what the networks took, (n,) each with
    n >= 1. Relative errors are minimised, with Huber's weights against outliers.
    """
    columns = np.column_stack((sums_ns, weight_bytes, np.ones_like(sums_ns)))
    forms = [[_SUM]]
    if sums_ns.max() >= _MIN_SPREAD * sums_ns.min():
        forms.insert(0, [_SUM, _ONCE])
    if len(sums_ns) >= _MIN_NETWORKS_FOR_WEIGHTS and weight_bytes.any():
        with_bytes = [_SUM, _BYTES, _ONCE]
        errors = [_left_out_error(columns[:, form], measured_ns) for form in (forms[0], with_bytes)]
        if errors[0] - errors[1] > _MIN_GAIN:
            forms.insert(0, with_bytes)
    fitted: FloatArray = np.zeros(3)
    for form in forms:
        fitted[:] = 0.0
        fitted[form] = _robust_fit(columns[:, form], measured_ns)
        if fitted[_SUM] > 0:
            break
    scale, weight_byte_ns, offset_ns = (float(value) for value in fitted)
    residuals = columns @ fitted / measured_ns - 1.0
    # The residuals of few networks are too small by the freedom that the fit took.
    freedom = math.sqrt(len(measured_ns) / max(1, len(measured_ns) - int(np.count_nonzero(fitted))))
    return Correction(
        form=_form(weight_byte_ns, offset_ns),
        scale=scale,
        weight_byte_ns=weight_byte_ns,
        offset_ns=offset_ns,
        relative_residuals=tuple(float(r) for r in residuals),
        relative_std=float(SIGMA_PER_MAD * np.median(np.abs(residuals)) * freedom),
    )


def _form(weight_byte_ns: float, offset_ns: float) -> CorrectionForm:
    if weight_byte_ns > 0:
        return CorrectionForm.WEIGHTS
    return CorrectionForm.AFFINE if offset_ns > 0 else CorrectionForm.PROPORTIONAL


def _left_out_error(columns: FloatArray, measured_ns: FloatArray) -> float:
    """The mean relative error of each network (n,), predicted from `columns` (n, k) by a fit to the others."""
    errors = []
    for left_out in range(len(measured_ns)):
        others = np.arange(len(measured_ns)) != left_out
        fitted = _robust_fit(columns[others], measured_ns[others])
        errors.append(abs(float(columns[left_out] @ fitted) / measured_ns[left_out] - 1.0))
    return float(np.mean(errors))


def sum_kernels(predictor: KernelPredictor, kernels: Sequence[KernelSpec]) -> Prediction:
    """The sum of the kernels' latencies, without correction."""
    latency_ns = variance = 0.0
    exact = True
    for kernel in kernels:
        prediction = predictor.predict(kernel)
        latency_ns += prediction.latency_ns
        variance += prediction.std_ns**2
        exact = exact and prediction.exact
    return Prediction(latency_ns=latency_ns, std_ns=math.sqrt(variance), exact=exact)


def _robust_fit(columns: FloatArray, measured: FloatArray) -> FloatArray:
    """Coefficients (k,), 0 or more, that minimise Huber's loss of (columns @ c - measured) / measured.

    `columns` has shape (n, k).

    Iteratively reweighted least squares. The scale of the residuals is their median absolute deviation from 0, taken
    anew each round.
    """
    relative = columns / measured[:, None]
    # Columns in units of their own size: the solver is not invariant to it numerically.
    size = np.sqrt((relative**2).mean(axis=0))
    size[size == 0.0] = 1.0
    weights = np.ones(len(measured))
    coefficients: FloatArray = np.zeros(columns.shape[1])
    for _ in range(_MAX_ROUNDS):
        root = np.sqrt(weights)
        previous = coefficients
        coefficients = np.asarray(nnls(relative * root[:, None] / size, root)[0] / size, dtype=np.float64)
        residuals = np.abs(relative @ coefficients - 1.0)
        spread = SIGMA_PER_MAD * float(np.median(residuals))
        if spread == 0.0 or np.allclose(coefficients, previous, rtol=1e-12, atol=0.0):
            break
        weights = np.minimum(1.0, _HUBER * spread / np.maximum(residuals, 1e-300))
    return coefficients
