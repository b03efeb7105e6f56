"""The error of one pruned layer, in nats of loss, for every choice of its own variables.

A layer y = W x becomes y' = W' x, where W' lacks input channels and weights. With batch norm, whose statistics are
recalibrated after pruning, each output channel o is brought back to its mean and variance, so what remains of the error
is what correlation r_o with the original output is missing: E[(z' - z)^2] = 2 gain_o^2 (1 - r_o) (derived here for
recalibrated batch norm; without it, the plain ||W X - W' X||^2 of Optimal Brain Compression, arXiv 2208.11580, eq. 1).
The loss grows by half of the sum over outputs of that error times the Fisher information of the output.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def output_errors(
    moments: LayerMoments, kept_inputs: IndexArray, pruning: WeightPruning, *, least_squares: bool = False
) -> FloatArray:
    """The error of each output channel, (out,), in nats.

    Args:
        moments: The layer.
        kept_inputs: Channels that are still there, ascending.
        pruning: What is done to the weights that read them.
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
    pruned = _reconstructed(flat, mask, moments.root) if least_squares else np.where(mask, flat, 0.0)
    original, changed = flat @ moments.root.T, pruned @ moments.root.T
    if moments.gain is None:
        squared = np.square(changed - original).sum(axis=1)
    else:
        norms = np.sqrt(np.square(original).sum(axis=1) * np.square(changed).sum(axis=1))
        correlation = np.divide((original * changed).sum(axis=1), norms, out=np.zeros(out), where=norms > 0)
        # A channel that is constant anyway loses nothing.
        correlation[np.square(original).sum(axis=1) <= 0] = 1.0
        squared = 2.0 * np.square(moments.gain) * (1.0 - np.clip(correlation, -1.0, 1.0))
    errors: FloatArray = 0.5 * moments.sensitivity * squared
    return errors


def error_table(
    moments: LayerMoments,
    kept_inputs: Sequence[IndexArray],
    kept_outputs: Sequence[IndexArray],
    prunings: Sequence[WeightPruning],
    *,
    least_squares: bool = False,
) -> FloatArray:
    """Nats (inputs, outputs, prunings) that the layer adds, for each choice of channels and pruning.

    Channels of the output that are gone cost nothing here: whoever reads them counts them. The mask is taken over all
    outputs, as which of them are there changes it little.
    """
    table = np.zeros((len(kept_inputs), len(kept_outputs), len(prunings)))
    for i, inputs in enumerate(kept_inputs):
        for p, pruning in enumerate(prunings):
            errors = output_errors(moments, inputs, pruning, least_squares=least_squares)
            table[i, :, p] = [errors[outputs].sum() for outputs in kept_outputs]
    return table


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
