"""What a search minimises and what it must respect."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from device_agent.contracts import ContractError


class Metric(StrEnum):
    """A figure of a candidate. All of them are minimised; accuracy enters as `error` or `loss`."""

    #: 1 - accuracy on the held-out part of the training set.
    ERROR = "error"
    #: Cross-entropy on the held-out part of the training set, in nats.
    LOSS = "loss"
    #: Predicted latency of the whole network on the search's device.
    LATENCY_MS = "latency_ms"
    MACS = "macs"
    PARAMETERS = "parameters"
    #: Weights and biases as the packed file stores them, zeros left out, without its header.
    MODEL_BYTES = "model_bytes"


class LatencyOverDevices(StrEnum):
    """What `latency_ms` means in a search over several devices."""

    #: That of the slowest device.
    MAX = "max"
    MEAN = "mean"
    #: A change by a factor counts equally on every device, however fast it is.
    GEOMETRIC_MEAN = "geometric_mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A figure to minimise."""

    metric: Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """An upper bound, inclusive. With `device`, on the latency of that device alone."""

    metric: Metric
    max: float
    device: str | None = None

    def __post_init__(self) -> None:
        if self.device is not None and self.metric is not Metric.LATENCY_MS:
            raise ContractError(
                f"{self.metric} is the same on every device: leave out the device {self.device!r}, or bound "
                f"{Metric.LATENCY_MS}"
            )
        if not self.max > 0:
            raise ContractError(f"the bound {self.max!r} on {self.metric} must be positive")

    @property
    def subject(self) -> str:
        """What is bounded, in words."""
        return self.metric.value if self.device is None else f"{self.metric.value} on {self.device}"

    def violation(self, value: float) -> float:
        """How far `value` is above the bound, relative to the bound; 0 where it holds."""
        return max(0.0, value / self.max - 1.0)
