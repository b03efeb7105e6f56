"""Values that tests of several packages need."""

from __future__ import annotations

from typing import Any

from device_agent.contracts import Statistics


def flat_statistics(median_ns: float, **changes: Any) -> Statistics:
    """Statistics of samples that are all equal, but for `changes`."""
    values: dict[str, Any] = dict.fromkeys(
        ("median_ns", "mean_ns", "min_ns", "p5_ns", "p10_ns", "p90_ns", "p95_ns"), median_ns
    )
    return Statistics(**{**values, "mad_ns": 0.0, "num_samples": 1, "num_blocks": 1, **changes})
