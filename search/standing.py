"""How verified candidates stand to each other, as far as their measurements can tell.

Latency was measured with an interval, and accuracy is a share of a finite number of test images. A candidate that looks
worse than another may be as good, and one that looks better may not be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search.domain.result import Standing
from search.normal import SIGMAS_OF_95_PERCENT
from search.pareto import FloatArray, non_dominated_mask, tied_pairs, undominated_beyond_noise


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedFigures:
    """What was measured of a candidate; latencies in one unit. None where it was not, or without an interval."""

    candidate_id: str
    latency_ms: float | None
    latency_ci95_ms: tuple[float, float] | None
    accuracy: float | None
    accuracy_ci95: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`standing` is None where a figure or its interval is missing; `tied_with` are the candidates whose intervals
    overlap in latency and in accuracy.
    """

    standing: Standing | None
    tied_with: tuple[str, ...] = ()


def accuracy_ci95(accuracy: float, images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy that was found on `images` images: Wilson's score interval of a share, which
    holds near 0 and 1 and for few images, too (E. B. Wilson, Journal of the American Statistical Association 22, 1927).

    It is about other images of the same kind. All candidates are judged on the same ones, so differences between them
    are known better than these intervals say: ties are declared rather too often than too seldom.
    """
    if images < 1 or not 0.0 <= accuracy <= 1.0:
        raise ValueError(f"an accuracy of {accuracy!r} on {images!r} images is none")
    per_image = SIGMAS_OF_95_PERCENT**2 / images
    centre = (accuracy + per_image / 2.0) / (1.0 + per_image)
    half = math.sqrt(per_image * (accuracy * (1.0 - accuracy) + per_image / 4.0)) / (1.0 + per_image)
    # At 0 and 1 one end is exactly there, but for rounding.
    return (min(accuracy, max(0.0, centre - half)), max(accuracy, min(1.0, centre + half)))


def compare_verified(candidates: Sequence[VerifiedFigures]) -> tuple[Comparison, ...]:
    """How each candidate stands to the others in measured latency and accuracy."""
    if not candidates:
        return ()
    low, middle, high = np.array([_row(candidate) for candidate in candidates]).transpose(1, 0, 2)
    by_figures = non_dominated_mask(middle)
    by_intervals = undominated_beyond_noise(low, high)
    is_known = ~np.isnan(middle).any(axis=1)
    ties = tied_pairs(low, high)
    return tuple(
        Comparison(
            standing=_standing(by_figures[place], by_intervals[place]) if is_known[place] else None,
            tied_with=tuple(candidates[int(other)].candidate_id for other in np.flatnonzero(ties[place])),
        )
        for place in range(len(candidates))
    )


def _standing(by_figures: np.bool_, by_intervals: np.bool_) -> Standing:
    if by_figures:
        return Standing.FRONT
    return Standing.WITHIN_NOISE if by_intervals else Standing.DOMINATED


def _row(candidate: VerifiedFigures) -> FloatArray:
    """(latency, error) at the lower ends, as found, and at the upper ends; NaN where something is missing."""
    latency, accuracy = candidate.latency_ms, candidate.accuracy
    latency_ci95, interval = candidate.latency_ci95_ms, candidate.accuracy_ci95
    if latency is None or accuracy is None or latency_ci95 is None or interval is None:
        return np.full((3, 2), math.nan)
    errors = (1.0 - interval[1], 1.0 - accuracy, 1.0 - interval[0])
    return np.array(list(zip((latency_ci95[0], latency, latency_ci95[1]), errors, strict=True)))
