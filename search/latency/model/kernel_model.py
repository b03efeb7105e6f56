"""The latency model of one device, runtime and setup: any kernel of the operators that it has seen, with uncertainty.

A physical part (prices of work) times a Gaussian process on what it misses, in logarithms. With `prior`, the model of
another device takes the place of the physical part, up to a factor for each mode of code: a device that is like a known
one needs few measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from device_agent.contracts import KernelSpec
from search.errors import LatencyModelError
from search.latency.families import KernelFamily, family_of, without_seed
from search.latency.model.features import FeatureTable, KernelFeatures, as_computed, feature_table, kernel_features
from search.latency.model.physical import PhysicalModel, fit_physical
from search.latency.model.residual import GaussianProcess, Settings, fit_settings
from search.latency.predictor import HeldOut, Prediction
from search.latency.table import KernelLatency
from search.pareto import FloatArray

#: Fewer say nothing about prices.
MIN_KERNELS = 5

#: So many kernels are kept ready: a server is asked for ever new ones.
_MOST_KEPT = 50_000

#: No measurement is believed to be closer than this to the truth of another process, relative.
_LEAST_OWN_NOISE = 0.002

#: A measurement that its neighbours contradict by more standard deviations than this is believed less.
_DOUBT_SIGMAS = 3.0
_DOUBT_ROUNDS = 2

#: The factor of a mode is drawn to that of all modes by so many measurements that agree with it.
_FACTOR_SHRINKAGE = 2.0

#: Parts that another device may have, the largest first: it counts where both predict as well.
_WEIGHTS = (1.0, 0.75, 0.5, 0.25, 0.0)
_WEIGHT_FOLDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """What a device takes from the model of another: its predictions times a factor for each mode.

    `runtime` is that of the new device: where it makes no use of zeros, the other one is asked for dense kernels.
    `weight` is the part that the other device has in logarithms; the rest is what the device's `own` prices say.
    """

    prior: KernelLatencyModel
    runtime: str
    common_log_factor: float
    log_factors: Mapping[str, float]
    own: PhysicalModel
    weight: float

    def times(self, kernels: Sequence[KernelSpec], table: FeatureTable) -> FloatArray:
        """The times of n kernels in ns (n,); `table` has their features on the new device."""
        prior_ns = _prior_times(self.prior, self.runtime, kernels)
        factors = np.array([self.log_factors.get(mode, self.common_log_factor) for mode in table.modes])
        logs = self.weight * (np.log(prior_ns) + factors) + (1.0 - self.weight) * np.log(self.own.times(table))
        return np.asarray(np.exp(logs))


class KernelLatencyModel:
    """Predicts kernels from measurements of others. Made by `fit_kernel_model`, or loaded (`storage`).

    Deterministic: equal measurements, base and settings predict the same, so none of the matrices is stored.
    """

    def __init__(
        self, runtime: str, entries: Sequence[KernelLatency], base: PhysicalModel | Transfer, settings: Settings
    ) -> None:
        self.runtime = runtime
        self.entries = tuple(entries)
        self.base = base
        self.settings = settings
        self._features: dict[KernelSpec, KernelFeatures] = {}
        self._known: dict[KernelSpec, Prediction] = {}
        self._exact = {without_seed(entry.kernel): entry for entry in self.entries}
        kernels = [entry.kernel for entry in self.entries]
        table = self.features(kernels)
        self._mode_numbers = {mode: number for number, mode in enumerate(sorted(set(table.modes)))}
        measured = np.array([entry.latency_ns for entry in self.entries])
        self._process = GaussianProcess(
            settings,
            table.coordinates,
            self._numbers(table.modes),
            np.log(measured / _base_times(base, kernels, table)),
            own_noise(self.entries),
        )

    def predict(self, kernel: KernelSpec) -> Prediction:
        """The latency of `kernel`; `exact` where it was measured."""
        known = self._known.get(kernel)
        if known is None:
            if len(self._known) >= _MOST_KEPT:
                self._known.clear()
            (known,) = self.predict_each([kernel])
            self._known[kernel] = known
        return known

    def predict_each(self, kernels: Sequence[KernelSpec]) -> list[Prediction]:
        """As `predict`, of many kernels at once."""
        entries = [self._exact.get(without_seed(kernel)) for kernel in kernels]
        unknown = [kernel for kernel, entry in zip(kernels, entries, strict=True) if entry is None]
        latencies_ns, stds_ns = self.predict_all(unknown) if unknown else (np.zeros(0), np.zeros(0))
        made = iter(zip(latencies_ns.tolist(), stds_ns.tolist(), strict=True))
        found = []
        for entry in entries:
            latency_ns, std_ns = next(made) if entry is None else (entry.latency_ns, entry.std_ns)
            found.append(Prediction(latency_ns=latency_ns, std_ns=std_ns, exact=entry is not None))
        return found

    def predict_all(self, kernels: Sequence[KernelSpec]) -> tuple[FloatArray, FloatArray]:
        """Latencies and their standard deviations in ns, (n,) each, by the model alone: measured ones are smoothed."""
        table = self.features(kernels)
        mean, variance = self._process.predict(table.coordinates, self._numbers(table.modes))
        latency_ns = _base_times(self.base, kernels, table) * np.exp(mean)
        # Of a logarithm that is normal with this variance, near enough for small ones.
        return latency_ns, latency_ns * np.sqrt(np.expm1(np.minimum(variance, 1.0)))

    def held_out_by_family(self) -> dict[KernelFamily, tuple[HeldOut, ...]]:
        """Each measured kernel, predicted from the others. Prices and settings were found with all of them, so errors
        are a little larger in truth.
        """
        missed, _ = self._process.leave_one_out()
        found: dict[KernelFamily, list[HeldOut]] = {}
        for entry, miss in zip(self.entries, missed.tolist(), strict=True):
            held_out = HeldOut(
                kernel=entry.kernel,
                axis="all",
                measured_ns=entry.latency_ns,
                predicted_ns=entry.latency_ns * math.exp(-miss),
            )
            found.setdefault(family_of(entry.kernel), []).append(held_out)
        return {family: tuple(items) for family, items in found.items()}

    def knows_mode(self, kernel: KernelSpec) -> bool:
        """Whether a kernel that runs the same kind of code was measured; else prices are those of all modes together,
        or of the other device.
        """
        return self.features([kernel]).modes[0] in self._mode_numbers

    def log_covariance(self, kernels: Sequence[KernelSpec], others: Sequence[KernelSpec]) -> FloatArray:
        """The covariance (n, m) of the logarithms of latencies, without what is each kernel's own."""
        table, other = self.features(kernels), self.features(others)
        return self._process.covariance(
            table.coordinates, self._numbers(table.modes), other.coordinates, self._numbers(other.modes)
        )

    def weight_bytes(self, kernels: Sequence[KernelSpec]) -> FloatArray:
        """The bytes of weights that each kernel reads (n,), by the algorithm that it is thought to run."""
        if isinstance(self.base, Transfer):
            return self.base.prior.weight_bytes([as_computed(kernel, self.runtime) for kernel in kernels])
        return self.base.weight_bytes(self.features(kernels))

    def runs_winograd(self, kernels: Sequence[KernelSpec]) -> np.ndarray:
        """Which kernels are thought to run Winograd's algorithm (n,), bool."""
        if isinstance(self.base, Transfer):
            return self.base.prior.runs_winograd([as_computed(kernel, self.runtime) for kernel in kernels])
        return self.base.runs_winograd(self.features(kernels))

    def features(self, kernels: Iterable[KernelSpec]) -> FeatureTable:
        """The features of `kernels`; each one's are worked out once."""
        if len(self._features) >= _MOST_KEPT:
            self._features.clear()
        found = []
        for kernel in kernels:
            features = self._features.get(kernel)
            if features is None:
                features = self._features[kernel] = kernel_features(kernel, self.runtime)
            found.append(features)
        return feature_table(found)

    def _numbers(self, modes: Sequence[str]) -> np.ndarray:
        unseen: dict[str, int] = {}
        return np.array([self._mode_numbers.get(m, -1 - unseen.setdefault(m, len(unseen))) for m in modes])


