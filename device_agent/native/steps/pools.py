"""Max, average and global average pooling."""

from __future__ import annotations

from device_agent.contracts import KernelSpec, Op
from device_agent.native.layout import Tensor
from device_agent.native.library import MAX_THREADS, Kind, Step
from device_agent.native.placement import Placement
from device_agent.native.steps.common import Emitter, Way, Ways, bounded, set_input, set_output


def emit_pool(kernel: KernelSpec, source: Tensor, output: Tensor, first_channel: int = 0) -> Emitter:
    """`source` has some of the channels of `output`: those from `first_channel` on."""
    scratch_size = 0 if _is_walked(kernel) else _pool_scratch_size(kernel)

    def emit(placement: Placement) -> Ways:
        step = bounded(
            Step(
                kind=Kind.MAX_POOL if kernel.op is Op.MAX_POOL else Kind.AVG_POOL,
                channels=source.channels,
                kernel_h=kernel.kernel_h,
                kernel_w=kernel.kernel_w,
                stride=kernel.stride,
                padding=kernel.padding,
                scale=1.0 if kernel.op is Op.MAX_POOL else 1.0 / (kernel.kernel_h * kernel.kernel_w),
                scratch=placement.scratch(scratch_size * MAX_THREADS) if scratch_size else None,
                scratch_size=scratch_size,
            ),
            kernel.activation,
        )
        set_input(step, placement, source)
        set_output(step, placement, output, first_channel)
        return (Way(steps=(step,)),)

    return emit


def _is_walked(kernel: KernelSpec) -> bool:
    """Whether the pool has a kernel of its own, as src/walkable.h decides; others need a row to work in."""
    return (
        kernel.kernel_h == kernel.kernel_w
        and kernel.kernel_h in (2, 3)
        and kernel.stride in (1, 2)
        and 2 * kernel.padding < kernel.kernel_h
    )


def _pool_scratch_size(kernel: KernelSpec) -> int:
    """A padded row, and the same row split into phases."""
    padded_w = kernel.input_w + 2 * kernel.padding
    return padded_w + -(-padded_w // kernel.stride) * kernel.stride


def emit_global_pool(kernel: KernelSpec, source: Tensor, output: Tensor) -> Emitter:
    def emit(placement: Placement) -> Ways:
        step = bounded(
            Step(
                kind=Kind.GLOBAL_AVG_POOL,
                channels=kernel.in_channels,
                scale=1.0 / (kernel.input_h * kernel.input_w),
            ),
            kernel.activation,
        )
        set_input(step, placement, source)
        set_output(step, placement, output)
        return (Way(steps=(step,)),)

    return emit
