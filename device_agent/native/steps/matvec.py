"""Fully connected layers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import KernelSpec
from device_agent.native.layout import VECTOR, Tensor
from device_agent.native.library import GROUP_SIZES, Kind, Step
from device_agent.native.packing import dense_blocks, group_rows
from device_agent.native.placement import Placement
from device_agent.native.steps.common import Emitter, Way, Ways, bounded, grouped_way, set_input, set_output

FloatArray = NDArray[np.float32]


#: By group size, the part of the weights above which a fully connected layer is read as a whole: indices would cost
#: more than they save. Fixed and not tuned, because the form has an effect on rounding.
_DENSE_MATVEC_DENSITY = {4: 0.5, 2: 0.25, 1: 0.15}


def emit_matvec(
    kernel: KernelSpec,
    rows: FloatArray,
    bias: FloatArray,
    source: Tensor,
    residual: Tensor | None,
    output: Tensor,
) -> Emitter:
    def emit(placement: Placement) -> Ways:
        common = bounded(
            Step(channels=rows.shape[1], outputs=rows.shape[0], bias=placement.constant(bias)), kernel.activation
        )
        set_input(common, placement, source)
        set_output(common, placement, output)
        if residual is not None:
            common.second = placement.address(residual)
        # The grouping follows from the weights alone: here, unlike in convolutions, it has an effect on rounding.
        size = next(size for size in GROUP_SIZES if kernel.pruning.block_filters % size == 0)
        way = group_rows(rows, kernel.pruning.block_filters, size)
        if sum(groups.values.size for groups in way) > _DENSE_MATVEC_DENSITY[size] * rows.size:
            common.kind = Kind.DENSE_MATVEC
            common.weights = placement.constant(dense_blocks(rows, VECTOR))
            return (Way(steps=(common,)),)
        common.kind = Kind.SPARSE_MATVEC
        inputs = np.arange(rows.shape[1], dtype=np.int32)
        return (grouped_way(common, way, inputs, placement),)

    return emit
