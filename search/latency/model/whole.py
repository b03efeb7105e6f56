"""From kernels to a whole network: the sum, and what a network has that kernels timed alone have not.

A kernel alone runs on warm caches, and so does the code that it runs. In a network weights come from further away, each
operator starts anew, and the image that comes in is brought into the runtime's own layout. Others take less: where a
runtime computes a convolution together with the depthwise convolution or pool that reads it, a few channels at a time,
the tensor between them never leaves the caches. Each of these amounts has a price of 0 or more (a gain, for the last),
fitted to a few whole networks by relative errors and drawn to 0, so that what networks do not show costs nothing. (The
correction of a search's table, `search.latency.network`, is of one architecture: there, bytes of weights and a constant
are all that can be told.)

Where the networks were profiled, operator by operator, most of that is told by each operator in its place
(`in_network`): then sums of those are priced, and starting an operator, and nothing else.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from device_agent.contracts import KernelSpec, Op
from search.errors import LatencyModelError
from search.latency.families import distinct_kernels
from search.latency.model.choice import network_log_std
from search.latency.model.in_network import FUSED_READERS, InNetworkModel, fit_in_network, places_of
from search.latency.model.kernel_model import KernelLatencyModel
from search.latency.table import NetworkLatency
from search.normal import SIGMA_PER_MAD
from search.pareto import FloatArray

#: So many networks for any prices at all.
MIN_NETWORKS = 5

#: Prices beside the scale are drawn to 0 by so many networks that would do without.
_SHRINKAGE = 0.3
#: Networks that are further off than this count less (Huber's weights, relative).
_HUBER = 0.05
#: A network's own uncertainty counts beside what any network is off by.
_MISFIT = 0.03
_ROUNDS = 4

_FLOAT_BYTES = 4
#: A tensor up to this size is in the second-level cache anyway when it is read.
_NEAR_BYTES = 1 << 20
_POOLS = tuple(op for op in FUSED_READERS if op is not Op.DEPTHWISE_CONV2D)

#: What has a price, and what it is counted in.
AMOUNTS = (
    "kernels_ns",
    "operators",
    "weight_bytes",
    "winograd_operators",
    "winograd_weight_bytes",
    "matrix_weight_bytes",
    "input_bytes",
    "bytes_kept_from_depthwise",
    "bytes_kept_from_pools",
)
#: What is left to price where operators were seen in their places.
_AMOUNTS_OF_PROFILED = ("kernels_ns", "operators")
#: Amounts that a network saves.
_GAINS = ("bytes_kept_from_depthwise", "bytes_kept_from_pools")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPrices:
    """ns for each unit of `AMOUNTS`, in their order; those of gains are negative.

    `relative_std` is how far fitted networks are from what they took.
    """

    ns: tuple[float, ...]
    relative_std: float

    def of(self, amount: str) -> float:
        """The price of one of `AMOUNTS`."""
        return self.ns[AMOUNTS.index(amount)]


class WholeNetworkModel:
    """Predicts whole networks from a model of kernels, the prices of networks, and what is known of operators in their
    places.
    """

    def __init__(
        self, kernels: KernelLatencyModel, prices: NetworkPrices, in_network: InNetworkModel | None = None
    ) -> None:
        self.kernels = kernels
        self.prices = prices
        self.in_network = in_network

    def predict_all(self, networks: Sequence[Sequence[KernelSpec]]) -> tuple[FloatArray, FloatArray]:
        """Latencies of networks, each given by its kernels in order, and their standard deviations, in ns (n,)."""
        amounts = network_amounts(self.kernels, networks)
        if self.in_network is not None:
            places = places_of(self.kernels, networks)
            in_place_ns = places.alone_ns * self.in_network.ratios(places)
            amounts[:, AMOUNTS.index("kernels_ns")] = places.sums(in_place_ns, len(networks))
        latency_ns = amounts @ np.array(self.prices.ns)
        # Kernels' errors are in those of the fitted networks too: the larger of the two, not both.
        relative = np.maximum(network_log_std(self.kernels, networks), self.prices.relative_std)
        return latency_ns, latency_ns * relative


def network_amounts(model: KernelLatencyModel, networks: Sequence[Sequence[KernelSpec]]) -> FloatArray:
    """What each network has of `AMOUNTS`: (n, 9)."""
    distinct = distinct_kernels(networks)
    of_kernel = dict(zip(distinct, _kernel_amounts(model, distinct), strict=True))
    return np.array(
        [
            np.sum([of_kernel[kernel] for kernel in network], axis=0)
            + _amounts(
                input_bytes=_input_bytes(network[0]),
                bytes_kept_from_depthwise=_bytes_kept(network, (Op.DEPTHWISE_CONV2D,)),
                bytes_kept_from_pools=_bytes_kept(network, _POOLS),
            )
            for network in networks
        ]
    )


def _kernel_amounts(model: KernelLatencyModel, kernels: Sequence[KernelSpec]) -> list[FloatArray]:
    latencies_ns, weight_bytes = model.predict_all(kernels)[0].tolist(), model.weight_bytes(kernels).tolist()
    found = []
    for kernel, latency_ns, num_bytes, is_winograd in zip(
        kernels, latencies_ns, weight_bytes, model.runs_winograd(kernels).tolist(), strict=True
    ):
        is_matrix = kernel.op is Op.FULLY_CONNECTED
        found.append(
            _amounts(
                kernels_ns=latency_ns,
                operators=1.0,
                weight_bytes=0.0 if is_matrix or is_winograd else num_bytes,
                winograd_operators=float(is_winograd),
                winograd_weight_bytes=num_bytes if is_winograd else 0.0,
                matrix_weight_bytes=num_bytes if is_matrix else 0.0,
            )
        )
    return found


def _amounts(**given: float) -> FloatArray:
    return np.array([given.get(name, 0.0) for name in AMOUNTS])


def _bytes_kept(network: Sequence[KernelSpec], readers: Sequence[Op]) -> float:
    """Bytes, beyond those that stay near anyway, of what convolutions write and `readers` read right after them."""
    return sum(
        max(0.0, _input_bytes(reader) - _NEAR_BYTES)
        for before, reader in itertools.pairwise(network)
        if before.op is Op.CONV2D and reader.op in readers
    )


def _input_bytes(kernel: KernelSpec) -> float:
    return float(_FLOAT_BYTES * kernel.in_channels * kernel.input_h * kernel.input_w)


def fit_whole_networks(
    model: KernelLatencyModel,
    networks: Sequence[NetworkLatency],
    op_ns: Sequence[Sequence[float]] | None = None,
    *,
    rng: np.random.Generator | None = None,
) -> WholeNetworkModel:
    """The prices of networks on a device whose kernels are known.

    `op_ns` are the times of each network's operators as a profile of the whole network gives them, in the order of its
    kernels; `rng` (by default of seed 0) is for `fit_in_network`. Raises `LatencyModelError` with fewer networks than
    `MIN_NETWORKS`, and where a profile has not one time above 0 for each kernel.
    """
    if len(networks) < MIN_NETWORKS:
        raise LatencyModelError(
            f"{len(networks)} whole networks were measured, but their prices need at least {MIN_NETWORKS}: measure more"
        )
    amounts = network_amounts(model, [network.kernels for network in networks])
    if op_ns is None:
        return WholeNetworkModel(model, _fit_prices(amounts, networks, AMOUNTS))
    for network, times in zip(networks, op_ns, strict=True):
        if len(times) != len(network.kernels):
            raise LatencyModelError(
                f"a profile has {len(times)} times for a network of {len(network.kernels)} kernels: give one for each"
            )
        if not all(0 < ns < math.inf for ns in times):
            raise LatencyModelError(f"a profile has {min(times)!r} ns for an operator: leave that network's out")
    places = places_of(model, [network.kernels for network in networks])
    in_network = fit_in_network(places, np.concatenate(op_ns), rng or np.random.default_rng(0))
    # Each network's from the others, as an unseen one's will be: its own profile would be closer than any of theirs.
    in_place_ns = places.alone_ns * in_network.left_out_ratios(places)
    amounts[:, AMOUNTS.index("kernels_ns")] = places.sums(in_place_ns, len(networks))
    return WholeNetworkModel(model, _fit_prices(amounts, networks, _AMOUNTS_OF_PROFILED), in_network)


def _fit_prices(amounts: FloatArray, networks: Sequence[NetworkLatency], priced: Sequence[str]) -> NetworkPrices:
    """Prices for the amounts (n, 9) that `priced` names; those of the others are 0."""
    measured = np.array([network.latency_ns for network in networks])
    own = np.array([network.std_ns for network in networks]) / measured
    signs = np.array([float(name in priced) * (-1.0 if name in _GAINS else 1.0) for name in AMOUNTS])
    relative = signs * amounts / measured[:, None]
    trust = 1.0 / (1.0 + (own / _MISFIT) ** 2)
    size = np.sqrt((relative**2).mean(axis=0))
    size[size == 0.0] = 1.0
    pull = np.sqrt(_SHRINKAGE) * np.eye(len(size))[1:]
    weights = trust
    for _ in range(_ROUNDS):
        root = np.sqrt(weights)
        matrix = np.vstack((relative * root[:, None] / size, pull))
        prices = nnls(matrix, np.concatenate((root, np.zeros(len(pull)))))[0] / size
        errors = np.abs(relative @ prices - 1.0)
        weights = trust * np.minimum(1.0, _HUBER / np.maximum(errors, 1e-12))
    return NetworkPrices(
        ns=tuple(float(price) for price in signs * prices), relative_std=float(SIGMA_PER_MAD * np.median(errors))
    )
