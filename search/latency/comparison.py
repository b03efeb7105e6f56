"""Comparing latencies of the same kernels under two keys: ratios with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A median and the 95 % interval of it, in any one unit; None without an interval."""

    median: float
    ci95: tuple[float, float] | None = None

    @classmethod
    def of(cls, median: float, low: float | None, high: float | None) -> Figure:
        """One whose interval may be missing, as it is stored."""
        return cls(median=median, ci95=None if low is None or high is None else (low, high))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times `second` is of `first`, with a 95 % interval where both figures have one.

    `differs` says whether the interval leaves 1 out; None without an interval.
    """

    ratio: float
    ci95: tuple[float, float] | None

    @property
    def differs(self) -> bool | None:
        return None if self.ci95 is None else not self.ci95[0] <= 1.0 <= self.ci95[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioSummary:
    """Many ratios in one figure: the geometric mean, which is the same whichever side is divided by.

    `ci95` is an interval of that mean over kernels like these (Student's t on the logarithms); None for fewer than two.
    `differing` counts the kernels whose own interval leaves 1 out, of the `with_interval` that have one.
    """

    count: int
    geometric_mean: float
    ci95: tuple[float, float] | None
    median: float
    smallest: float
    largest: float
    with_interval: int
    differing: int


def ratio_of(first: Figure, second: Figure) -> Ratio:
    """`second` / `first`. The errors of the two are independent and small, so that their relative ones add in squares
    on the logarithm.
    """
    ratio = second.median / first.median
    if first.ci95 is None or second.ci95 is None:
        return Ratio(ratio=ratio, ci95=None)
    half = math.hypot(_half_width(first), _half_width(second))
    return Ratio(ratio=ratio, ci95=(ratio * math.exp(-half), ratio * math.exp(half)))


def _half_width(figure: Figure) -> float:
    """Half of the interval, relative to the median."""
    assert figure.ci95 is not None
    return (figure.ci95[1] - figure.ci95[0]) / (2.0 * figure.median)


def summarise_ratios(ratios: Sequence[Ratio]) -> RatioSummary:
    """Raises `ValueError` for no ratios."""
    if not ratios:
        raise ValueError("no ratios to summarise: the two sides have no kernel in common")
    values = np.array([item.ratio for item in ratios])
    logs = np.log(values)
    mean = float(logs.mean())
    interval = None
    if len(values) > 1:
        half = float(stdtrit(len(values) - 1, 0.975) * logs.std(ddof=1) / math.sqrt(len(values)))
        interval = (math.exp(mean - half), math.exp(mean + half))
    return RatioSummary(
        count=len(values),
        geometric_mean=math.exp(mean),
        ci95=interval,
        median=float(np.median(values)),
        smallest=float(values.min()),
        largest=float(values.max()),
        with_interval=sum(item.ci95 is not None for item in ratios),
        differing=sum(item.differs is True for item in ratios),
    )
