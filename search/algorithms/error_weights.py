"""How much of a loss each layer and each way of pruning is to blame for: weights of estimated errors, from true losses.

The loss is taken as a growing, saturating function of the weighted sum of errors,

    loss = floor + height * z / (1 + z),  log z = a + b log(sum_l s_l sum_k t_k E_lk),

as a network that guesses cannot get much worse. Layers' weights s_l and those of ways t_k are positive with log-normal
priors around 1; weights, a and b are found together by Gauss-Newton (the maximum a posteriori of normal errors of the
logarithm of the loss above its floor). What saturates has no slope, and so no say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from search.algorithms.threads import one_thread
from search.pareto import FloatArray

#: Standard deviations: of the logarithm of a loss above its floor around what the sum says, and of the logarithms of
#: the weights around 0.
_NOISE = 0.25
_LAYER_SIGMA = 0.5
_WAY_SIGMA = 0.7
#: The exponent's logarithm: most likely between a third and three.
_EXPONENT_SIGMA = 0.5
#: Losses closer to the floor than this part of their range count as that far from it, and the height is as much above
#: the largest.
_FLOOR_PART = 0.01
_HEADROOM = 0.1
#: Sums below this part of the median one count as that large.
_LEAST_SUM = 1e-3
_MAX_EVALUATIONS = 50


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ErrorWeights:
    """`layers` (l,) and `ways` (k,), all positive; `targets` (n,) are the weighted sums that would explain the losses
    they were fitted to, and `trust` (n,) in (0, 1] how much each says.
    """

    layers: FloatArray
    ways: FloatArray
    targets: FloatArray
    trust: FloatArray


def above_floor(losses: FloatArray) -> FloatArray:
    """Losses (n,) above a floor a little below the smallest one: all positive."""
    extent = max(float(np.ptp(losses)), np.finfo(np.float64).tiny)
    heights: FloatArray = losses - losses.min() + _FLOOR_PART * extent
    return heights


def fit_weights(shares: FloatArray, losses: FloatArray) -> ErrorWeights | None:
    """The weights of the error shares (n, l, k) that explain `losses` (n,), all finite.

    None where the estimates say nothing about these candidates: no two differ, or losses fall where errors grow.
    """
    extent = float(np.ptp(losses))
    sums = shares.sum(axis=(1, 2))
    if extent <= 0 or np.ptp(sums) <= 0:
        return None
    least = _LEAST_SUM * float(np.median(sums[sums > 0]))
    part = above_floor(losses) / (extent * (1 + _FLOOR_PART + _HEADROOM))
    height = np.log(part / (1 - part))
    trust = 1 - part
    num_layers, num_ways = shares.shape[1:]
    ends = (2, 2 + num_layers)

    def parts_of(x: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Layers' and ways' parts of the sums, and the sums."""
        weighted = shares * np.exp(x[ends[0] : ends[1]])[None, :, None] * np.exp(x[ends[1] :])[None, None, :]
        of_layers, of_ways = weighted.sum(axis=2), weighted.sum(axis=1)
        return of_layers, of_ways, np.maximum(of_layers.sum(axis=1), least)

    prior = np.concatenate(
        ([1 / _EXPONENT_SIGMA], np.full(num_layers, 1 / _LAYER_SIGMA), np.full(num_ways, 1 / _WAY_SIGMA))
    )

    def residuals(x: FloatArray) -> FloatArray:
        guessed = x[0] + np.exp(x[1]) * np.log(parts_of(x)[2])
        return np.concatenate(((guessed - height) * trust / _NOISE, prior * x[1:]))

    def slopes(x: FloatArray) -> FloatArray:
        of_layers, of_ways, total = parts_of(x)
        exponent = float(np.exp(x[1]))
        columns = np.column_stack(
            (
                np.ones(len(total)),
                exponent * np.log(total),
                exponent * of_layers / total[:, None],
                exponent * of_ways / total[:, None],
            )
        )
        return np.vstack((columns * (trust / _NOISE)[:, None], np.column_stack((np.zeros(len(prior)), np.diag(prior)))))

    with one_thread():
        found = least_squares(
            residuals, np.zeros(ends[1] + num_ways), slopes, method="trf", max_nfev=_MAX_EVALUATIONS
        ).x
    total = parts_of(found)[2]
    if np.corrcoef(np.log(total), height * trust)[0, 1] <= 0:
        return None
    exponent = float(np.exp(found[1]))
    return ErrorWeights(
        layers=np.exp(found[ends[0] : ends[1]]),
        ways=np.exp(found[ends[1] :]),
        targets=np.exp((height - found[0]) / exponent),
        trust=trust,
    )