def fit_kernel_model(
    entries: Sequence[KernelLatency],
    runtime: str,
    *,
    rng: np.random.Generator,
    prior: KernelLatencyModel | None = None,
) -> KernelLatencyModel:
    """The model of kernels that were measured on one device with one setup.

    `rng` chooses the measurements that the settings are found on, where there are many. Raises `LatencyModelError` with
    fewer than `MIN_KERNELS`.
    """
    if len(entries) < MIN_KERNELS:
        raise LatencyModelError(
            f"{len(entries)} kernels were measured, but a latency model needs at least {MIN_KERNELS}: measure more"
        )
    kernels = [entry.kernel for entry in entries]
    table = feature_table([kernel_features(kernel, runtime) for kernel in kernels])
    measured = np.array([entry.latency_ns for entry in entries])
    noise = own_noise(entries)
    base = (
        fit_physical(table, measured, noise)
        if prior is None
        else _fit_transfer(prior, runtime, kernels, table, measured, noise)
    )
    values = np.log(measured / _base_times(base, kernels, table))
    numbers = {mode: number for number, mode in enumerate(sorted(set(table.modes)))}
    modes = np.array([numbers[mode] for mode in table.modes])
    for _ in range(_DOUBT_ROUNDS):
        settings = fit_settings(table.coordinates, modes, values, noise, rng)
        process = GaussianProcess(settings, table.coordinates, modes, values, noise)
        missed, variance = process.leave_one_out()
        # What is as far off as this would be by chance once in 400 times is doubted by as much.
        far = np.maximum(np.abs(missed) - _DOUBT_SIGMAS * np.sqrt(variance), 0.0)
        if not far.any():
            break
        noise = noise + far**2
    settings = fit_settings(table.coordinates, modes, values, noise, rng)
    return KernelLatencyModel(runtime, _with_noise(entries, noise), base, settings)


