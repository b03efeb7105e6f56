"""Kernels and a small network that every runtime is tried on."""

from __future__ import annotations

from typing import Any

import numpy as np

from device_agent.contracts import Activation, KernelSpec, NetworkPlan, Op, PlanOp, PruningScheme, WeightPruning

GROUP = WeightPruning(scheme=PruningScheme.GROUP, density=0.4, block_filters=4)


def conv(channels_in: int = 5, channels_out: int = 7, extent: int = 9, **more: Any) -> KernelSpec:
    window = {"kernel_h": 3, "kernel_w": 3, "padding": 1}
    return KernelSpec(
        op=Op.CONV2D,
        in_channels=channels_in,
        out_channels=channels_out,
        input_h=extent,
        input_w=extent,
        **{**window, **more},
    )


def same(op: Op, channels: int = 6, extent: int = 8, **more: Any) -> KernelSpec:
    return KernelSpec(op=op, in_channels=channels, out_channels=channels, input_h=extent, input_w=extent, **more)


KERNELS = {
    "conv": conv(activation=Activation.RELU),
    "conv strided": conv(stride=2, extent=10),
    "conv residual": conv(residual=True, activation=Activation.RELU),
    "conv group": conv(pruning=GROUP, channels_out=10),
    "conv unstructured": conv(pruning=WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.3)),
    "conv pattern": conv(pruning=WeightPruning(scheme=PruningScheme.PATTERN, density=0.4, pattern_entries=4)),
    "conv punched": conv(
        pruning=WeightPruning(scheme=PruningScheme.BLOCK_PUNCHED, density=0.5, block_filters=4, block_channels=2)
    ),
    "conv 1x1": conv(kernel_h=1, kernel_w=1, padding=0),
    "depthwise": same(
        Op.DEPTHWISE_CONV2D, kernel_h=3, kernel_w=3, padding=1, stride=2, activation=Activation.RELU6
    ),
    "fully connected": KernelSpec(op=Op.FULLY_CONNECTED, in_channels=20, out_channels=10),
    "add": same(Op.ADD, activation=Activation.RELU),
    "multiply": same(Op.MUL, activation=Activation.RELU6),
    "multiply vectors": same(Op.MUL, extent=1, channels=19),
    "concatenate": KernelSpec(op=Op.CONCAT, in_channels=5, out_channels=8, input_h=7, input_w=9),
    "concatenate vectors": KernelSpec(op=Op.CONCAT, in_channels=5, out_channels=22, activation=Activation.SIGMOID),
    "conv sigmoid": conv(activation=Activation.SIGMOID),
    "conv hardswish": conv(residual=True, activation=Activation.HARDSWISH),
    "depthwise silu": same(Op.DEPTHWISE_CONV2D, kernel_h=3, kernel_w=3, padding=1, activation=Activation.SILU),
    "fully connected hardsigmoid": KernelSpec(
        op=Op.FULLY_CONNECTED, in_channels=20, out_channels=10, activation=Activation.HARDSIGMOID
    ),
    "conv groups": conv(12, 8, groups=4, activation=Activation.RELU6),
    "conv groups strided": conv(6, 8, groups=2, stride=2, extent=10),
    "conv groups 1x1": conv(6, 10, groups=2, kernel_h=1, kernel_w=1, padding=0, activation=Activation.SILU),
    "conv groups vectors": conv(6, 10, 1, groups=2),
    "depthwise times 3": KernelSpec(
        op=Op.DEPTHWISE_CONV2D, in_channels=5, out_channels=15, input_h=9, input_w=7, kernel_h=3, kernel_w=3, padding=1,
        stride=2, activation=Activation.RELU,
    ),
    "depthwise 7x7 times 2": KernelSpec(
        op=Op.DEPTHWISE_CONV2D, in_channels=3, out_channels=6, input_h=9, input_w=9, kernel_h=7, kernel_w=7, padding=3,
    ),
    "first channels": KernelSpec(op=Op.FIRST_CHANNELS, in_channels=7, out_channels=3, input_h=5, input_w=6),
    "last channels": KernelSpec(
        op=Op.LAST_CHANNELS, in_channels=7, out_channels=3, input_h=5, input_w=6, activation=Activation.SILU
    ),
    "last channels of a vector": KernelSpec(
        op=Op.LAST_CHANNELS, in_channels=40, out_channels=23, activation=Activation.RELU
    ),
    "shuffle": same(Op.CHANNEL_SHUFFLE, 12, 7, groups=3, activation=Activation.RELU),
    "shuffle vectors": same(Op.CHANNEL_SHUFFLE, 12, 1, groups=4),
    "max pool": same(Op.MAX_POOL, kernel_h=3, kernel_w=3, stride=2, padding=1),
    "average pool": same(Op.AVG_POOL, kernel_h=3, kernel_w=3, stride=2, padding=1),
    "global average": same(Op.GLOBAL_AVG_POOL),
    "shortcut": KernelSpec(
        op=Op.SHORTCUT_PAD, in_channels=4, out_channels=9, input_h=8, input_w=8, stride=2, pad_channels_before=2
    ),
}  # fmt: skip


def small_network() -> tuple[NetworkPlan, dict[str, np.ndarray]]:
    """A pruned block with a fused residual and a classifier, with weights."""
    plan = NetworkPlan(
        name="small",
        input_shape=(3, 10, 10),
        ops=(
            PlanOp(name="stem", kernel=conv(3, 8, 10, activation=Activation.RELU), inputs=("input",)),
            PlanOp(
                name="body",
                kernel=conv(8, 8, 10, residual=True, activation=Activation.RELU, pruning=GROUP),
                inputs=("stem",),
                residual="stem",
            ),
            PlanOp(name="pool", kernel=same(Op.GLOBAL_AVG_POOL, 8, 10), inputs=("body",)),
            PlanOp(
                name="head", kernel=KernelSpec(op=Op.FULLY_CONNECTED, in_channels=8, out_channels=4), inputs=("pool",)
            ),
        ),
    )
    from device_agent.synthesis import synthesize_weights

    tensors = {f"{op.name}.{part}": values for op in plan.ops for part, values in synthesize_weights(op.kernel).items()}
    return plan, tensors
