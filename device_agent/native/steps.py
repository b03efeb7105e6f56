"""The native steps of each kind of node, with all pointers resolved.

Each function returns an emitter, which is called when all layouts are final. It answers with one or more equivalent
ways to do the work; the tuner chooses among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import Activation, KernelSpec, Op
from device_agent.native.errors import UnsupportedKernelError
from device_agent.native.layout import FLOAT_BYTES, VECTOR, Form, Layout, PhaseTensor, Tensor, phase_of
from device_agent.native.library import GROUP_SIZES, Kind, Step
from device_agent.native.packing import RowGroups, dense_blocks, group_rows
from device_agent.native.placement import Placement

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to do a node's work. `held` keeps the constants alive that only this way needs."""

    steps: tuple[Step, ...]
    held: tuple[NDArray[Any], ...] = ()


Ways = tuple[Way, ...]
Emitter = Callable[[Placement], Ways]

#: By group size, the part of the weights above which a fully connected layer is read as a whole: indices would cost
#: more than they save. Fixed and not tuned, because the form has an effect on rounding.
_DENSE_MATVEC_DENSITY = {4: 0.5, 2: 0.25, 1: 0.15}

_BOUNDS = {
    Activation.NONE: (-math.inf, math.inf),
    Activation.RELU: (0.0, math.inf),
    Activation.RELU6: (0.0, 6.0),
}


def _bounded(step: Step, activation: Activation) -> Step:
    step.lower, step.upper = _BOUNDS[activation]
    return step


def _set_input(step: Step, placement: Placement, tensor: Tensor) -> Layout:
    layout = tensor.layout()
    step.input, step.input_row, step.input_plane = placement.address(tensor), layout.row, layout.plane
    step.input_h, step.input_w = layout.height, layout.width
    return layout


def _set_output(step: Step, placement: Placement, tensor: Tensor) -> Layout:
    layout = tensor.layout()
    step.output, step.output_row, step.output_plane = placement.address(tensor), layout.row, layout.plane
    step.output_h, step.output_w = layout.height, layout.width
    return layout


def emit_copy(source: Tensor, target: Tensor) -> Emitter:
    def emit(placement: Placement) -> Ways:
        step = Step(kind=Kind.SPLIT, stride=1, channels=source.channels, num_phases=1)
        _set_input(step, placement, source)
        _set_output(step, placement, target)
        return (Way(steps=(step,)),)

    return emit


def emit_phases(phases: PhaseTensor) -> Emitter:
    def emit(placement: Placement) -> Ways:
        step = Step(
            kind=Kind.SPLIT,
            stride=phases.stride,
            channels=phases.source.channels,
            num_phases=phases.num_phases,
            phases=placement.constant(phases.phase_indices()),
        )
        _set_input(step, placement, phases.source)
        _set_output(step, placement, phases)
        return (Way(steps=(step,)),)

    return emit


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
        common = _bounded(Step(kind=Kind.CONV, bias=placement.constant(bias)), kernel.activation)
        _set_input(common, placement, source)
        layout = _set_output(common, placement, target)
        common.positions, common.mask = layout.positions, placement.mask(layout)
        if residual is not None:
            common.second, common.second_plane = placement.address(residual), residual.layout().plane
        return tuple(_grouped_way(common, way, offsets, placement) for way in ways)

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


def _grouped_way(common: Step, row_groups: list[RowGroups], offsets: NDArray[np.int32], placement: Placement) -> Way:
    """`common` once for each group size, with `offsets` by column."""
    steps, held = [], list[NDArray[Any]]()
    for groups in row_groups:
        step = Step.from_buffer_copy(common)
        step.group_size, step.num_groups = groups.group_size, len(groups.channels)
        step.group_channels = placement.constant(groups.channels, held)
        step.group_starts = placement.constant(groups.starts, held)
        step.offsets = placement.constant(offsets[groups.columns], held)
        step.weights = placement.constant(groups.values, held)
        steps.append(step)
    return Way(steps=tuple(steps), held=tuple(held))


