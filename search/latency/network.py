"""Latency of a whole network: the sum over its kernels, corrected by what whole networks on the device really took.

A kernel timed alone runs on warm caches and without the executor around it. Both show as factors and a constant per
device, fitted on a few whole pruned networks. Dense kernels, which have more weights to fetch anew, get a factor apart
from pruned ones where that predicts networks better that it was not fitted to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np

from device_agent.contracts import KernelSpec, NetworkPlan, PruningScheme
from search.errors import LatencyModelError
from search.latency.predictor import KernelPredictor, LatencyPredictor, Prediction
from search.latency.table import LatencyTable, NetworkLatency
from search.normal import SIGMA_PER_MAD
from search.pareto import FloatArray

#: Two parameters and one network to judge them by.
MIN_NETWORKS = 3
#: Three parameters; and one network may be left out, with one more to judge by.
_MIN_NETWORKS_APART = 5

#: Where the pruned part of networks' times varies by less, two factors cannot be told apart.
_MIN_SHARE_SPREAD = 0.2
#: What two factors must gain, as a part of latency: less is chance.
_MIN_GAIN = 0.001

#: Where the largest sum is less than this multiple of the smallest, slope and constant cannot be told apart.
_MIN_SPREAD = 1.2

#: Huber's constant: residuals beyond 1.345 standard deviations count less, at 95 % efficiency on clean data
#: (P. J. Huber, Robust Statistics, 1981).
_HUBER = 1.345

#: Reweighting converges in a few rounds for two parameters; the bound keeps cycles between weights finite.
_MAX_ROUNDS = 50

_NS_PER_MS = 1e6

#: Of one network, or of many.
Ns = TypeVar("Ns", float, FloatArray)


class CorrectionForm(StrEnum):
    """What the whole networks allowed to fit."""

    #: scale * (sum over dense kernels) + pruned_scale * (sum over pruned ones) + offset
    DENSE_APART = "dense_apart"
    #: scale * sum + offset
    AFFINE = "affine"
    #: scale * sum: the sums are too alike to tell a constant, or the constant (or the slope) came out negative.
    PROPORTIONAL = "proportional"


_NUM_PARAMETERS = {CorrectionForm.DENSE_APART: 3, CorrectionForm.AFFINE: 2, CorrectionForm.PROPORTIONAL: 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """From kernels to a whole network: each kernel's latency times its factor, and `offset_ns` once.

    The factor is `pruned_scale` for pruned kernels, `scale` for others. Both are positive, and equal unless the form is
    DENSE_APART; `offset_ns` is not negative. `relative_residuals` are (fitted - measured) / measured of the networks
    it was fitted on, in their order; `relative_std` is their robust standard deviation.
    """

    form: CorrectionForm
    scale: float
    pruned_scale: float
    offset_ns: float
    relative_residuals: tuple[float, ...]
    relative_std: float

    def scale_of(self, kernel: KernelSpec) -> float:
        """The factor of this kernel's latency."""
        return self.pruned_scale if is_pruned(kernel) else self.scale

    def network_ns(self, dense_ns: Ns, pruned_ns: Ns) -> Ns:
        """Whole networks, from the sums over their dense and their pruned kernels."""
        return _network_ns((self.scale, self.pruned_scale, self.offset_ns), dense_ns, pruned_ns)


class NetworkLatencyModel:
    """Predicts whole networks on one device, from what its kernels take. Deterministic: the table alone decides."""

    def __init__(self, predictor: KernelPredictor, correction: Correction) -> None:
        self.predictor = predictor
        self.correction = correction

    def predict(self, plan: NetworkPlan) -> Prediction:
        """The latency of `plan`. Raises `KernelNotMeasured` where one of its kernels is outside of the table.

        Never `exact`. The kernels' uncertainties are taken as independent of each other, the correction's as common.
        """
        pruned, dense = _by_pruning(plan.kernels)
        of_pruned, of_dense = sum_kernels(self.predictor, pruned), sum_kernels(self.predictor, dense)
        correction = self.correction
        latency_ns = correction.network_ns(of_dense.latency_ns, of_pruned.latency_ns)
        std_ns = math.hypot(
            correction.scale * of_dense.std_ns,
            correction.pruned_scale * of_pruned.std_ns,
            correction.relative_std * latency_ns,
        )
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


