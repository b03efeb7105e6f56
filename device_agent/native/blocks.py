"""Which convolutions run block by block together with the depthwise convolution or the pool that reads them.

The tensor between an expansion and a depthwise convolution is the largest of a MobileNet, 4.8 MB at 112x112x96, as is
that between stem and pool in a ResNet; and depthwise convolutions and pools read each channel once. So both run for a
few channels at a time: what is written is read again while it is in the cache, and one small buffer serves all blocks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from device_agent.contracts import KernelSpec, NetworkPlan, Op, PlanOp
from device_agent.native.layout import FLOAT_BYTES
from device_agent.native.library import GROUP_SIZES
from device_agent.native.steps import has_depthwise_kernel

#: Every block reads the convolution's whole input again: from the cache, if it is at most this large.
INPUT_BYTES = 2 * 1024 * 1024
#: A block of the tensor between takes at most this much, so that it stays in a cache of the second level.
BLOCK_BYTES = 256 * 1024


def blockwise_pairs(plan: NetworkPlan) -> Mapping[str, PlanOp]:
    """By the name of each operator that can run in blocks of channels, the convolution that it reads."""
    by_name = {op.name: op for op in plan.ops}
    readers = Counter(name for op in plan.ops for name in (*op.inputs, op.residual))
    pairs = {}
    for op in plan.ops:
        source = by_name.get(op.inputs[0])
        if (
            source is not None
            and _reads_channel_by_channel(op.kernel)
            and source.kernel.op is Op.CONV2D
            and source.kernel.groups == 1
            and source.residual is None
            and readers[source.name] == 1
            and _is_cheap_to_repeat(source.kernel)
            and source.kernel.output_h * source.kernel.output_w > 1
            and channels_per_block(source.kernel) < source.kernel.out_channels
        ):
            pairs[op.name] = source
    return pairs


def _reads_channel_by_channel(kernel: KernelSpec) -> bool:
    if kernel.op is Op.DEPTHWISE_CONV2D:
        return has_depthwise_kernel(kernel) and kernel.channel_multiplier == 1
    return kernel.op in (Op.MAX_POOL, Op.AVG_POOL)


def _is_cheap_to_repeat(kernel: KernelSpec) -> bool:
    """Winograd's algorithm would transform its input once for each block, so its shape is left out."""
    is_for_winograd = kernel.kernel_h == kernel.kernel_w == 3 and kernel.stride == 1
    return not is_for_winograd and FLOAT_BYTES * kernel.in_channels * kernel.input_h * kernel.input_w <= INPUT_BYTES


def channels_per_block(kernel: KernelSpec) -> int:
    """How many output channels of `kernel` make a block. Blocks cut neither row groups nor blocks of filters."""
    whole = math.lcm(max(GROUP_SIZES), kernel.pruning.block_filters)
    plane_bytes = FLOAT_BYTES * kernel.output_h * kernel.output_w
    return max(1, BLOCK_BYTES // (plane_bytes * whole)) * whole
