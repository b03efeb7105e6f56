"""Convolutions as row groups of non-zero columns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import KernelSpec
from device_agent.native.errors import UnsupportedKernelError
from device_agent.native.layout import PhaseTensor, Tensor, phase_of
from device_agent.native.library import Kind, Step
from device_agent.native.packing import RowGroups
from device_agent.native.placement import Placement
from device_agent.native.steps.common import Emitter, Ways, bounded, grouped_way, set_input, set_output

FloatArray = NDArray[np.float32]


def emit_conv(
    kernel: KernelSpec,
    ways: list[list[RowGroups]],
    bias: FloatArray,
    source: Tensor,
    residual: Tensor | None,
    target: Tensor,
) -> Emitter:
    def emit(placement: Placement) -> Ways:
        offsets = _tap_offsets(kernel, source)
        common = bounded(Step(kind=Kind.CONV, bias=placement.constant(bias)), kernel.activation)
        set_input(common, placement, source)
        layout = set_output(common, placement, target)
        common.positions, common.mask = layout.positions, placement.mask(layout)
        if residual is not None:
            common.second, common.second_plane = placement.address(residual), residual.layout().plane
        return tuple(grouped_way(common, way, offsets, placement) for way in ways)

    return emit


def _tap_offsets(kernel: KernelSpec, source: Tensor) -> NDArray[np.int32]:
    """The offset of each column (input channel, kernel y, kernel x) from the output's position, in elements."""
    layout = source.layout()
    stride = kernel.stride
    y, x = np.meshgrid(
        np.arange(kernel.kernel_h) - kernel.padding, np.arange(kernel.kernel_w) - kernel.padding, indexing="ij"
    )
    taps = (y // stride) * layout.row + x // stride
    planes_per_channel = 1
    if isinstance(source, PhaseTensor):
        taps = taps + source.phase_indices()[phase_of(y, x, stride)] * layout.plane
        planes_per_channel = source.num_phases
    channels = np.arange(kernel.in_channels, dtype=np.int64) * planes_per_channel * layout.plane
    if layout.size >= 1 << 31:
        raise UnsupportedKernelError(f"an input of {layout.size} elements exceeds the reach of 32-bit offsets")
    return (channels[:, None, None] + taps).reshape(-1).astype(np.int32)
