"""Addition and activation, without a window."""

from __future__ import annotations

from dataclasses import replace

from device_agent.contracts import KernelSpec
from device_agent.native.layout import Form, Tensor
from device_agent.native.library import Kind, Step
from device_agent.native.placement import Placement
from device_agent.native.steps.common import Emitter, Way, Ways, bounded, set_input, set_output


def emit_elementwise(kernel: KernelSpec, first: Tensor, second: Tensor | None, output: Tensor) -> Emitter:
    def emit(placement: Placement) -> Ways:
        return (Way(steps=(elementwise_step(kernel, first, second, output, placement),)),)

    return emit


def elementwise_step(
    kernel: KernelSpec, first: Tensor, second: Tensor | None, output: Tensor, placement: Placement
) -> Step:
    step = bounded(Step(kind=Kind.ELEMENTWISE), kernel.activation)
    set_input(step, placement, first)
    layout = set_output(step, placement, output)
    if output.form is Form.VECTOR:
        layout = replace(layout, channels=1, width=layout.channels, row=layout.channels)
    step.channels, step.positions, step.mask = layout.channels, layout.positions, placement.mask(layout)
    if second is not None:
        step.second, step.second_plane = placement.address(second), second.layout().plane
    return step