def _with_noise(entries: Sequence[KernelLatency], noise: FloatArray) -> tuple[KernelLatency, ...]:
    """`entries` with the uncertainty that `own_noise` turns into `noise`."""
    relative = np.sqrt(np.maximum(noise - _LEAST_OWN_NOISE**2, 0.0))
    return tuple(
        replace(entry, std_ns=float(std) * entry.latency_ns) for entry, std in zip(entries, relative, strict=True)
    )


def own_noise(entries: Sequence[KernelLatency]) -> FloatArray:
    """The variance of the logarithm of each measured latency (n,), by the measurement alone."""
    relative = np.array([entry.std_ns / entry.latency_ns for entry in entries])
    return np.asarray(relative**2 + _LEAST_OWN_NOISE**2)


def _base_times(base: PhysicalModel | Transfer, kernels: Sequence[KernelSpec], table: FeatureTable) -> FloatArray:
    return base.times(table) if isinstance(base, PhysicalModel) else base.times(kernels, table)


def _prior_times(prior: KernelLatencyModel, runtime: str, kernels: Sequence[KernelSpec]) -> FloatArray:
    return prior.predict_all([as_computed(kernel, runtime) for kernel in kernels])[0]


def _fit_transfer(
    prior: KernelLatencyModel,
    runtime: str,
    kernels: Sequence[KernelSpec],
    table: FeatureTable,
    measured: FloatArray,
    noise: FloatArray,
) -> Transfer:
    """Factors and own prices; how much either counts is what predicts measurements best that were left out of both."""
    prior_logs = np.log(measured / _prior_times(prior, runtime, kernels))
    count = len(measured)
    folds = min(_WEIGHT_FOLDS, count)
    by_factors, by_prices = np.zeros(count), np.zeros(count)
    for fold in range(folds):
        inside = np.arange(count) % folds == fold
        common, factors = _log_factors(prior_logs[~inside], table.part(~inside).modes)
        left_out = table.part(inside)
        by_factors[inside] = prior_logs[inside] - [factors.get(mode, common) for mode in left_out.modes]
        prices = fit_physical(table.part(~inside), measured[~inside], noise[~inside])
        by_prices[inside] = np.log(measured[inside] / prices.times(left_out))
    common, factors = _log_factors(prior_logs, table.modes)
    return Transfer(
        prior=prior,
        runtime=runtime,
        common_log_factor=common,
        log_factors=factors,
        own=fit_physical(table, measured, noise),
        weight=_weight(by_factors, by_prices),
    )


def _weight(by_factors: FloatArray, by_prices: FloatArray) -> float:
    """The largest part of the other device that is not worse than the best by more than a standard error, from what
    either is off by in logarithms, (n,) each (the rule of Breiman et al. 1984, Classification and Regression Trees,
    section 3.4.3; inferred: here for the error of the difference).
    """
    missed = np.abs(np.outer(_WEIGHTS, by_factors) + np.outer(np.subtract(1.0, _WEIGHTS), by_prices))
    worse = missed - missed[missed.mean(axis=1).argmin()]
    is_good = worse.mean(axis=1) <= worse.std(axis=1) / np.sqrt(worse.shape[1])
    return _WEIGHTS[int(is_good.argmax())]


def _log_factors(logs: FloatArray, modes: Sequence[str]) -> tuple[float, dict[str, float]]:
    """The factor of all modes and that of each, in logarithms, from measured over predicted (n,)."""
    common = float(np.median(logs))
    by_mode: dict[str, list[float]] = {}
    for mode, log in zip(modes, logs, strict=True):
        by_mode.setdefault(mode, []).append(float(log))
    factors = {
        mode: (sum(found) + _FACTOR_SHRINKAGE * common) / (len(found) + _FACTOR_SHRINKAGE)
        for mode, found in sorted(by_mode.items())
    }
    return common, factors
