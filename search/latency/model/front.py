"""Where uncertainty meets the front: which candidates may belong to it, and what to measure to find out.

A candidate that is certainly dominated may be as uncertain as it likes, and so may one that is certainly on the front
as far as membership goes; what its latency is still matters there. So a candidate counts by the probability that no
candidate of at most its error is faster, and measurements are chosen to take variance from those that count.

Over several devices a candidate has one latency, and to first order its logarithm follows each device's by a part
(`device_parts`). A device's measurements are chosen by these parts too: where it does not decide, less need be known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from device_agent.contracts import KernelSpec
from search.domain.objective import LatencyOverDevices
from search.latency.families import without_seed
from search.latency.fleet import over_devices
from search.latency.model.choice import choose_kernels, kernel_latencies, network_log_std
from search.latency.model.kernel_model import KernelLatencyModel
from search.latency.network import Correction
from search.pareto import FloatArray

#: Candidates that are less likely to be on the front are not worth a measurement.
MIN_PROBABILITY = 0.05

#: So many candidates at most are measured for at once: what choosing takes grows with their number.
MOST_CANDIDATES = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrontBelief:
    """What models know of n candidates: logarithms of latencies over the devices, their standard deviations, and the
    probability that each is on the front, (n,) each; and by which part each logarithm follows that of each device,
    (devices, n).
    """

    log_latency: FloatArray
    log_std: FloatArray
    probability: FloatArray
    parts: FloatArray

    def importance(self, device: int, *, is_bounded: bool = False) -> FloatArray:
        """How much each candidate counts where kernels of the `device`-th device are chosen, (n,): 0 where it is
        unlikely to be on the front, or the device to matter for it. On one with a bound of its own, latencies count
        as a whole.
        """
        part = np.ones(len(self.probability)) if is_bounded else self.parts[device]
        counts = (self.probability >= MIN_PROBABILITY) & (part >= MIN_PROBABILITY / len(self.parts))
        # The variance of a sum, where the errors of devices are independent.
        return np.where(counts, self.probability * part**2, 0.0)


def front_probability(errors: ArrayLike, log_latency: ArrayLike, log_std: ArrayLike) -> FloatArray:
    """How likely each of n candidates is on the front of (error, latency), (n,), by its most dangerous rival.

    Errors (n,) count as known; log latencies are normal, with the given means and standard deviations, (n,) each. A
    rival has at most the candidate's error; what is returned is the smallest probability, over rivals, of being faster
    than that one: an upper bound of the probability of being faster than all, and exact with one rival. Latencies of
    two candidates are taken as independent, which overstates how often they change places. A candidate whose error is
    not finite has probability 0 and is nobody's rival.
    """
    error, mean, std = (np.asarray(values, dtype=np.float64) for values in (errors, log_latency, log_std))
    if not error.shape == mean.shape == std.shape or error.ndim != 1:
        raise ValueError(f"errors {error.shape}, latencies {mean.shape} and deviations {std.shape} must be (n,) each")
    known = np.isfinite(error)
    result = np.zeros(len(error))
    for i in np.flatnonzero(known):
        rivals = known & (error <= error[i])
        rivals[i] = False
        if not rivals.any():
            result[i] = 1.0
            continue
        # Equals share the place.
        result[i] = _chance_below(mean[i], std[i], mean[rivals], std[rivals], of_equals=1.0).min()
    return result


def _chance_below(mean: ArrayLike, std: ArrayLike, means: ArrayLike, stds: ArrayLike, of_equals: float) -> FloatArray:
    """The probability that a normal value is below each of others that it does not depend on; `of_equals` where
    nothing is uncertain and both are the same.
    """
    spread = np.hypot(stds, std)
    ahead = np.asarray(means) - np.asarray(mean)
    certain = np.where(ahead == 0, of_equals, ahead > 0)
    return np.where(spread > 0, ndtr(ahead / np.where(spread > 0, spread, 1.0)), certain)


def device_parts(log_latency: ArrayLike, log_std: ArrayLike, over: LatencyOverDevices) -> FloatArray:
    """By which part the logarithm of each candidate's latency over the devices follows that of each device, (devices,
    n), columns sum to 1: its derivative. Log latencies are normal, with the given means and deviations, (devices, n).

    Of the slowest, the part is the probability of being that (C. E. Clark, The Greatest of a Finite Set of Random
    Variables, Operations Research 9(2), 1961, for the mean of the maximum; inferred: for more than two devices, by each
    one's slowest rival and scaled to sum to 1).
    """
    mean, std = np.asarray(log_latency, dtype=np.float64), np.asarray(log_std, dtype=np.float64)
    if over is LatencyOverDevices.GEOMETRIC_MEAN or len(mean) == 1:
        return np.full(mean.shape, 1.0 / len(mean))
    if over is LatencyOverDevices.MEAN:
        latency = np.exp(mean - mean.max(axis=0))
        return np.asarray(latency / latency.sum(axis=0))
    rows = range(len(mean))
    slowest = np.stack(
        [
            np.min([_chance_below(mean[e], std[e], mean[d], std[d], of_equals=0.5) for e in rows if e != d], axis=0)
            for d in rows
        ]
    )
    return np.asarray(slowest / slowest.sum(axis=0))


def front_belief(
    model: KernelLatencyModel, networks: Sequence[Sequence[KernelSpec]], errors: Sequence[float]
) -> FrontBelief:
    """What `model` knows of candidates with these kernels and errors. Latencies are sums over kernels: a correction to
    whole networks is common to all, and changes no order.
    """
    latency = kernel_latencies(model, networks)
    log_latency = np.log([sum(latency[kernel] for kernel in network) for network in networks])
    log_std = network_log_std(model, networks)
    return belief_over([(log_latency, log_std)], errors, LatencyOverDevices.MAX)


def device_belief(
    model: KernelLatencyModel, correction: Correction, networks: Sequence[Sequence[KernelSpec]]
) -> tuple[FloatArray, FloatArray]:
    """The logarithms of latencies of whole networks with these kernels on one device, and their standard deviations,
    (n,) each. Kernels' errors alone are counted, and the correction's constant is not taken off them.
    """
    latency = kernel_latencies(model, networks)
    sums: FloatArray = np.array([sum(latency[kernel] for kernel in network) for network in networks])
    weight_bytes: FloatArray = np.array([float(model.weight_bytes(network).sum()) for network in networks])
    return np.log(correction.network_ns(sums, weight_bytes)), network_log_std(model, networks)


def belief_over(
    devices: Sequence[tuple[FloatArray, FloatArray]], errors: Sequence[float], over: LatencyOverDevices
) -> FrontBelief:
    """What follows for candidates with these errors from log latencies on each device and their standard deviations,
    (n,) each. To first order: `over` of the likeliest latencies, with devices' errors independent of each other.
    """
    log_latencies, log_stds = (np.stack(rows) for rows in zip(*devices, strict=True))
    parts = device_parts(log_latencies, log_stds, over)
    log_latency = np.log(over_devices(np.exp(log_latencies.T), over))
    log_std = np.sqrt(((parts * log_stds) ** 2).sum(axis=0))
    return FrontBelief(
        log_latency=log_latency,
        log_std=log_std,
        probability=front_probability(np.asarray(errors), log_latency, log_std),
        parts=parts,
    )


def kernels_for_front(
    model: KernelLatencyModel,
    networks: Sequence[Sequence[KernelSpec]],
    errors: Sequence[float],
    count: int,
    *,
    pool: Sequence[KernelSpec] | None = None,
) -> list[KernelSpec]:
    """At most `count` kernels (seed 0) whose measurement makes the candidates near the front most certain, best first.

    They are of `pool`, or of the candidates themselves; what the model was fitted on is never chosen again. Fewer where
    nothing is left. Ties go to what comes first, so equal arguments choose equally.
    """
    return kernels_for(model, networks, front_belief(model, networks, errors).importance(0), count, pool=pool)


def kernels_for(
    model: KernelLatencyModel,
    networks: Sequence[Sequence[KernelSpec]],
    importance: FloatArray,
    count: int,
    *,
    pool: Sequence[KernelSpec] | None = None,
) -> list[KernelSpec]:
    """The same for candidates that count by `importance` (n,), of which those with 0 do not."""
    near = [int(i) for i in np.argsort(-importance, kind="stable")[:MOST_CANDIDATES] if importance[i] > 0]
    if not near:
        return []
    wanted = [kernel for i in near for kernel in networks[i]] if pool is None else pool
    measured = {without_seed(entry.kernel) for entry in model.entries}
    left = [kernel for kernel in dict.fromkeys(map(without_seed, wanted)) if kernel not in measured]
    weights = importance[near].tolist()
    return [left[i] for i in choose_kernels(model, left, [networks[i] for i in near], count, importance=weights)]
