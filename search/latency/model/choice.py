"""Which kernels to measure next: those that make whole networks of interest more certain.

To first order, the logarithm of a network's latency is a weighted sum of its kernels' logarithms, with each one's part
of the time as its weight. So its variance under the model is a quadratic form in their covariance, and what measuring a
kernel takes from it follows without knowing the outcome (Cohn, Ghahramani and Jordan 1996, Active Learning with
Statistical Models, section 4, for one output; inferred: here for the mean over networks). Kernels are chosen one after
the other, each given those before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from device_agent.contracts import KernelSpec
from search.latency.families import distinct_kernels
from search.latency.model.kernel_model import KernelLatencyModel
from search.pareto import FloatArray

#: The noise that a measurement is expected to have, relative: about what kernels are measured to.
_EXPECTED_NOISE = 0.01


def choose_kernels(
    model: KernelLatencyModel,
    pool: Sequence[KernelSpec],
    networks: Sequence[Sequence[KernelSpec]],
    count: int,
    *,
    importance: Sequence[float] | None = None,
) -> list[int]:
    """The indices in `pool` of `count` kernels to measure, the most useful first.

    `networks` are the kernels of networks that matter, such as those of the present front and around it; `importance`
    (one weight each, 1 by default) says how much each does. Fewer are chosen where the pool ends.
    """
    count = min(count, len(pool))
    if count <= 0:
        return []
    weights = np.ones(len(networks)) if importance is None else np.asarray(importance, dtype=np.float64)
    distinct = distinct_kernels(networks)
    parts = network_parts(model, networks, distinct)
    # Of each network's logarithm with each candidate's, and of candidates with each other.
    with_networks = parts @ model.log_covariance(distinct, pool)
    among = model.log_covariance(pool, pool)
    own = model.settings.noise + _EXPECTED_NOISE**2
    chosen: list[int] = []
    left = np.ones(len(pool), dtype=bool)
    for _ in range(count):
        variances = np.maximum(among.diagonal(), 0.0) + own
        gain = np.where(left, (weights[:, None] * with_networks**2).sum(axis=0) / variances, -1.0)
        best = int(gain.argmax())
        chosen.append(best)
        left[best] = False
        column = among[:, best] / variances[best]
        with_networks = with_networks - np.outer(with_networks[:, best], column)
        among = among - np.outer(among[:, best], column)
    return chosen


def kernel_latencies(model: KernelLatencyModel, networks: Sequence[Sequence[KernelSpec]]) -> dict[KernelSpec, float]:
    """What the model predicts for every kernel of some networks, in ns."""
    distinct = distinct_kernels(networks)
    return dict(zip(distinct, model.predict_all(distinct)[0].tolist(), strict=True))


def network_parts(
    model: KernelLatencyModel, networks: Sequence[Sequence[KernelSpec]], distinct: Sequence[KernelSpec]
) -> FloatArray:
    """What part of each network's time each of the `distinct` kernels takes: (networks, kernels), rows sum to 1."""
    latency_ns, _ = model.predict_all(distinct)
    place = {kernel: index for index, kernel in enumerate(distinct)}
    parts: FloatArray = np.zeros((len(networks), len(distinct)))
    for row, network in zip(parts, networks, strict=True):
        for kernel in network:
            row[place[kernel]] += latency_ns[place[kernel]]
    parts /= parts.sum(axis=1, keepdims=True)
    return parts


def network_log_std(model: KernelLatencyModel, networks: Sequence[Sequence[KernelSpec]]) -> FloatArray:
    """The standard deviation of the logarithm of the sum of each network's kernels, (networks,).

    Kernels that are alike err alike: their errors do not average out as independent ones would.
    """
    distinct = distinct_kernels(networks)
    parts = network_parts(model, networks, distinct)
    covariance = model.log_covariance(distinct, distinct)
    common = np.einsum("nk,kl,nl->n", parts, covariance, parts, optimize=True)
    return np.asarray(np.sqrt(np.maximum(common, 0.0) + model.settings.noise * (parts**2).sum(axis=1)))
