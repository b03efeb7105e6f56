"""Which weights of a layer stay, for each pruning scheme: the blocks with the largest L2 norm per weight.

The geometry of blocks and the number that is kept are those of `device_agent.synthesis`, so a pruned network has the
same structure as the synthetic kernels whose latency was measured.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import ContractError, PruningScheme, WeightPruning
from device_agent.synthesis import block_based_mask, expand_blocks, num_kept_blocks, sum_blocks

FloatArray = NDArray[np.floating]
BoolArray = NDArray[np.bool_]

#: Patterns that one layer may use, as in PatDNN (arXiv 2001.00138).
PATTERN_LIBRARY_SIZE = 8

_CENTRE = 4


def mask_for(weight: FloatArray, pruning: WeightPruning) -> BoolArray:
    """True where a weight stays. Equal norms are decided by position, the earlier first.

    UNSTRUCTURED, GROUP and BLOCK_PUNCHED rank blocks of kernel positions (JCW, arXiv 2110.08013, ranks 4 x 1 groups by
    norm; YOLObile, arXiv 2009.05697, blocks). PATTERN first gives every run of `block_filters` filters, for each input
    channel, the pattern of the layer's library that retains the most, and then ranks whole kernels by what they retain.
    BLOCK removes columns and rows of blocks of a fully connected layer (`device_agent.synthesis.block_based_mask`).

    Args:
        weight: (out, in, kh, kw); of a fully connected layer (out, in, 1, 1).
        pruning: The scheme and its density; the number of kept blocks is exact.

    Raises:
        ContractError: The weights are not four-dimensional, or a pattern meets kernels that are not 3x3.
    """
    if weight.ndim != 4:
        raise ContractError(f"a mask needs weights of shape (out, in, kh, kw), not {weight.shape}")
    if pruning.scheme is PruningScheme.DENSE:
        return np.ones(weight.shape, dtype=np.bool_)
    shape = (weight.shape[0], weight.shape[1], weight.shape[2], weight.shape[3])
    if pruning.scheme is PruningScheme.BLOCK:
        if shape[2:] != (1, 1):
            raise ContractError(f"block-based pruning is for fully connected layers, not {shape[2]}x{shape[3]} kernels")
        return block_based_mask(np.square(weight, dtype=np.float64), pruning)
    # Per weight: a smaller block at the edge would lose against the others by its size alone, and more weights than the
    # density says would stay.
    sizes = sum_blocks(np.ones(shape), pruning)
    energy = sum_blocks(np.square(weight, dtype=np.float64), pruning) / sizes
    if pruning.scheme is PruningScheme.PATTERN:
        if shape[2:] != (3, 3):
            raise ContractError(f"patterns are defined on 3x3 kernels, not {shape[2]}x{shape[3]}")
        patterns = _best_patterns(energy, pattern_library(energy, pruning.pattern_entries))
        retained = np.where(patterns, energy, 0.0).sum(axis=(2, 3), keepdims=True)
        blocks = patterns & _largest(retained, num_kept_blocks(pruning, retained.size))
    else:
        blocks = _largest(energy, num_kept_blocks(pruning, energy.size))
    return expand_blocks(blocks, pruning, shape)


def pattern_library(energy: NDArray[np.float64], entries: int) -> BoolArray:
    """The patterns that a layer's kernels ask for most, (at most 8, 3, 3).

    A kernel asks for its centre and its largest other entries, as in PatDNN; equal counts are decided by position.

    Args:
        energy: Squared weights of each kernel, (..., 3, 3).
        entries: Entries of a pattern, 1 to 9.
    """
    ranked = energy.reshape(-1, 9).copy()
    ranked[:, _CENTRE] = np.inf
    order = np.argsort(-ranked, axis=1, kind="stable")[:, :entries]
    wanted = np.zeros(ranked.shape, dtype=np.bool_)
    np.put_along_axis(wanted, order, True, axis=1)
    distinct, counts = np.unique(wanted, axis=0, return_counts=True)
    frequent = np.argsort(-counts, kind="stable")[:PATTERN_LIBRARY_SIZE]
    return distinct[frequent].reshape(-1, 3, 3)


def _best_patterns(energy: NDArray[np.float64], library: BoolArray) -> BoolArray:
    """For each kernel of (o, i, 3, 3) the pattern that retains the most energy."""
    retained = np.einsum("oihw,phw->oip", energy, library)
    best: BoolArray = library[np.argmax(retained, axis=2)]
    return best


def _largest(scores: NDArray[np.float64], count: int) -> BoolArray:
    chosen = np.zeros(scores.size, dtype=np.bool_)
    chosen[np.argsort(-scores.reshape(-1), kind="stable")[:count]] = True
    return chosen.reshape(scores.shape)
