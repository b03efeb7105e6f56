"""Which convolutions run block by block together with the depthwise convolution that reads them.

The tensor between an expansion and a depthwise convolution is the largest of a MobileNet, 4.8 MB at 112x112x96, and a
depthwise convolution reads each channel once. So both run for a few channels at a time: what is written is read again
while it is in the cache, and one small buffer serves all blocks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from device_agent.contracts import KernelSpec, NetworkPlan, Op, PlanOp
from device_agent.native.layout import FLOAT_BYTES
from device_agent.native.library import GROUP_SIZES
from device_agent.native.steps import has_depthwise_kernel

#: A block of the tensor between takes at most this much, so that it stays in a cache of the second level.
BLOCK_BYTES = 256 * 1024


def blockwise_pairs(plan: NetworkPlan) -> Mapping[str, PlanOp]:
    """By the name of each depthwise convolution that can run in blocks, the convolution that it reads."""
    by_name = {op.name: op for op in plan.ops}
    readers = Counter(name for op in plan.ops for name in (*op.inputs, op.residual))
    pairs = {}
    for op in plan.ops:
        source = by_name.get(op.inputs[0])
        if (
            op.kernel.op is Op.DEPTHWISE_CONV2D
            and has_depthwise_kernel(op.kernel)
            and source is not None
            and source.kernel.op is Op.CONV2D
            and source.residual is None
            and readers[source.name] == 1
            and source.kernel.output_h * source.kernel.output_w > 1
            and channels_per_block(source.kernel) < source.kernel.out_channels
        ):
            pairs[op.name] = source
    return pairs


def channels_per_block(kernel: KernelSpec) -> int:
    """How many output channels of `kernel` make a block. Blocks cut neither row groups nor blocks of filters."""
    whole = math.lcm(max(GROUP_SIZES), kernel.pruning.block_filters)
    plane_bytes = FLOAT_BYTES * kernel.output_h * kernel.output_w
    return max(1, BLOCK_BYTES // (plane_bytes * whole)) * whole
