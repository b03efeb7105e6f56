"""Estimated errors of candidates as sums of tables, corrected by the losses that candidates truly had.

With error estimates of layers (`search.reconstruction`), evaluated candidates give each layer a weight for what its
estimate is wrong by as a whole, and each way of pruning (whole channels, each scheme of zeros) one for what its
estimates are wrong by in all layers (`error_weights`): errors of ways that differ do not compare as they are. What is
left is the residual error: one smooth function for each variable (`surrogate.AdditiveSurrogate`), whose prior is
nothing. It bends the tables by no more than a factor, so that no network is promised for free. As the loss grows with
the sum, whatever minimises the sum minimises the loss.

Without estimates, the sum is learnt: one smooth function for each variable (`surrogate.AdditiveSurrogate`) on the loss
or on its logarithm, whichever ranks held-out candidates better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.algorithms.error_weights import ErrorWeights, above_floor, fit_weights
from search.algorithms.factors import Factor, evaluate
from search.algorithms.surrogate import AdditiveSurrogate
from search.algorithms.told import MIN_TOLD
from search.domain.space import SearchSpace, VariableKind
from search.pareto import FloatArray, IntArray

#: What residual errors may make of a layer's table, at most: this factor more, or less.
_MOST_BENT = 1.5
_FOLDS = 4
_MOST_JUDGED = 192
#: Relative errors of sums below this part of the median one count as if they were that large.
_LEAST_TARGET = 0.1


class ErrorModel:
    """`factors` after each `fit`, which forgets earlier ones. Needs no fit where estimates were given."""

    def __init__(self, space: SearchSpace, estimates: Sequence[Factor] = ()) -> None:
        self._space = space
        self._estimates = tuple(f for f in estimates if f.variables and np.any(f.values != 0))
        self._parts = [_parts_by_way(space, factor) for factor in self._estimates]
        self._ways = list(dict.fromkeys(way for parts in self._parts for way in parts))
        self._forget()

    def _forget(self) -> None:
        self.weights: FloatArray = np.ones(len(self._estimates))
        self.way_weights: FloatArray = np.ones(len(self._ways))
        #: The tables as they are believed: estimates that are weighted and bent, or what was learnt without any.
        self._tables: tuple[Factor, ...] = self._estimates

    @property
    def has_estimates(self) -> bool:
        return bool(self._estimates)

    @property
    def is_ready(self) -> bool:
        return bool(self._tables)

    def factors(self, rng: np.random.Generator | None = None, strength: float = 1.0) -> tuple[Factor, ...]:
        """The tables as they are believed; with `rng`, the weight of each one is drawn around its own."""
        if rng is None:
            return self._tables
        drawn = np.exp(strength * rng.standard_normal(len(self._tables)))
        return tuple(
            Factor(variables=f.variables, values=w * f.values) for w, f in zip(drawn, self._tables, strict=True)
        )

    def fit(self, genomes: IntArray, losses: FloatArray) -> None:
        """Learn from the losses (n,), all finite, of `genomes` (n, v). With fewer than `MIN_TOLD`, nothing."""
        self._forget()
        if len(genomes) < MIN_TOLD:
            return
        if not self.has_estimates:
            self._tables = _learnt_tables(self._space, genomes, losses)
            return
        found = fit_weights(self._shares(genomes), losses)
        if found is None:
            return
        self.weights, self.way_weights = found.layers, found.ways
        self._tables = _bent(self._space, self._weighted_estimates(), genomes, found)

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
    # Zeros that happen to make up for missing channels are not believed.
    zeros = np.maximum(factor.values - widths, 0.0)
    parts = {VariableKind.CHANNELS.value: widths}
    if VariableKind.SCHEME not in kinds:
        parts[VariableKind.DENSITY.value] = zeros
    else:
        axis = kinds.index(VariableKind.SCHEME)
        places = np.arange(len(variables[axis].choices))
        for index, choice in enumerate(variables[axis].choices):
            parts[str(choice)] = np.where(_along(axis, places == index, zeros.ndim), zeros, 0.0)
    return {way: values for way, values in parts.items() if np.any(values != 0)}


def _bent(space: SearchSpace, tables: Sequence[Factor], genomes: IntArray, found: ErrorWeights) -> tuple[Factor, ...]:
    """`tables` with what their sums miss of their targets at `genomes` (n, v), as functions of single variables: each
    is taken by the table that depends on its variable most."""
    total = np.maximum(evaluate(tables, genomes), np.finfo(np.float64).tiny)
    target = np.clip(found.targets, total / _MOST_BENT, total * _MOST_BENT)
    model = AdditiveSurrogate(space, with_mean=False)
    model.fit(genomes, target - total, weights=found.trust / np.maximum(target, _LEAST_TARGET * np.median(target)))
    values = [f.values for f in tables]
    for variable, (change, unpruned) in enumerate(zip(model.tables(), space.unpruned, strict=True)):
        spans = [_span(f, variable) for f in tables]
        if not spans or max(spans) <= 0:
            continue
        taker = int(np.argmax(spans))
        axis = tables[taker].variables.index(variable)
        values[taker] = values[taker] + _along(axis, change - change[unpruned], values[taker].ndim)
    return tuple(
        Factor(variables=f.variables, values=np.clip(bent, f.values / _MOST_BENT, f.values * _MOST_BENT))
        for f, bent in zip(tables, values, strict=True)
    )


def _along(axis: int, row: NDArray[Any], ndim: int) -> NDArray[Any]:
    """`row` (n,) as an array of `ndim` axes that varies along one of them."""
    return row.reshape([-1 if a == axis else 1 for a in range(ndim)])


def _span(factor: Factor, variable: int) -> float:
    """How much the table changes along `variable`, on average; 0 where it does not depend on it."""
    if variable not in factor.variables:
        return 0.0
    return float(np.ptp(factor.values, axis=factor.variables.index(variable)).mean())


def _learnt_tables(space: SearchSpace, genomes: IntArray, losses: FloatArray) -> tuple[Factor, ...]:
    heights = [losses, np.log(above_floor(losses))]
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
