"""What each kernel takes inside a network, against what it takes alone, learnt from profiles of a few whole networks.

Alone, a kernel finds its weights and its input in the nearest cache. In a network they come from further away, the more
so the more the network has of them; a pool or depthwise convolution that is computed together with the convolution
before it costs less than alone. Some networks, run once more with a clock around each operator, show both for thousands
of operators, where their total times show it for a few dozen networks. The logarithm of the ratio is a Gaussian process
over the kernel and its place in the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from device_agent.contracts import KernelSpec, Op
from search.latency.families import distinct_kernels
from search.latency.model.kernel_model import KernelLatencyModel
from search.latency.model.residual import GaussianProcess, fit_settings
from search.pareto import FloatArray

#: A clock that is read around an operator is off by about as much.
_CLOCK_NS = 30.0
#: What reads a convolution's output, and may be computed together with it.
FUSED_READERS = (Op.DEPTHWISE_CONV2D, Op.MAX_POOL, Op.AVG_POOL)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Places:
    """The operators of networks, one after the other: `coordinates` (n, c) and `modes` (n,) of each in its place,
    `alone_ns` (n,) what it is predicted to take alone, and `network` (n,) which network it is of.
    """

    coordinates: FloatArray
    modes: tuple[str, ...]
    alone_ns: FloatArray
    network: np.ndarray

    def sums(self, values: FloatArray, num_networks: int) -> FloatArray:
        """`values` (n,) of operators, summed over each network (num_networks,)."""
        return np.asarray(np.bincount(self.network, weights=values, minlength=num_networks), dtype=np.float64)


class InNetworkModel:
    """Predicts operators in their places. Made by `fit_in_network`."""

    def __init__(self, process: GaussianProcess, modes: Sequence[str], centre: float) -> None:
        self._process = process
        self._numbers = {mode: number for number, mode in enumerate(modes)}
        self._centre = centre

    def ratios(self, places: Places) -> FloatArray:
        """How many times as long each operator takes in its place as alone (n,)."""
        numbers = np.array([self._numbers.get(mode, -1) for mode in places.modes])
        return np.asarray(np.exp(self._process.predict(places.coordinates, numbers)[0] + self._centre))

    def left_out_ratios(self, places: Places) -> FloatArray:
        """`ratios` of the networks that this was fitted to, each predicted from the others (n,)."""
        return np.asarray(np.exp(self._process.leave_groups_out(places.network) + self._centre))


def places_of(model: KernelLatencyModel, networks: Sequence[Sequence[KernelSpec]]) -> Places:
    """The operators of `networks`, each given by its kernels in order."""
    distinct = distinct_kernels(networks)
    table = model.features(distinct)
    alone_ns, weight_bytes = model.predict_all(distinct)[0], model.weight_bytes(distinct)
    modes = [
        f"{mode}, run" if is_winograd else mode
        for mode, is_winograd in zip(table.modes, model.runs_winograd(distinct).tolist(), strict=True)
    ]
    index = {kernel: number for number, kernel in enumerate(distinct)}
    rows = [np.array([index[kernel] for kernel in network]) for network in networks]
    which = np.concatenate(rows)
    in_place = np.vstack(
        [_in_place(network, alone_ns[row], weight_bytes[row]) for network, row in zip(networks, rows, strict=True)]
    )
    return Places(
        coordinates=np.column_stack((table.coordinates[which], in_place)),
        modes=tuple(modes[number] for number in which.tolist()),
        alone_ns=alone_ns[which],
        network=np.repeat(np.arange(len(networks)), [len(row) for row in rows]),
    )


def _in_place(network: Sequence[KernelSpec], alone_ns: FloatArray, weight_bytes: FloatArray) -> FloatArray:
    """What matters beside the kernels themselves: (kernels of the network, 6)."""
    ops = [kernel.op for kernel in network]
    is_fused = [
        float(before is Op.CONV2D and op in FUSED_READERS) for before, op in zip([None, *ops], ops, strict=False)
    ]
    all_bytes = math.log1p(float(weight_bytes.sum()))
    return np.column_stack(
        (
            np.log(alone_ns),
            # How fast weights would have to come.
            np.log1p(weight_bytes) - np.log(alone_ns),
            np.full(len(ops), all_bytes),
            np.arange(len(ops)) == 0,
            is_fused,
            [*is_fused[1:], 0.0],
        )
    )


def fit_in_network(places: Places, op_ns: FloatArray, rng: np.random.Generator) -> InNetworkModel:
    """What `op_ns` (n,) say, the times of operators in their places. `rng` chooses those that settings are found on."""
    logs = np.log(op_ns / places.alone_ns)
    centre = float(np.median(logs))
    modes = sorted(set(places.modes))
    numbers = np.array([modes.index(mode) for mode in places.modes])
    noise = (_CLOCK_NS / op_ns) ** 2
    settings = fit_settings(places.coordinates, numbers, logs - centre, noise, rng)
    return InNetworkModel(GaussianProcess(settings, places.coordinates, numbers, logs - centre, noise), modes, centre)