def fit_correction(predictor: KernelPredictor, networks: Sequence[NetworkLatency]) -> Correction:
    """Fit the correction on measured networks, minimising relative errors, with Huber's weights against outliers.

    Raises `LatencyModelError` with fewer than `MIN_NETWORKS`.
    """
    if len(networks) < MIN_NETWORKS:
        raise LatencyModelError(
            f"{len(networks)} whole networks were measured, but a correction needs at least {MIN_NETWORKS}: measure "
            "more (measuring.calibration_networks), or look why measurements failed"
        )
    parts = [_by_pruning(network.kernels) for network in networks]
    pruned, dense = (np.array([sum_kernels(predictor, part[place]).latency_ns for part in parts]) for place in (0, 1))
    measured = np.array([network.latency_ns for network in networks])
    simple = correction_of_sums(pruned + dense, measured)
    if len(networks) < _MIN_NETWORKS_APART or np.ptp(pruned / (pruned + dense)) < _MIN_SHARE_SPREAD:
        return simple
    apart = _fit_apart(dense, pruned, measured)
    gain = _left_out_error(lambda d, p, m: correction_of_sums(d + p, m), dense, pruned, measured) - _left_out_error(
        _fit_apart, dense, pruned, measured
    )
    return apart if apart is not None and gain > _MIN_GAIN else simple


def correction_of_sums(sums: FloatArray, measured: FloatArray) -> Correction:
    """The correction with one factor that takes `sums` over kernels to what the networks took, (n,) each with n >= 1,
    in ns.
    """
    none: FloatArray = np.zeros_like(sums)
    if sums.max() >= _MIN_SPREAD * sums.min():
        scale, offset_ns = _robust_fit(np.column_stack((sums, np.ones_like(sums))), measured)
        if scale > 0 and offset_ns >= 0:
            return _correction(CorrectionForm.AFFINE, (scale, scale, offset_ns), sums, none, measured)
    (scale,) = _robust_fit(sums[:, None], measured)
    return _correction(CorrectionForm.PROPORTIONAL, (scale, scale, 0.0), sums, none, measured)


def _fit_apart(dense: FloatArray, pruned: FloatArray, measured: FloatArray) -> Correction | None:
    """The correction with two factors, (n,) each; None where a factor came out as nothing."""
    columns = np.column_stack((dense, pruned, np.ones_like(dense)))
    scale, pruned_scale, offset_ns = _robust_fit(columns, measured)
    if offset_ns < 0:
        (scale, pruned_scale), offset_ns = _robust_fit(columns[:, :2], measured), 0.0
    if min(scale, pruned_scale) <= 0:
        return None
    return _correction(CorrectionForm.DENSE_APART, (scale, pruned_scale, offset_ns), dense, pruned, measured)


def _left_out_error(
    fit: Callable[[FloatArray, FloatArray, FloatArray], Correction | None],
    dense: FloatArray,
    pruned: FloatArray,
    measured: FloatArray,
) -> float:
    """The mean relative error of each network, predicted by `fit` to the others; infinite where one fit fails."""
    errors = []
    for left_out in range(len(measured)):
        others = np.arange(len(measured)) != left_out
        correction = fit(dense[others], pruned[others], measured[others])
        if correction is None:
            return math.inf
        fitted = correction.scale * dense[left_out] + correction.pruned_scale * pruned[left_out] + correction.offset_ns
        errors.append(abs(fitted / measured[left_out] - 1.0))
    return float(np.mean(errors))


def is_pruned(kernel: KernelSpec) -> bool:
    """Whether the kernel's weights are stored as pruned ones."""
    return kernel.pruning.scheme is not PruningScheme.DENSE


def _by_pruning(kernels: Sequence[KernelSpec]) -> tuple[list[KernelSpec], list[KernelSpec]]:
    """The pruned kernels and the others."""
    return [kernel for kernel in kernels if is_pruned(kernel)], [kernel for kernel in kernels if not is_pruned(kernel)]


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


def _network_ns(fitted: tuple[float, float, float], dense_ns: Ns, pruned_ns: Ns) -> Ns:
    scale, pruned_scale, offset_ns = fitted
    return scale * dense_ns + pruned_scale * pruned_ns + offset_ns


def _correction(
    form: CorrectionForm,
    fitted: tuple[float, float, float],
    dense: FloatArray,
    pruned: FloatArray,
    measured: FloatArray,
) -> Correction:
    scale, pruned_scale, offset_ns = (float(value) for value in fitted)
    residuals = _network_ns(fitted, dense, pruned) / measured - 1.0
    # The residuals of few networks are too small by the freedom that the fit took.
    freedom = math.sqrt(len(measured) / (len(measured) - _NUM_PARAMETERS[form]))
    return Correction(
        form=form,
        scale=scale,
        pruned_scale=pruned_scale,
        offset_ns=offset_ns,
        relative_residuals=tuple(float(r) for r in residuals),
        relative_std=float(SIGMA_PER_MAD * np.median(np.abs(residuals)) * freedom),
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
        spread = SIGMA_PER_MAD * float(np.median(residuals))
        if spread == 0.0 or np.allclose(coefficients, previous, rtol=1e-12, atol=0.0):
            break
        weights = np.minimum(1.0, _HUBER * spread / np.maximum(residuals, 1e-300))
    return coefficients
