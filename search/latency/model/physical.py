"""The time of a kernel as a sum of amounts of work, each with a price that is never negative.

Prices are fitted for each mode of code and drawn towards those of all modes together, so that a mode with few
measurements, or none, is still predicted. Sums of growing amounts with prices of 0 or more grow: in this part of the
model, more channels or more weights are never cheaper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from search.latency.model.features import TERMS, WINOGRAD_SUFFIX, WINOGRAD_TERMS, FeatureTable
from search.pareto import FloatArray

#: How strongly the prices of a mode are drawn to those of all modes, in measurements that say so.
_SHRINKAGE = 0.3
#: Which algorithm a kernel ran is not told by its time: it is guessed from the prices, and they are fitted again.
_ROUNDS = 10
#: Far outliers (a kernel whose tuning went wrong) count less: Huber's constant on relative errors.
_HUBER = 0.15
#: How far sums of work are from the truth, relative: about what this part alone reaches.
_MISFIT = 0.1
_UNKNOWN_NS = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """ns for each unit of the terms: `common` (t,) of all modes together, and those of single modes."""

    common: FloatArray
    by_mode: Mapping[str, FloatArray]

    def times(self, terms: FloatArray, modes: Sequence[str]) -> FloatArray:
        """The times of n kernels in ns, from their terms (n, t), or (n, w) from those of w ways (n, w, t)."""
        prices = np.array([self.by_mode.get(mode, self.common) for mode in modes])
        times: FloatArray = np.einsum("n...t,nt->n...", terms, prices)
        return times


@dataclass(frozen=True, slots=True, kw_only=True)
class PhysicalModel:
    """Prices of both algorithms. `winograd` is None where none was measured that could be one."""

    direct: Prices
    winograd: Prices | None

    def times(self, table: FeatureTable) -> FloatArray:
        """The times of n kernels in ns (n,), all positive: runtimes take the faster of their algorithms."""
        direct, winograd = self.both(table)
        return np.asarray(np.maximum(np.minimum(direct.min(axis=1), winograd), 1.0))

    def weight_bytes(self, table: FeatureTable) -> FloatArray:
        """The bytes of weights that each of n kernels reads (n,): Winograd's algorithm has several times as many."""
        direct, _ = self.both(table)
        of_ways = table.ways[:, :, TERMS.index("weight_bytes")]
        of_best = of_ways[np.arange(len(table)), direct.argmin(axis=1)]
        of_winograd = table.winograd[:, WINOGRAD_TERMS.index("weight_bytes")]
        return np.asarray(np.where(self.runs_winograd(table), of_winograd, of_best))

    def runs_winograd(self, table: FeatureTable) -> np.ndarray:
        """Which of n kernels run Winograd's algorithm, by these prices (n,), bool."""
        direct, winograd = self.both(table)
        return np.asarray(winograd < direct.min(axis=1))

    def both(self, table: FeatureTable) -> tuple[FloatArray, FloatArray]:
        """The times of all ways (n, w), and of Winograd's algorithm (n,), infinite where it cannot be."""
        direct = self.direct.times(table.ways, _direct_modes(table))
        if self.winograd is None:
            return direct, np.full(len(table), np.inf)
        winograd = self.winograd.times(table.winograd, _winograd_modes(table))
        return direct, np.where(table.has_winograd, winograd, np.inf)


def fit_physical(table: FeatureTable, latencies_ns: FloatArray, own_noise: FloatArray) -> PhysicalModel:
    """Prices that minimise the relative errors of `latencies_ns` (n,), n >= 1, all positive.

    `own_noise` (n,) are the relative variances of the measurements: those that are worse than the model count less.
    """
    trust = 1.0 / (1.0 + own_noise / _MISFIT**2)
    by_winograd = table.has_winograd & np.array(["dense" in mode for mode in table.modes], dtype=bool)
    way = np.zeros(len(table), dtype=np.int64)
    for turn in range(_ROUNDS):
        direct = ~by_winograd
        model = PhysicalModel(
            direct=_fit(table.ways[np.arange(len(way)), way], _direct_modes(table), latencies_ns, trust, direct),
            winograd=_fit(table.winograd, _winograd_modes(table), latencies_ns, trust, by_winograd)
            if by_winograd.any()
            else None,
        )
        by_way, winograd = model.both(table)
        chosen_way, chosen = by_way.argmin(axis=1), by_winograd
        if np.array_equal(chosen_way, way) or turn >= _ROUNDS // 2:
            chosen = winograd < by_way.min(axis=1)
        if np.array_equal(chosen, by_winograd) and np.array_equal(chosen_way, way):
            break
        by_winograd, way = chosen, chosen_way
    return model


def _direct_modes(table: FeatureTable) -> list[str]:
    """Prices of products do not depend on whether another algorithm could be used: else they would learn its times.

    Dense kernels that could be Winograd's nearly always are, so direct ones are as good as never seen: theirs are the
    prices of blocks of zeros, which the same code computes.
    """
    dense, blocks = f" dense{WINOGRAD_SUFFIX}", " blocks"
    return [
        mode.removesuffix(dense) + blocks if mode.endswith(dense) else mode.removesuffix(WINOGRAD_SUFFIX)
        for mode in table.modes
    ]


def _winograd_modes(table: FeatureTable) -> list[str]:
    """The algorithm computes zeros too: one mode."""
    return [WINOGRAD_SUFFIX] * len(table)


def _fit(
    terms: FloatArray, modes: Sequence[str], latencies_ns: FloatArray, trust: FloatArray, which: np.ndarray
) -> Prices:
    """Prices from those measurements that `which` (n,) marks."""
    if not which.any():
        # Every kernel ran the other algorithm: nothing is known of this one, so it is never the faster.
        return Prices(common=np.full(terms.shape[1], _UNKNOWN_NS), by_mode={})
    relative, trust = (terms / latencies_ns[:, None])[which], trust[which]
    common = _non_negative(relative, trust, np.zeros(terms.shape[1]), 1e-9)
    of_rows = np.array(modes)[which]
    by_mode = {
        str(mode): _non_negative(relative[of_rows == mode], trust[of_rows == mode], common, _SHRINKAGE)
        for mode in sorted(set(of_rows))
    }
    return Prices(common=common, by_mode=by_mode)


def _non_negative(relative: FloatArray, trust: FloatArray, towards: FloatArray, strength: float) -> FloatArray:
    """Prices >= 0 with `relative` @ prices near 1 (relative errors), and near `towards`.

    Each price is drawn with the weight of what its term contributes, so that units do not matter.
    """
    scale = np.sqrt((relative**2).mean(axis=0))
    pull = np.sqrt(strength) * np.diag(scale)
    used = scale > 0
    weights = trust
    prices: FloatArray = np.where(used, 0.0, towards)
    for _ in range(3):
        root = np.sqrt(weights)[:, None]
        # Columns in units of their own scale: nnls is not invariant to it numerically.
        matrix = np.vstack((relative * root, pull))[:, used] / scale[used]
        target = np.concatenate((root[:, 0], pull @ towards))
        prices[used] = nnls(matrix, target)[0] / scale[used]
        errors = np.abs(relative @ prices - 1.0)
        weights = trust * np.minimum(1.0, _HUBER / np.maximum(errors, 1e-12))
    return prices
