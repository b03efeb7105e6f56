"""Fully connected layers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import KernelSpec, PruningScheme
from device_agent.native.layout import VECTOR, Tensor
from device_agent.native.library import GROUP_SIZES, Kind, Step
from device_agent.native.packing import dense_blocks, entry_counts, group_rows
from device_agent.native.placement import Placement
from device_agent.native.steps.common import Emitter, Way, Ways, bounded, grouped_way, set_input, set_output
from device_agent.native.weights import Weights

FloatArray = NDArray[np.float32]


#: By group size, the part of the weights above which a fully connected layer is read as a whole: indices would cost
#: more than they save. Fixed and not tuned, because the form has an effect on rounding.
_DENSE_MATVEC_DENSITY = {4: 0.5, 2: 0.25, 1: 0.15}


def emit_matvec(
    kernel: KernelSpec,
    weights: Weights,
    bias: FloatArray,
    source: Tensor,
    residual: Tensor | None,
    output: Tensor,
) -> Emitter:
    def emit(placement: Placement) -> Ways:
        common = bounded(
            Step(channels=weights.num_columns, outputs=weights.num_rows, bias=placement.constant(bias)),
            kernel.activation,
        )
        set_input(common, placement, source)
        set_output(common, placement, output)
        if residual is not None:
            common.second = placement.address(residual)
        # The grouping follows from the weights alone: here, unlike in convolutions, it has an effect on rounding.
        size = _group_size(kernel, weights)
        stored = _num_stored(kernel, weights, size)
        if stored > _DENSE_MATVEC_DENSITY[size] * weights.num_rows * weights.num_columns:
            common.kind = Kind.DENSE_MATVEC
            common.weights = placement.keep(dense_blocks(weights, VECTOR))
            return (Way(steps=(common,)),)
        common.kind = Kind.SPARSE_MATVEC
        inputs = np.arange(weights.num_columns, dtype=np.int32)
        way = group_rows(weights, kernel.pruning.block_filters, size)
        return (grouped_way(common, way, inputs, placement),)

    return emit


def _group_size(kernel: KernelSpec, weights: Weights) -> int:
    """How many rows are read together. Rows that were pruned from blocks (BLOCK) leave zeros in groups of several."""
    sizes = [size for size in GROUP_SIZES if kernel.pruning.block_filters % size == 0]
    if kernel.pruning.scheme is not PruningScheme.BLOCK:
        return sizes[0]
    return min(sizes, key=lambda size: _num_stored(kernel, weights, size) / _DENSE_MATVEC_DENSITY[size])


def _num_stored(kernel: KernelSpec, weights: Weights, size: int) -> int:
    counts = entry_counts(weights, kernel.pruning.block_filters, size)
    return sum(n * int(count.sum()) for n, count in counts.items())
