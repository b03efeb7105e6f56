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


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A figure to minimise."""

    metric: Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """An upper bound, inclusive."""

    metric: Metric
    max: float

    def __post_init__(self) -> None:
        if not self.max > 0:
            raise ContractError(f"the bound {self.max!r} on {self.metric} must be positive")

    def violation(self, value: float) -> float:
        """How far `value` is above the bound, relative to the bound; 0 where it holds."""
        return max(0.0, value / self.max - 1.0)