def emit_matvec(
    kernel: KernelSpec,
    rows: FloatArray,
    bias: FloatArray,
    source: Tensor,
    residual: Tensor | None,
    output: Tensor,
) -> Emitter:
    def emit(placement: Placement) -> Ways:
        common = _bounded(
            Step(channels=rows.shape[1], outputs=rows.shape[0], bias=placement.constant(bias)), kernel.activation
        )
        _set_input(common, placement, source)
        _set_output(common, placement, output)
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
        return (_grouped_way(common, way, inputs, placement),)

    return emit


def emit_elementwise(kernel: KernelSpec, first: Tensor, second: Tensor | None, output: Tensor) -> Emitter:
    def emit(placement: Placement) -> Ways:
        return (Way(steps=(_elementwise_step(kernel, first, second, output, placement),)),)

    return emit


def _elementwise_step(
    kernel: KernelSpec, first: Tensor, second: Tensor | None, output: Tensor, placement: Placement
) -> Step:
    step = _bounded(Step(kind=Kind.ELEMENTWISE), kernel.activation)
    _set_input(step, placement, first)
    layout = _set_output(step, placement, output)
    if output.form is Form.VECTOR:
        layout = replace(layout, channels=1, width=layout.channels, row=layout.channels)
    step.channels, step.positions, step.mask = layout.channels, layout.positions, placement.mask(layout)
    if second is not None:
        step.second, step.second_plane = placement.address(second), second.layout().plane
    return step


def emit_pool(kernel: KernelSpec, source: Tensor, output: Tensor) -> Emitter:
    def emit(placement: Placement) -> Ways:
        step = _bounded(
            Step(
                kind=Kind.MAX_POOL if kernel.op is Op.MAX_POOL else Kind.AVG_POOL,
                channels=kernel.in_channels,
                kernel_h=kernel.kernel_h,
                kernel_w=kernel.kernel_w,
                stride=kernel.stride,
                padding=kernel.padding,
                scale=1.0 / (kernel.kernel_h * kernel.kernel_w),
                scratch=placement.constant(np.zeros(_pool_scratch_size(kernel), dtype=np.float32)),
            ),
            kernel.activation,
        )
        _set_input(step, placement, source)
        _set_output(step, placement, output)
        return (Way(steps=(step,)),)

    return emit


def _pool_scratch_size(kernel: KernelSpec) -> int:
    """A padded row, and the same row split into phases."""
    padded_w = kernel.input_w + 2 * kernel.padding
    return padded_w + -(-padded_w // kernel.stride) * kernel.stride


def emit_global_pool(kernel: KernelSpec, source: Tensor, output: Tensor) -> Emitter:
    def emit(placement: Placement) -> Ways:
        step = _bounded(
            Step(
                kind=Kind.GLOBAL_AVG_POOL,
                channels=kernel.in_channels,
                scale=1.0 / (kernel.input_h * kernel.input_w),
            ),
            kernel.activation,
        )
        step.positions = _set_input(step, placement, source).positions
        _set_output(step, placement, output)
        return (Way(steps=(step,)),)

    return emit


def emit_shortcut(kernel: KernelSpec, source: Tensor, output: Tensor) -> Emitter:
    def emit(placement: Placement) -> Ways:
        before = kernel.pad_channels_before
        after = kernel.out_channels - kernel.in_channels - before
        plane_bytes = FLOAT_BYTES * output.layout().plane
        phases = np.full(kernel.stride * kernel.stride, -1, dtype=np.int32)
        phases[0] = 0
        copy = Step(
            kind=Kind.SPLIT,
            stride=kernel.stride,
            channels=kernel.in_channels,
            num_phases=1,
            phases=placement.constant(phases),
        )
        _set_input(copy, placement, source)
        _set_output(copy, placement, output)
        start = placement.address(output)
        copy.output = start + before * plane_bytes
        steps = [copy]
        for count, first in ((before, 0), (after, before + kernel.in_channels)):
            if count:
                clear = Step(kind=Kind.ZERO, channels=count)
                _set_output(clear, placement, output)
                clear.output = start + first * plane_bytes
                steps.append(clear)
        if kernel.activation is not Activation.NONE:
            steps.append(_elementwise_step(kernel, output, None, output, placement))
        return (Way(steps=tuple(steps)),)

    return emit
