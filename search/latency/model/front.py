"""Where uncertainty meets the front: which candidates may belong to it, and what to measure to find out.

A candidate that is certainly dominated may be as uncertain as it likes, and so may one that is certainly on the front
as far as membership goes; what its latency is still matters there. So a candidate counts by the probability that no
candidate of at most its error is faster, and measurements are chosen to take variance from those that count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from device_agent.contracts import KernelSpec
from search.latency.families import distinct_kernels, without_seed
from search.latency.model.choice import choose_kernels, network_log_std
from search.latency.model.kernel_model import KernelLatencyModel
from search.pareto import FloatArray

#: Candidates that are less likely to be on the front are not worth a measurement.
MIN_PROBABILITY = 0.05

#: So many candidates at most are measured for at once: what choosing takes grows with their number.
MOST_CANDIDATES = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrontBelief:
    """What a model knows of n candidates: logarithms of latencies, their standard deviations, and the probability that
    each is on the front, (n,) each.
    """

    log_latency: FloatArray
    log_std: FloatArray
    probability: FloatArray


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
        spread = np.hypot(std[rivals], std[i])
        ahead = mean[rivals] - mean[i]
        # Without uncertainty the faster one is known; equals share the place.
        certain = np.where(ahead >= 0, 1.0, 0.0)
        chance = np.where(spread > 0, ndtr(ahead / np.where(spread > 0, spread, 1.0)), certain)
        result[i] = chance.min()
    return result


def front_belief(
    model: KernelLatencyModel, networks: Sequence[Sequence[KernelSpec]], errors: Sequence[float]
) -> FrontBelief:
    """What `model` knows of candidates with these kernels and errors. Latencies are sums over kernels: a correction to
    whole networks is common to all, and changes no order.
    """
    distinct = distinct_kernels(networks)
    latency = dict(zip(distinct, model.predict_all(distinct)[0].tolist(), strict=True))
    log_latency = np.log([sum(latency[kernel] for kernel in network) for network in networks])
    log_std = network_log_std(model, networks)
    return FrontBelief(
        log_latency=log_latency,
        log_std=log_std,
        probability=front_probability(np.asarray(errors), log_latency, log_std),
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
    belief = front_belief(model, networks, errors)
    near = [int(i) for i in np.argsort(-belief.probability, kind="stable")[:MOST_CANDIDATES]]
    near = [i for i in near if belief.probability[i] >= MIN_PROBABILITY]
    if not near:
        return []
    wanted = [kernel for i in near for kernel in networks[i]] if pool is None else pool
    measured = {without_seed(entry.kernel) for entry in model.entries}
    left = [kernel for kernel in dict.fromkeys(map(without_seed, wanted)) if kernel not in measured]
    importance = [float(belief.probability[i]) for i in near]
    return [left[i] for i in choose_kernels(model, left, [networks[i] for i in near], count, importance=importance)]
