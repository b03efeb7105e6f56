"""Thread-CPU times of variants that take turns, and the figures that are read off them.

A shared machine changes its speed within seconds, so only times of one round are compared: a figure is the median over
rounds of the ratio within the round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: A sample of a fast variant is made this long by repeating it.
MIN_SAMPLE_NS = 1_000_000
_MAX_REPEATS = 1 << 20


@dataclass(frozen=True, slots=True)
class Variant:
    """Something to time: `repeat(n)` does its work n times."""

    name: str
    repeat: Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Times:
    """`ns` is (rounds, variants): the time of one repetition of each variant in each round."""

    names: tuple[str, ...]
    ns: NDArray[np.float64]

    def of(self, name: str) -> NDArray[np.float64]:
        """The times of one variant by round. Raises `ValueError` for an unknown name."""
        return self.ns[:, self.names.index(name)]

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def median_ns(self, name: str) -> float:
        return float(np.median(self.of(name)))

    def minimum_ns(self, name: str) -> float:
        return float(self.of(name).min())

    def ratio_of(self, numerator: str, denominator: str) -> float:
        """Median over rounds of the ratio of two times. Raises `ValueError` where either was not measured."""
        return float(np.median(self.of(numerator) / self.of(denominator)))

    def ratio(self, numerator: str, denominator: str) -> float | None:
        """The same, but None where either was not measured."""
        if numerator not in self.names or denominator not in self.names:
            return None
        return self.ratio_of(numerator, denominator)


def time_interleaved(
    variants: Sequence[Variant],
    rounds: int,
    *,
    min_sample_ns: int = MIN_SAMPLE_NS,
    clock_ns: Callable[[], int] = time.thread_time_ns,
) -> Times:
    """Time every variant once in each of `rounds` rounds; each round begins with another variant.

    A sample repeats its variant for about `min_sample_ns`, after one repetition that brings its data into the caches.
    """
    if rounds < 1:
        raise ValueError(f"rounds {rounds!r} must be at least 1")
    repeats = [_repeats(variant, min_sample_ns, clock_ns) for variant in variants]
    ns = np.zeros((rounds, len(variants)))
    for round_index in range(rounds):
        for position in range(len(variants)):
            index = (position + round_index) % len(variants)
            repeat, count = variants[index].repeat, repeats[index]
            repeat(1)
            start = clock_ns()
            repeat(count)
            ns[round_index, index] = (clock_ns() - start) / count
    return Times(tuple(variant.name for variant in variants), ns)


def _repeats(variant: Variant, min_sample_ns: int, clock_ns: Callable[[], int]) -> int:
    """How many repetitions last for `min_sample_ns`; a first one, in which lazy runtimes prepare, does not count."""
    variant.repeat(1)
    count = 1
    while True:
        start = clock_ns()
        variant.repeat(count)
        elapsed_ns = clock_ns() - start
        if elapsed_ns * 2 >= min_sample_ns or count >= _MAX_REPEATS:
            return int(min(_MAX_REPEATS, max(1, -(-count * min_sample_ns // max(1, elapsed_ns)))))
        count *= 4
