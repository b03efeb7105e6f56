"""Numbers that may be undefined, in JSON: None stands for what is not finite."""

from __future__ import annotations

import math


def finite_or_none(value: float) -> float | None:
    """`value` as JSON has it: NaN and infinity become None."""
    return float(value) if math.isfinite(value) else None


def number_or(value: float | None, missing: float = math.nan) -> float:
    """The number that was stored; `missing` for None. Raises `TypeError` or `ValueError` on anything else."""
    return missing if value is None else float(value)
