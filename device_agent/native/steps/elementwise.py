"""Additions, products and activations, without a window."""

from __future__ import annotations

from dataclasses import replace

from device_agent.contracts import Activation, KernelSpec
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
    _set_positions(step, first, output, placement)
    if second is not None:
        step.second, step.second_plane = placement.address(second), second.layout().plane
    return step


def emit_multiply(kernel: KernelSpec, first: Tensor, gate: Tensor, output: Tensor) -> Emitter:
    """`gate` is (channels, 1, 1), and so may be the others."""

    def emit(placement: Placement) -> Ways:
        step = bounded(Step(kind=Kind.MULTIPLY), kernel.activation)
        _set_positions(step, first, output, placement)
        step.second = placement.address(gate)
        # A plane of 0 is one factor for a channel; vectors are multiplied element by element.
        step.second_plane = gate.layout().plane if output.form is Form.VECTOR else 0
        return (Way(steps=(step,)),)

    return emit


_ACTIVATION_KINDS = {
    Activation.SIGMOID: Kind.SIGMOID,
    Activation.SILU: Kind.SILU,
    Activation.HARDSIGMOID: Kind.HARDSIGMOID,
    Activation.HARDSWISH: Kind.HARDSWISH,
}


def emit_activation(activation: Activation, tensor: Tensor) -> Emitter:
    """An activation that no other step does on its way, in place."""

    def emit(placement: Placement) -> Ways:
        step = Step(kind=_ACTIVATION_KINDS[activation])
        _set_positions(step, tensor, tensor, placement)
        return (Way(steps=(step,)),)

    return emit


def _set_positions(step: Step, source: Tensor, output: Tensor, placement: Placement) -> None:
    """Where a step reads and writes, by flattened position. A vector is the positions of one channel."""
    set_input(step, placement, source)
    layout = set_output(step, placement, output)
    if output.form is Form.VECTOR:
        layout = replace(layout, channels=1, width=layout.channels, row=layout.channels)
    step.channels, step.positions, step.mask = layout.channels, layout.positions, placement.mask(layout)
