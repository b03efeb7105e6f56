"""Copies between layouts, phase splits, concatenation, and the shortcut without parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from device_agent.contracts import Activation, KernelSpec
from device_agent.native.layout import FLOAT_BYTES, PhaseTensor, Tensor
from device_agent.native.library import Kind, Step
from device_agent.native.placement import Placement
from device_agent.native.steps.common import Emitter, Way, Ways, set_input, set_output
from device_agent.native.steps.elementwise import elementwise_step


def emit_copy(source: Tensor, target: Tensor, first_channel: int = 0) -> Emitter:
    """Copy to the channels of `target` from `first_channel` on."""
    return emit_copies(source, target, (Run(count=source.channels, target=first_channel),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Channels to copy: `count` from `source` on, to every `stride`-th from `target` on."""

    count: int
    source: int = 0
    target: int = 0
    stride: int = 1


def emit_copies(source: Tensor, target: Tensor, runs: Sequence[Run]) -> Emitter:
    """Copy runs of channels."""

    def emit(placement: Placement) -> Ways:
        steps = []
        for run in runs:
            step = Step(kind=Kind.SPLIT, stride=1, channels=run.count, num_phases=1)
            layout = set_input(step, placement, source)
            step.input += FLOAT_BYTES * run.source * layout.plane
            set_output(step, placement, target, run.target)
            step.output_plane *= run.stride
            steps.append(step)
        return (Way(steps=tuple(steps)),)

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
        set_input(step, placement, phases.source)
        set_output(step, placement, phases)
        return (Way(steps=(step,)),)

    return emit


def emit_shortcut(kernel: KernelSpec, source: Tensor, output: Tensor) -> Emitter:
    def emit(placement: Placement) -> Ways:
        before = kernel.pad_channels_before
        after = kernel.out_channels - kernel.in_channels - before
        plane_bytes = FLOAT_BYTES * output.layout().plane
        copy = Step(kind=Kind.SPLIT, stride=kernel.stride, channels=kernel.in_channels, num_phases=1)
        if kernel.stride > 1:
            phases = np.full(kernel.stride * kernel.stride, -1, dtype=np.int32)
            phases[0] = 0
            copy.phases = placement.constant(phases)
        set_input(copy, placement, source)
        set_output(copy, placement, output)
        start = placement.address(output)
        copy.output = start + before * plane_bytes
        steps = [copy]
        for count, first in ((before, 0), (after, before + kernel.in_channels)):
            if count:
                clear = Step(kind=Kind.ZERO, channels=count)
                set_output(clear, placement, output)
                clear.output = start + first * plane_bytes
                steps.append(clear)
        if kernel.activation is not Activation.NONE:
            steps.append(elementwise_step(kernel, output, None, output, placement))
        return (Way(steps=tuple(steps)),)

    return emit
