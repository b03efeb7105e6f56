"""Estimated errors of candidates as sums of tables, corrected by the losses that candidates truly had.

With error estimates of layers (`search.reconstruction`), the loss is taken as a growing function of a sum:
loss = floor + exp(a) * (sum_l s_l sum_k t_k E_lk + sum_v r_v)^b. The exponent takes what all layers have in common
(losses saturate), the weights s_l what a layer's estimate is wrong by as a whole, and t_k what the estimates of one way
of pruning (whole channels, one scheme of zeros) are wrong by in all layers: errors of ways that differ do not compare
as they are. All come from the evaluated candidates, in turns; the weights by ridge regression towards 1 on relative
errors, none negative. What is left is the residual error: one smooth function r_v for each variable
(`surrogate.AdditiveSurrogate`), whose prior is nothing, learnt on relative errors as well. As the function grows,
whatever minimises the sum minimises the loss.

Without estimates, the sum is learnt: one smooth function for each variable (`surrogate.AdditiveSurrogate`) on the loss
or on its logarithm, whichever ranks held-out candidates better.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

from search.algorithms.factors import Factor
from search.algorithms.surrogate import AdditiveSurrogate
from search.domain.space import SearchSpace, VariableKind
from search.pareto import FloatArray, IntArray

#: With fewer evaluated candidates nothing is corrected, and nothing learnt.
MIN_TOLD = 8
#: Relative noise of a candidate's error around the weighted sum, and by how much weights stray from 1.
_RELATIVE_NOISE = 0.2
_WEIGHT_SIGMA = 0.5
#: The same for ways of pruning: a few weights, of which all candidates tell.
_WAY_SIGMA = 1.0
_ROUNDS = 3
_FOLDS = 4
_MOST_JUDGED = 192
#: Losses closer to the floor than this part of their range count as that far from it.
_FLOOR_PART = 0.01
#: Relative errors of sums below this part of the median one count as if they were that large.
_LEAST_TARGET = 0.1


class ErrorModel:
    """`factors` after each `fit`. Needs no fit where estimates were given."""

    def __init__(self, space: SearchSpace, estimates: Sequence[Factor] = ()) -> None:
        self._space = space
        self._estimates = tuple(f for f in estimates if f.variables and np.any(f.values != 0))
        self._parts = [_parts_by_way(space, factor) for factor in self._estimates]
        self._ways = list(dict.fromkeys(way for parts in self._parts for way in parts))
        self.weights: FloatArray = np.ones(len(self._estimates))
        self.way_weights: FloatArray = np.ones(len(self._ways))
        #: Without estimates the sum itself, else what corrects it.
        self._learnt: tuple[Factor, ...] = ()

    @property
    def has_estimates(self) -> bool:
        return bool(self._estimates)

    @property
    def is_ready(self) -> bool:
        return self.has_estimates or bool(self._learnt)

    def factors(self, rng: np.random.Generator | None = None, strength: float = 1.0) -> tuple[Factor, ...]:
        """The tables as they are believed; with `rng`, the weight of each one is drawn around its own. Corrections of
        estimates are not drawn: they are learnt where candidates were."""
        tables = self._weighted_estimates() if self.has_estimates else self._learnt
        corrections = self._learnt if self.has_estimates else ()
        if rng is not None:
            drawn = np.exp(strength * rng.standard_normal(len(tables)))
            tables = tuple(
                Factor(variables=f.variables, values=w * f.values) for w, f in zip(drawn, tables, strict=True)
            )
        return (*tables, *corrections)

    def fit(self, genomes: IntArray, losses: FloatArray) -> None:
        """Learn from the losses (n,), all finite, of `genomes` (n, v). With fewer than `MIN_TOLD`, nothing."""
        if len(genomes) < MIN_TOLD:
            return
        if not self.has_estimates:
            self._learnt = _learnt_tables(self._space, genomes, losses)
            return
        shares = self._shares(genomes)
        self.weights, self.way_weights, target = _weights(shares, losses)
        total = shares @ self.way_weights @ self.weights
        self._learnt = () if target is None else _residual_tables(self._space, genomes, total, target)

    def _weighted_estimates(self) -> tuple[Factor, ...]:
        of_way = dict(zip(self._ways, self.way_weights, strict=True))
        return tuple(
            Factor(variables=f.variables, values=weight * sum(of_way[way] * values for way, values in parts.items()))
            for weight, f, parts in zip(self.weights, self._estimates, self._parts, strict=True)
        )

    def _shares(self, genomes: IntArray) -> FloatArray:
        """What each layer and each way of pruning has in the errors of `genomes`: (n, factors, ways)."""
        shares = np.zeros((len(genomes), len(self._estimates), len(self._ways)))
        for index, (factor, parts) in enumerate(zip(self._estimates, self._parts, strict=True)):
            places = tuple(genomes[:, v] for v in factor.variables)
            for way, values in parts.items():
                shares[:, index, self._ways.index(way)] = values[places]
        return shares


def _parts_by_way(space: SearchSpace, factor: Factor) -> dict[str, FloatArray]:
    """The table as a sum of tables of its shape: what the widths alone err, and what each scheme of zeros adds."""
    variables = [space.variables[v] for v in factor.variables]
    kinds = [v.kind for v in variables]
    if VariableKind.DENSITY not in kinds:
        return {kinds[0].value: factor.values}
    unpruned = [slice(None)] * len(kinds)
    for axis, position in enumerate(factor.variables):
        if kinds[axis] in (VariableKind.DENSITY, VariableKind.SCHEME):
            unpruned[axis] = slice(space.unpruned[position], space.unpruned[position] + 1)
    widths = np.broadcast_to(factor.values[tuple(unpruned)], factor.values.shape)
    zeros = factor.values - widths
    parts = {VariableKind.CHANNELS.value: widths}
    if VariableKind.SCHEME not in kinds:
        parts[VariableKind.DENSITY.value] = zeros
    else:
        axis = kinds.index(VariableKind.SCHEME)
        shape = [-1 if a == axis else 1 for a in range(len(kinds))]
        for index, choice in enumerate(variables[axis].choices):
            is_chosen = (np.arange(len(variables[axis].choices)) == index).reshape(shape)
            parts[str(choice)] = np.where(is_chosen, zeros, 0.0)
    return {way: values for way, values in parts.items() if np.any(values != 0)}


def _above_floor(losses: FloatArray) -> FloatArray:
    """Losses above the smallest one, positive."""
    extent = float(losses.max() - losses.min())
    floor = float(losses.min()) - _FLOOR_PART * max(extent, np.finfo(np.float64).tiny)
    return losses - floor


def _weights(shares: FloatArray, losses: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    """The weights (factors,) and (ways,) of the error shares (n, factors, ways), and the sums (n,) that the losses ask
    for. None where the estimates say nothing about these candidates: better not to bend them.
    """
    weights, ways = np.ones(shares.shape[1]), np.ones(shares.shape[2])
    height = np.log(_above_floor(losses))
    target = None
    for _ in range(_ROUNDS):
        total = shares @ ways @ weights
        positive = total > 0
        if positive.sum() < MIN_TOLD or np.ptp(np.log(total[positive])) <= 0:
            break
        exponent, constant = np.polyfit(np.log(total[positive]), height[positive], 1)
        if exponent <= 0:
            return np.ones_like(weights), np.ones_like(ways), None
        target = np.exp(np.clip((height - constant) / exponent, *np.log(_range_of(total[positive]))))
        if len(ways) > 1:
            ways = _ridge_towards_one(np.einsum("nfw,f->nw", shares, weights), target, _WAY_SIGMA)
        weights = _ridge_towards_one(shares @ ways, target, _WEIGHT_SIGMA)
    return weights, ways, target


def _ridge_towards_one(columns: FloatArray, target: FloatArray, sigma: float) -> FloatArray:
    """Weights (k,), none negative, with which `columns` (n, k) meet `target` (n,) up to its relative noise; their prior
    is 1 +- sigma."""
    scale = 1.0 / (_RELATIVE_NOISE * target)
    count = columns.shape[1]
    rows = np.vstack((columns * scale[:, None], np.eye(count) / sigma))
    found, _ = nnls(rows, np.concatenate((target * scale, np.full(count, 1.0 / sigma))))
    weights: FloatArray = found
    return weights


def _residual_tables(
    space: SearchSpace, genomes: IntArray, total: FloatArray, target: FloatArray
) -> tuple[Factor, ...]:
    """What the sums (n,) miss of their targets, as tables of single variables, from relative errors."""
    model = AdditiveSurrogate(space, with_mean=False)
    model.fit(genomes, target - total, weights=1.0 / np.maximum(target, _LEAST_TARGET * np.median(target)))
    return tuple(Factor(variables=(v,), values=table) for v, table in enumerate(model.tables()))


def _range_of(total: FloatArray) -> FloatArray:
    """Targets stay within reach of the sums that were seen."""
    return np.array([0.5 * total.min(), 2.0 * total.max()])


def _learnt_tables(space: SearchSpace, genomes: IntArray, losses: FloatArray) -> tuple[Factor, ...]:
    heights = [losses, np.log(_above_floor(losses))]
    # The latest are the most alike those to come; more of them would take most of a search's own time.
    latest = slice(-_MOST_JUDGED, None)
    correlations = _held_out_rank_correlations(space, genomes[latest], [values[latest] for values in heights])
    target = heights[int(np.argmax(correlations))]
    model = AdditiveSurrogate(space, with_mean=False)
    model.fit(genomes, target)
    return tuple(Factor(variables=(v,), values=table - table.min()) for v, table in enumerate(model.tables()))


def _held_out_rank_correlations(space: SearchSpace, genomes: IntArray, heights: Sequence[FloatArray]) -> list[float]:
    """For each of `heights` (n,), how well sums that were learnt from some genomes rank the others."""
    guessed = np.zeros((len(heights), len(genomes)))
    fold_of = np.arange(len(genomes)) % _FOLDS
    model = AdditiveSurrogate(space, with_mean=False)
    for fold in range(_FOLDS):
        learnt, held_out = fold_of != fold, fold_of == fold
        for row, values in enumerate(heights):
            if row == 0:
                model.fit(genomes[learnt], values[learnt])
            else:
                model.refit(values[learnt])
            guessed[row, held_out] = model.predict(genomes[held_out])
    return [_rank_correlation(guess, values) for guess, values in zip(guessed, heights, strict=True)]


def _rank_correlation(one: FloatArray, other: FloatArray) -> float:
    ranks = [np.argsort(np.argsort(v, kind="stable"), kind="stable") for v in (one, other)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
