"""Dense depthwise convolutions of the shapes that the depthwise kernel knows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import KernelSpec
from device_agent.native.layout import Tensor
from device_agent.native.library import Kind, Step
from device_agent.native.placement import Placement
from device_agent.native.steps.common import Emitter, Way, Ways, bounded, set_input, set_output
from device_agent.native.weights import Weights

FloatArray = NDArray[np.float32]

#: Below this density the sparse kernel, which reads only the weights that are left, is the faster one.
_DENSE_KERNEL_DENSITY = 0.5


def has_depthwise_kernel(kernel: KernelSpec) -> bool:
    """Whether the depthwise kernel computes `kernel`. It wants no padding around its input or output."""
    return (
        kernel.kernel_h == kernel.kernel_w
        and kernel.kernel_h in (3, 5)
        and kernel.stride in (1, 2)
        and 2 * kernel.padding < kernel.kernel_h
        and kernel.pruning.density >= _DENSE_KERNEL_DENSITY
    )


def emit_depthwise(
    kernel: KernelSpec, weights: Weights, bias: FloatArray, source: Tensor, target: Tensor, first_channel: int = 0
) -> Emitter:
    """`weights` are (channels, 1, kernel_h, kernel_w). `source` has as many channels, which go to those of `target`
    from `first_channel` on.
    """

    def emit(placement: Placement) -> Ways:
        step = Step(
            kind=Kind.DEPTHWISE,
            channels=source.channels,
            kernel_h=kernel.kernel_h,
            kernel_w=kernel.kernel_w,
            stride=kernel.stride,
            padding=kernel.padding,
            weights=placement.constant(weights.all()),
            bias=placement.constant(bias),
        )
        set_input(step, placement, source)
        set_output(step, placement, target, first_channel)
        return (Way(steps=(bounded(step, kernel.activation),)),)

    return emit
