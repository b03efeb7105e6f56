"""How a pruned layer's outputs change, for every choice of its own variables.

A layer y = W x becomes y' = W' x, where W' lacks input channels and weights. With batch norm, whose statistics are
recalibrated after pruning, each output channel o is brought back to its mean and variance: z = gain_o (y - mean) /
sigma_o becomes z' = gain_o (y' - mean') / sigma'_o (derived here for recalibrated batch norm; without it, W' - W is the
change of Optimal Brain Compression, arXiv 2208.11580, eq. 1). Either way what changes is linear in the inputs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import PruningScheme, WeightPruning
from search.pareto import FloatArray
from search.pruning.masks import mask_for
from search.reconstruction.moments import LayerMoments

#: Damping of the second moments before they are inverted, relative to the mean of their diagonal. inferred: as in the
#: released code of GPTQ (percdamp), by the authors of Optimal Brain Compression.
_DAMPING = 0.01

IndexArray = NDArray[np.int64]


def output_change(
    moments: LayerMoments, kept_inputs: IndexArray, pruning: WeightPruning, *, least_squares: bool = False
) -> FloatArray:
    """D (out, in * kh * kw) with z' - z = D (x - mean) for the outputs z after batch norm, if there is one.

    Args:
        moments: The layer.
        kept_inputs: Channels that are still there, ascending.
        pruning: What is done to the weights that read them. The mask is taken over all outputs, as which of them are
            there changes it little.
        least_squares: Whether the weights that stay are adapted to make up for the others.
    """
    weight = moments.weight
    out = len(weight)
    kept = np.zeros(weight.shape, dtype=np.bool_)
    if pruning.scheme is PruningScheme.DENSE:
        kept[:, kept_inputs] = True
    else:
        kept[:, kept_inputs] = mask_for(weight[:, kept_inputs], pruning)
    flat, mask = weight.reshape(out, -1), kept.reshape(out, -1)
    pruned: FloatArray = _reconstructed(flat, mask, moments.root) if least_squares else np.where(mask, flat, 0.0)
    if moments.gain is None:
        return pruned - flat
    return moments.gain[:, None] * (_normalised(pruned, moments.root) - _normalised(flat, moments.root))


def _normalised(flat: FloatArray, root: FloatArray) -> FloatArray:
    """The weights (out, d) divided by the standard deviations of what they make; 0 where that is constant."""
    sigmas = np.sqrt(np.square(flat @ root.T).sum(axis=1))[:, None]
    normalised: FloatArray = np.divide(flat, sigmas, out=np.zeros_like(flat), where=sigmas > 0)
    return normalised


def _reconstructed(flat: FloatArray, mask: NDArray[np.bool_], root: FloatArray) -> FloatArray:
    """The weights under `mask` (out, d) that minimise ||root (w' - w)||^2 for each row; zero elsewhere.

    The closed form of removing a set of weights at once (arXiv 2208.11580, eq. 3 and its group form), as normal
    equations H_kk w'_k = (H w)_k, damped towards w.
    """
    hessian = root.T @ root
    damping = _DAMPING * float(np.diag(hessian).mean())
    damped = hessian + damping * np.eye(len(hessian))
    targets = flat @ damped
    result = np.zeros_like(flat)
    # Rows that share a mask share a factorisation.
    patterns, row_of = np.unique(mask, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        rows, columns = np.flatnonzero(row_of.ravel() == number), np.flatnonzero(pattern)
        if len(columns):
            solved = np.linalg.solve(damped[np.ix_(columns, columns)], targets[np.ix_(rows, columns)].T)
            result[np.ix_(rows, columns)] = solved.T
    return result
