"""Latency over several devices: each one's own, and the one figure that a search minimises."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from device_agent.contracts import NetworkPlan
from search.domain.objective import LatencyOverDevices
from search.latency.network import NetworkLatencyModel
from search.pareto import FloatArray


def over_devices(latencies: ArrayLike, over: LatencyOverDevices) -> FloatArray:
    """One latency of those on several devices (..., devices), all positive, in their unit: shape (...).

    That of one device is itself, bit for bit, whatever `over` is.
    """
    values = np.asarray(latencies, dtype=np.float64)
    if values.shape[-1] == 1:
        return values[..., 0]
    if over is LatencyOverDevices.MAX:
        return np.asarray(values.max(axis=-1))
    if over is LatencyOverDevices.MEAN:
        return np.asarray(values.mean(axis=-1))
    return np.asarray(np.exp(np.log(values).mean(axis=-1)))


class FleetLatencyModel:
    """Predicts whole networks on the devices of a search. Each device has its own table and its own correction.

    Args:
        models: The model of each device, by the device's identity; their order is that of the search.
        over: What makes one latency of theirs.
    """

    def __init__(self, models: Mapping[str, NetworkLatencyModel], over: LatencyOverDevices) -> None:
        if not models:
            raise ValueError("a search has at least one device")
        self.models = dict(models)
        self.over = over

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(self.models)

    def latencies_ms(self, plan: NetworkPlan) -> dict[str, float]:
        """The latency of `plan` on each device. Raises `KernelNotMeasured` where a kernel is outside of a table."""
        return {device: model.latency_ms(plan) for device, model in self.models.items()}

    def latency_ms(self, plan: NetworkPlan) -> float:
        """The latency of `plan` over the devices."""
        return float(over_devices(list(self.latencies_ms(plan).values()), self.over))
