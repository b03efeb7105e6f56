"""From kernels to a whole network: the sum, and what a network has that kernels timed alone have not.

A kernel alone runs on warm caches: its weights stay there from run to run. In a network they come from memory further
away, and so do inputs that were written a while ago, which convolutions with strides feel most. So a network takes
    scale * sum + strided * (sum over strided convolutions) + weights * (bytes of all weights) + once,
with prices of 0 or more, fitted to a few whole networks by relative errors. (The affine correction of a search's table,
`search.latency.network`, is this with the first and the last alone.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from device_agent.contracts import KernelSpec, Op
from search.errors import LatencyModelError
from search.latency.model.choice import kernel_latencies, network_log_std
from search.latency.model.kernel_model import KernelLatencyModel
from search.latency.table import NetworkLatency
from search.normal import SIGMA_PER_MAD
from search.pareto import FloatArray

#: Four prices and one network more.
MIN_NETWORKS = 5

#: Prices beside the scale are drawn to 0 by so many networks that would do without.
_SHRINKAGE = 0.1
#: Networks that are further off than this count less (Huber's weights, relative).
_HUBER = 0.05
#: A network's own uncertainty counts beside what any network is off by.
_MISFIT = 0.03
_ROUNDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPrices:
    """ns for each ns of the sum, for each ns of strided convolutions, for each byte of weights, and once.

    `relative_std` is how far fitted networks are from what they took.
    """

    scale: float
    strided: float
    weight_byte: float
    once: float
    relative_std: float


class WholeNetworkModel:
    """Predicts whole networks from a model of kernels and the prices of networks."""

    def __init__(self, kernels: KernelLatencyModel, prices: NetworkPrices) -> None:
        self.kernels = kernels
        self.prices = prices

    def predict_all(self, networks: Sequence[Sequence[KernelSpec]]) -> tuple[FloatArray, FloatArray]:
        """Latencies of networks, each given by its kernels, and their standard deviations, in ns (n,)."""
        prices = self.prices
        columns = network_columns(self.kernels, networks)
        latency_ns = columns @ np.array([prices.scale, prices.strided, prices.weight_byte, prices.once])
        # Kernels' errors are in those of the fitted networks too: the larger of the two, not both.
        relative = np.maximum(network_log_std(self.kernels, networks), prices.relative_std)
        return latency_ns, latency_ns * relative


def network_columns(model: KernelLatencyModel, networks: Sequence[Sequence[KernelSpec]]) -> FloatArray:
    """(n, 4): the sum in ns, that of strided convolutions, bytes of weights, 1."""
    latency_ns = kernel_latencies(model, networks)
    distinct = list(latency_ns)
    weight_bytes = dict(zip(distinct, model.weight_bytes(distinct).tolist(), strict=True))
    return np.array(
        [
            [
                sum(latency_ns[kernel] for kernel in network),
                sum(latency_ns[kernel] for kernel in network if kernel.op is Op.CONV2D and kernel.stride > 1),
                sum(weight_bytes[kernel] for kernel in network),
                1.0,
            ]
            for network in networks
        ]
    )


def fit_whole_networks(model: KernelLatencyModel, networks: Sequence[NetworkLatency]) -> WholeNetworkModel:
    """The prices of networks on a device whose kernels are known.

    Raises `LatencyModelError` with fewer than `MIN_NETWORKS`.
    """
    if len(networks) < MIN_NETWORKS:
        raise LatencyModelError(
            f"{len(networks)} whole networks were measured, but their prices need at least {MIN_NETWORKS}: measure more"
        )
    measured = np.array([network.latency_ns for network in networks])
    own = np.array([network.std_ns for network in networks]) / measured
    relative = network_columns(model, [network.kernels for network in networks]) / measured[:, None]
    trust = 1.0 / (1.0 + (own / _MISFIT) ** 2)
    size = np.sqrt((relative**2).mean(axis=0))
    pull = np.sqrt(_SHRINKAGE) * np.eye(len(size))[1:]
    weights = trust
    for _ in range(_ROUNDS):
        root = np.sqrt(weights)
        matrix = np.vstack((relative * root[:, None] / size, pull))
        prices = nnls(matrix, np.concatenate((root, np.zeros(len(pull)))))[0] / size
        errors = np.abs(relative @ prices - 1.0)
        weights = trust * np.minimum(1.0, _HUBER / np.maximum(errors, 1e-12))
    scale, strided, weight_byte, once = (float(price) for price in prices)
    return WholeNetworkModel(
        model,
        NetworkPrices(
            scale=scale,
            strided=strided,
            weight_byte=weight_byte,
            once=once,
            relative_std=float(SIGMA_PER_MAD * np.median(errors)),
        ),
    )
