"""The card of a latency model: how far its predictions can be trusted, for people to read beside the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from search.latency.families import KernelFamily
from search.latency.network import Correction
from search.latency.predictor import HeldOut


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSummary:
    """Relative errors of predictions against measurements. `spearman` is None with fewer than three or without spread.

    The kernels' figures are held out: each knot between two others, predicted from them; of a model, each measured
    kernel predicted from the others.
    """

    count: int
    median: float
    p95: float
    within_5_percent: float
    within_10_percent: float
    rmspe: float
    spearman: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """`kernels` is None where no knot lies between others; `families` has those that have such knots, by their text."""

    num_kernels: int
    num_families: int
    kernels: ErrorSummary | None
    families: dict[str, ErrorSummary]
    correction: Correction


def model_card(
    held_out: Mapping[KernelFamily, Sequence[HeldOut]], correction: Correction, num_kernels: int
) -> ModelCard:
    """The card of a model fitted on a table of `num_kernels` kernels, of which `held_out` has each family's."""
    pooled = [item for items in held_out.values() for item in items]
    return ModelCard(
        num_kernels=num_kernels,
        num_families=len(held_out),
        kernels=_summary_of(pooled) if pooled else None,
        families={str(family): _summary_of(items) for family, items in held_out.items() if items},
        correction=correction,
    )


def summarise_errors(measured: Sequence[float], predicted: Sequence[float]) -> ErrorSummary:
    """The errors of `predicted` against `measured`, both (n,) with n >= 1, in any one unit."""
    if not measured or len(measured) != len(predicted):
        raise ValueError(f"{len(measured)} measured and {len(predicted)} predicted values: need as many, at least one")
    true, guess = np.asarray(measured, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    errors = np.abs(guess / true - 1.0)
    return ErrorSummary(
        count=len(errors),
        median=float(np.median(errors)),
        p95=float(np.percentile(errors, 95)),
        within_5_percent=float(np.mean(errors <= 0.05)),
        within_10_percent=float(np.mean(errors <= 0.10)),
        rmspe=float(np.sqrt(np.mean(errors**2))),
        spearman=_spearman(true, guess),
    )


def _summary_of(items: Sequence[HeldOut]) -> ErrorSummary:
    return summarise_errors([i.measured_ns for i in items], [i.predicted_ns for i in items])


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    from scipy.stats import spearmanr  # takes a while to import: the server shows cards and makes none

    return float(spearmanr(a, b).statistic)
