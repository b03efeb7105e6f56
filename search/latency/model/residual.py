"""What the physical part misses, as a Gaussian process over kernels: similar kernels err alike.

The covariance of two kernels is
    variance * exp(-1/2 sum_j ((x_j - x'_j) / length_j)^2) * (1 if the modes are the same, else between_modes),
with a length for each coordinate (automatic relevance determination: Rasmussen and Williams 2006, Gaussian Processes
for Machine Learning, equation 5.2), and independent noise for each measurement: its own and one common to all. The
settings maximise the marginal likelihood (there, equations 5.8 and 5.9) with weak priors on their logarithms, which a
few dozen measurements need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from search.normal import SIGMA_PER_MAD
from search.pareto import FloatArray

#: The settings are found on so many measurements at most: each step costs their number to the power of three.
_MOST_FOR_SETTINGS = 400
_MOST_STEPS = 60
#: Means and standard deviations of the logarithms before anything is measured.
_PRIOR_VARIANCE = (np.log(0.1**2), 1.5)
_PRIOR_LENGTH = (np.log(2.0), 1.0)
_PRIOR_NOISE = (np.log(0.02**2), 1.0)
#: Of the logit of `between_modes`.
_PRIOR_BETWEEN = (-1.0, 1.5)
_JITTER = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Settings:
    """The settings of the covariance. `shift` and `scale` standardise coordinates (c,); `lengths` (c,) are in those."""

    shift: FloatArray
    scale: FloatArray
    lengths: FloatArray
    variance: float
    noise: float
    between_modes: float

    def standardised(self, coordinates: FloatArray) -> FloatArray:
        return (coordinates - self.shift) / (self.scale * self.lengths)


class GaussianProcess:
    """The process given measurements.

    Args:
        settings: Of the covariance.
        coordinates: Of the measured kernels, (n, c); `modes` are the numbers of their modes, (n,).
        values: What the physical part missed, (n,): logarithms of measured over physical.
        own_noise: The variance of each value by its measurement alone, (n,).
    """

    def __init__(
        self, settings: Settings, coordinates: FloatArray, modes: np.ndarray, values: FloatArray, own_noise: FloatArray
    ) -> None:
        self.settings = settings
        self._points = settings.standardised(coordinates)
        self._modes = modes
        covariance = _covariance(settings, self._points, modes, self._points, modes)
        covariance[np.diag_indices_from(covariance)] += settings.noise + own_noise + _JITTER
        self._root = cholesky(covariance, lower=True)
        self._values = values
        self._weights = cho_solve((self._root, True), values)

    def predict(self, coordinates: FloatArray, modes: np.ndarray) -> tuple[FloatArray, FloatArray]:
        """Mean and variance at m kernels, (m,) each (Rasmussen and Williams 2006, equations 2.25 and 2.26).

        The variance is that of another measured kernel's value, without the noise of its measurement: kernels differ
        from what their coordinates say.
        """
        points = self.settings.standardised(coordinates)
        cross = _covariance(self.settings, points, modes, self._points, self._modes)
        mean = cross @ self._weights
        explained = (self._half(cross) ** 2).sum(axis=0)
        return mean, np.maximum(self.settings.variance - explained, 0.0) + self.settings.noise

    def leave_one_out(self) -> tuple[FloatArray, FloatArray]:
        """How far each value is from what the others predict for it, and the variance of that, (n,) each (Rasmussen and
        Williams 2006, equation 5.12).
        """
        precision = np.diag(cho_solve((self._root, True), np.eye(len(self._weights))))
        return self._weights / precision, 1.0 / precision

    def leave_groups_out(self, groups: np.ndarray) -> FloatArray:
        """What is predicted for each value (n,) from those of all other groups; `groups` are numbers (n,).

        The inverse of the covariance, restricted to a group, is that of the group's covariance given all others (block
        inversion), so one inversion serves all.
        """
        precision = cho_solve((self._root, True), np.eye(len(self._weights)))
        predicted = np.empty_like(self._values)
        for group in np.unique(groups):
            which = np.flatnonzero(groups == group)
            missed = np.linalg.solve(precision[np.ix_(which, which)], self._weights[which])
            predicted[which] = self._values[which] - missed
        return predicted

    def covariance(
        self, coordinates: FloatArray, modes: np.ndarray, others: FloatArray, other_modes: np.ndarray
    ) -> FloatArray:
        """The covariance (m, k) of kernels with others given the measurements, without what is each one's own."""
        points, other_points = self.settings.standardised(coordinates), self.settings.standardised(others)
        prior = _covariance(self.settings, points, modes, other_points, other_modes)
        left = self._half(_covariance(self.settings, points, modes, self._points, self._modes))
        right = self._half(_covariance(self.settings, other_points, other_modes, self._points, self._modes))
        return np.asarray(prior - left.T @ right)

    def _half(self, cross: FloatArray) -> FloatArray:
        return np.asarray(solve_triangular(self._root, cross.T, lower=True))


