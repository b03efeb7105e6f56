"""A cheap guess of one objective from the candidates seen so far: a sum of smooth functions, one for each variable.

Losses of pruned networks are nearly additive over layers (JCW's own toy and the knapsack methods, HALP arXiv 2110.10811
and SPDY arXiv 2201.13096, rest on it). The guess is a Gaussian process with an additive kernel (D. Duvenaud,
H. Nickisch, C. E. Rasmussen: Additive Gaussian Processes, NIPS 2011, first order), solved as ridge regression on the
choices, as these are few. One more function, of the mean place of all ordered variables, takes what a sum cannot say:
networks that are pruned everywhere lose more than the sum of their layers.
"""

from __future__ import annotations

import functools

import numpy as np

from search.algorithms.threads import one_thread
from search.domain.space import SearchSpace, VariableKind
from search.pareto import FloatArray, IntArray

#: How far a function of a variable carries over to neighbouring choices, as part of the variable's range.
_LENGTH_SCALE = 0.5
#: Knots of the function of the mean place.
_MEAN_KNOTS = 7
#: Smooth functions of few choices have few degrees of freedom: others are left out.
_TINY_EIGENVALUE = 1e-4
#: Noise variances that are tried, relative to the variance of one variable's function.
_RELATIVE_NOISE = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


class AdditiveSurrogate:
    """Predicts an objective for genomes of one space. `fit` replaces what was learnt before."""

    def __init__(self, space: SearchSpace, *, with_mean: bool = True) -> None:
        """Without `with_mean`, a sum of functions of single variables and nothing else."""
        self._num_choices = np.array(space.num_choices, dtype=np.int64)
        self._offsets = np.concatenate(([0], np.cumsum(self._num_choices)))
        ordered = np.array([v.kind is not VariableKind.SCHEME for v in space.variables])
        self._ordered = ordered & (self._num_choices > 1) & with_mean
        self._maps = [_feature_map(int(n), bool(o)) for n, o in zip(self._num_choices, ordered, strict=True)]
        #: Where the features of each variable begin.
        self._starts = np.concatenate(([0], np.cumsum([m.shape[1] for m in self._maps])))
        self._mean_map = _feature_map(_MEAN_KNOTS, True)
        self._weights: FloatArray = np.zeros(0)
        self._centre = 0.0
        #: Features of the last fit, with the eigenvalues and eigenvectors of their Gram matrix.
        self._decomposed: tuple[FloatArray, FloatArray, FloatArray] = (np.zeros((0, 0)), np.zeros(0), np.zeros((0, 0)))

    @property
    def is_fitted(self) -> bool:
        return self._weights.size > 0

    def fit(self, genomes: IntArray, values: FloatArray, *, weights: FloatArray | None = None) -> None:
        """Learn `values` (n,), all finite, of `genomes` (n, v), n >= 2. The noise is chosen by generalised
        cross-validation (G. H. Golub, M. Heath, G. Wahba, Technometrics 21(2), 1979).

        With `weights` (n,), each row's error counts times its weight, and `values` are differences from a prior guess:
        what nothing is known about is 0, instead of the mean.
        """
        with one_thread():
            features = self._features(genomes)
            if weights is None:
                self._centre = float(values.mean())
                self._fit(features, values - self._centre)
            else:
                self._centre = 0.0
                scale = weights / weights.mean()
                self._fit(features * scale[:, None], values * scale)

    def refit(self, values: FloatArray) -> None:
        """Learn other `values` (n,) of the genomes of the last `fit`, without weights; most of its work is done."""
        self._centre = float(values.mean())
        with one_thread():
            self._solve(values - self._centre)

    def _fit(self, features: FloatArray, target: FloatArray) -> None:
        # Eigenvectors of the smaller Gram matrix serve all noise levels at once.
        if len(features) < features.shape[1]:
            eigenvalues, left = np.linalg.eigh(features @ features.T)
            kept = eigenvalues > np.finfo(np.float64).eps * len(features) * eigenvalues[-1]
            eigenvalues = eigenvalues[kept]
            vectors = features.T @ (left[:, kept] / np.sqrt(eigenvalues))
        else:
            eigenvalues, vectors = np.linalg.eigh(features.T @ features)
            eigenvalues = np.maximum(eigenvalues, 0.0)
        self._decomposed = (features, eigenvalues, vectors)
        self._solve(target)

    def _solve(self, target: FloatArray) -> None:
        features, eigenvalues, vectors = self._decomposed
        count = len(target)
        projected = vectors.T @ (features.T @ target)
        total = float(target @ target)
        best = np.inf
        for noise in _RELATIVE_NOISE:
            shrunk = projected / (eigenvalues + noise)
            # |y - Xw|^2 without forming Xw.
            residual = total - 2 * float(projected @ shrunk) + float((eigenvalues * shrunk) @ shrunk)
            freedom = float((eigenvalues / (eigenvalues + noise)).sum())
            score = max(residual, 0.0) / max(count - freedom, 1e-9) ** 2
            if score < best:
                best = score
                self._weights = vectors @ shrunk

    def predict(self, genomes: IntArray) -> FloatArray:
        """The guesses (n,) for `genomes` (n, v)."""
        # The weights of a variable's features make a table over its choices; predicting is looking up.
        table = np.concatenate(self.tables())
        guessed: FloatArray = table[genomes + self._offsets[:-1]].sum(axis=1)
        return guessed + self._mean_features(genomes) @ self._weights[self._starts[-1] :] + self._centre

    def tables(self) -> list[FloatArray]:
        """What each variable's choices add, (choices,) each, without what the mean place and the centre add."""
        parts = zip(self._maps, self._starts[:-1], self._starts[1:], strict=True)
        return [m @ self._weights[a:b] for m, a, b in parts]

    def _features(self, genomes: IntArray) -> FloatArray:
        single = np.concatenate([m[genomes[:, v]] for v, m in enumerate(self._maps)], axis=1)
        return np.concatenate((single, self._mean_features(genomes)), axis=1)

    def _mean_features(self, genomes: IntArray) -> FloatArray:
        """Linear interpolation between the knots at the mean place of each genome."""
        if not self._ordered.any():
            return np.zeros((len(genomes), self._mean_map.shape[1]))
        place = (genomes[:, self._ordered] / (self._num_choices[self._ordered] - 1)).mean(axis=1) * (_MEAN_KNOTS - 1)
        low = np.minimum(place.astype(np.int64), _MEAN_KNOTS - 2)
        part = (place - low)[:, None]
        # As weighty as all single functions together.
        scale = np.sqrt(len(self._num_choices))
        mixed: FloatArray = scale * ((1 - part) * self._mean_map[low] + part * self._mean_map[low + 1])
        return mixed


@functools.cache
def _feature_map(num_choices: int, ordered: bool) -> FloatArray:
    """Features (choices, k) of each choice, whose inner products are the prior covariances, but for what is tiny."""
    if not ordered or num_choices == 1:
        return np.eye(num_choices)
    place = np.linspace(0.0, 1.0, num_choices)
    covariance = np.exp(-0.5 * ((place[:, None] - place) / _LENGTH_SCALE) ** 2)
    values, vectors = np.linalg.eigh(covariance)
    kept = values > _TINY_EIGENVALUE * values[-1]
    features: FloatArray = vectors[:, kept] * np.sqrt(values[kept])
    return features
