"""Learning rates over the steps of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from device_agent.contracts import ContractError


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRate:
    """A linear warm-up to `peak` over a part of the steps, then half a cosine down to zero, or a constant.

    `warm_up` is a part of all steps; the first `warm_up` steps rise from `start`, which is not included.
    """

    peak: float
    warm_up: float = 0.0
    start: float = 0.0
    is_cosine: bool = True

    def __post_init__(self) -> None:
        if not self.peak > 0 or self.start < 0 or not 0.0 <= self.warm_up < 1.0:
            raise ContractError(
                f"a learning rate needs a positive peak, start >= 0 and warm_up in [0, 1), not {self.peak!r}, "
                f"{self.start!r} and {self.warm_up!r}"
            )

    def at(self, step: int, num_steps: int) -> float:
        """The rate at `step` of `num_steps`."""
        warm_up = max(1, round(self.warm_up * num_steps)) if self.warm_up else 0
        if step < warm_up:
            return self.start + (self.peak - self.start) * (step + 1) / warm_up
        if not self.is_cosine:
            return self.peak
        return self.peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, num_steps - warm_up)))