def fit_settings(
    coordinates: FloatArray, modes: np.ndarray, values: FloatArray, own_noise: FloatArray, rng: np.random.Generator
) -> Settings:
    """Settings for measurements as `GaussianProcess` takes them. `rng` chooses some, where there are many."""
    shift, scale = coordinates.mean(axis=0), coordinates.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    if len(values) > _MOST_FOR_SETTINGS:
        some = np.sort(rng.choice(len(values), size=_MOST_FOR_SETTINGS, replace=False))
        coordinates, modes, values, own_noise = coordinates[some], modes[some], values[some], own_noise[some]
    points = (coordinates - shift) / scale
    differences = (points[:, None, :] - points[None, :, :]) ** 2
    same = modes[:, None] == modes[None, :]
    size = coordinates.shape[1]
    means = np.array([_PRIOR_VARIANCE[0], _PRIOR_NOISE[0], _PRIOR_BETWEEN[0], *[_PRIOR_LENGTH[0]] * size])
    deviations = np.array([_PRIOR_VARIANCE[1], _PRIOR_NOISE[1], _PRIOR_BETWEEN[1], *[_PRIOR_LENGTH[1]] * size])
    clipped = np.clip(values, *_clip(values))

    def loss(parameters: FloatArray) -> tuple[float, FloatArray]:
        variance, noise, between = np.exp(parameters[0]), np.exp(parameters[1]), 1 / (1 + np.exp(-parameters[2]))
        inverse_squares = np.exp(-2 * parameters[3:])
        distance = np.exp(-0.5 * (differences @ inverse_squares))
        shared = np.where(same, 1.0, between)
        signal = variance * distance * shared
        covariance = signal + np.diag(noise + own_noise + _JITTER)
        root = cholesky(covariance, lower=True)
        weights = cho_solve((root, True), clipped)
        inverse = cho_solve((root, True), np.eye(len(clipped)))
        prior = (parameters - means) / deviations
        value = 0.5 * clipped @ weights + np.log(np.diag(root)).sum() + 0.5 * prior @ prior
        # d loss / d K = (K^-1 - w w^T) / 2: equation 5.9.
        slope = 0.5 * (inverse - np.outer(weights, weights))
        by_signal = slope * signal
        gradient = np.empty_like(parameters)
        gradient[0] = by_signal.sum()
        gradient[1] = noise * np.trace(slope)
        gradient[2] = (slope * variance * distance * ~same).sum() * between * (1 - between)
        gradient[3:] = np.einsum("ij,ijk->k", by_signal, differences, optimize=True) * inverse_squares
        return float(value), gradient + prior / deviations

    bounds = [(-14.0, 3.0), (-14.0, 0.0), (-6.0, 6.0), *[(-3.0, 6.0)] * size]
    found = minimize(loss, means, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _MOST_STEPS}).x
    return Settings(
        shift=shift,
        scale=scale,
        lengths=np.exp(found[3:]),
        variance=float(np.exp(found[0])),
        noise=float(np.exp(found[1])),
        between_modes=float(1 / (1 + np.exp(-found[2]))),
    )


def _clip(values: FloatArray) -> tuple[float, float]:
    """Bounds far outside of the usual: a single broken measurement must not set the scale of all."""
    centre = float(np.median(values))
    spread = SIGMA_PER_MAD * float(np.median(np.abs(values - centre))) + 1e-6
    return centre - 6 * spread, centre + 6 * spread


def _covariance(
    settings: Settings, a: FloatArray, a_modes: np.ndarray, b: FloatArray, b_modes: np.ndarray
) -> FloatArray:
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    similar = settings.variance * np.exp(-0.5 * np.maximum(squares, 0.0))
    return np.asarray(similar * np.where(a_modes[:, None] == b_modes[None, :], 1.0, settings.between_modes))


def mode_numbers(modes: Sequence[str]) -> np.ndarray:
    """A number for each mode that is the same in every process: covariances only ask whether two are equal."""
    known = {mode: number for number, mode in enumerate(sorted(set(modes)))}
    return np.array([known[mode] for mode in modes])
