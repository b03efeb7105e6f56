"""Latency of a whole network: the sum over its kernels, corrected by what whole networks on the device really took.

A kernel timed alone runs on warm caches and without the executor around it. Both show as a factor and a constant per
device, fitted on a few whole pruned networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from device_agent.contracts import KernelSpec, NetworkPlan
from search.errors import LatencyModelError
from search.latency.predictor import LatencyPredictor, Prediction
from search.latency.table import LatencyTable, NetworkLatency
from search.pareto import FloatArray

#: Two parameters and one network to judge them by.
MIN_NETWORKS = 3

#: Where the largest sum is less than this multiple of the smallest, slope and constant cannot be told apart.
_MIN_SPREAD = 1.2

#: Huber's constant: residuals beyond 1.345 standard deviations count less, at 95 % efficiency on clean data
#: (P. J. Huber, Robust Statistics, 1981).
_HUBER = 1.345

#: From the median absolute deviation to the standard deviation, for a normal distribution.
_SIGMA_PER_MAD = 1.4826

#: Reweighting converges in a few rounds for two parameters; the bound keeps cycles between weights finite.
_MAX_ROUNDS = 50

_NS_PER_MS = 1e6


class CorrectionForm(StrEnum):
    """What the whole networks allowed to fit."""

    #: scale * sum + offset
    AFFINE = "affine"
    #: scale * sum: the sums are too alike to tell a constant, or the constant (or the slope) came out negative.
    PROPORTIONAL = "proportional"


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """From the sum over kernels to a whole network: `scale * sum + offset_ns`, with scale > 0 and offset_ns >= 0.

    `relative_residuals` are (fitted - measured) / measured of the networks it was fitted on, in their order;
    `relative_std` is their robust standard deviation.
    """

    form: CorrectionForm
    scale: float
    offset_ns: float
    relative_residuals: tuple[float, ...]
    relative_std: float

    def apply(self, sum_ns: float) -> float:
        return self.scale * sum_ns + self.offset_ns


class NetworkLatencyModel:
    """Predicts whole networks on one device, from one latency table. Deterministic: the table alone decides."""

    def __init__(self, predictor: LatencyPredictor, correction: Correction) -> None:
        self.predictor = predictor
        self.correction = correction

    def predict(self, plan: NetworkPlan) -> Prediction:
        """The latency of `plan`. Raises `KernelNotMeasured` where one of its kernels is outside of the table.

        Never `exact`. The kernels' uncertainties are taken as independent of each other, the correction's as common.
        """
        total = sum_kernels(self.predictor, plan.kernels)
        latency_ns = self.correction.apply(total.latency_ns)
        std_ns = math.hypot(self.correction.scale * total.std_ns, self.correction.relative_std * latency_ns)
        return Prediction(latency_ns=latency_ns, std_ns=std_ns, exact=False)

    def latency_ms(self, plan: NetworkPlan) -> float:
        """The predicted latency in milliseconds."""
        return self.predict(plan).latency_ns / _NS_PER_MS


def fit_network_model(table: LatencyTable) -> NetworkLatencyModel:
    """The model of a table with kernels and whole networks.

    Raises `LatencyModelError` where the networks do not support a correction, and `KernelNotMeasured` where the table
    lacks one of their kernels.
    """
    predictor = LatencyPredictor(table)
    return NetworkLatencyModel(predictor, fit_correction(predictor, table.networks))


def fit_correction(predictor: LatencyPredictor, networks: Sequence[NetworkLatency]) -> Correction:
    """Fit the correction on measured networks, minimising relative errors, with Huber's weights against outliers.

    Raises `LatencyModelError` with fewer than `MIN_NETWORKS`.
    """
    if len(networks) < MIN_NETWORKS:
        raise LatencyModelError(
            f"{len(networks)} whole networks were measured, but a correction needs at least {MIN_NETWORKS}: measure "
            "more (measuring.calibration_networks), or look why measurements failed"
        )
    sums = np.array([sum_kernels(predictor, network.kernels).latency_ns for network in networks])
    return correction_of_sums(sums, np.array([network.latency_ns for network in networks]))


def correction_of_sums(sums: FloatArray, measured: FloatArray) -> Correction:
    """The correction that takes `sums` over kernels to what the networks took, (n,) each with n >= 1, in ns."""
    if sums.max() >= _MIN_SPREAD * sums.min():
        scale, offset_ns = _robust_fit(np.column_stack((sums, np.ones_like(sums))), measured)
        if scale > 0 and offset_ns >= 0:
            return _correction(CorrectionForm.AFFINE, scale, offset_ns, sums, measured)
    (scale,) = _robust_fit(sums[:, None], measured)
    return _correction(CorrectionForm.PROPORTIONAL, float(scale), 0.0, sums, measured)


def sum_kernels(predictor: LatencyPredictor, kernels: Sequence[KernelSpec]) -> Prediction:
    """The sum of the kernels' latencies, without correction."""
    latency_ns = variance = 0.0
    exact = True
    for kernel in kernels:
        prediction = predictor.predict(kernel)
        latency_ns += prediction.latency_ns
        variance += prediction.std_ns**2
        exact = exact and prediction.exact
    return Prediction(latency_ns=latency_ns, std_ns=math.sqrt(variance), exact=exact)


def _correction(
    form: CorrectionForm, scale: float, offset_ns: float, sums: FloatArray, measured: FloatArray
) -> Correction:
    residuals = (scale * sums + offset_ns) / measured - 1.0
    parameters = 2 if form is CorrectionForm.AFFINE else 1
    # The residuals of few networks are too small by the freedom that the fit took.
    freedom = math.sqrt(len(sums) / (len(sums) - parameters))
    return Correction(
        form=form,
        scale=float(scale),
        offset_ns=float(offset_ns),
        relative_residuals=tuple(float(r) for r in residuals),
        relative_std=float(_SIGMA_PER_MAD * np.median(np.abs(residuals)) * freedom),
    )


def _robust_fit(columns: FloatArray, measured: FloatArray) -> FloatArray:
    """Coefficients (k,) that minimise Huber's loss of (columns @ c - measured) / measured; columns has shape (n, k).

    Iteratively reweighted least squares. The scale of the residuals is their median absolute deviation from 0, taken
    anew each round.
    """
    relative = columns / measured[:, None]
    weights = np.ones(len(measured))
    coefficients: FloatArray = np.zeros(columns.shape[1])
    for _ in range(_MAX_ROUNDS):
        root = np.sqrt(weights)
        previous = coefficients
        solution = np.linalg.lstsq(relative * root[:, None], root, rcond=None)[0]
        coefficients = np.asarray(solution, dtype=np.float64)
        residuals = np.abs(relative @ coefficients - 1.0)
        spread = _SIGMA_PER_MAD * float(np.median(residuals))
        if spread == 0.0 or np.allclose(coefficients, previous, rtol=1e-12, atol=0.0):
            break
        weights = np.minimum(1.0, _HUBER * spread / np.maximum(residuals, 1e-300))
    return coefficients
