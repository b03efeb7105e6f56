"""Networks that obey the rules of XNNPACK's sparse path."""

from __future__ import annotations

from typing import Any

import numpy as np

from device_agent.contracts import Activation, KernelSpec, NetworkPlan, Op, PlanOp, PruningScheme, WeightPruning
from device_agent.synthesis import synthesize_weights

UNSTRUCTURED = WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.2)
GROUP = WeightPruning(scheme=PruningScheme.GROUP, density=0.25, block_filters=4)


def pointwise(channels_in: int = 8, channels_out: int = 12, extent: int = 6, **more: Any) -> KernelSpec:
    """A 1x1 convolution that the sparse path can be asked for."""
    return KernelSpec(
        op=Op.CONV2D,
        in_channels=channels_in,
        out_channels=channels_out,
        input_h=extent,
        input_w=extent,
        **{"pruning": UNSTRUCTURED, **more},
    )


def _depthwise(channels: int, extent: int, window: int, stride: int) -> KernelSpec:
    return KernelSpec(
        op=Op.DEPTHWISE_CONV2D,
        in_channels=channels,
        out_channels=channels,
        input_h=extent,
        input_w=extent,
        kernel_h=window,
        kernel_w=window,
        stride=stride,
        padding=window // 2,
        activation=Activation.RELU6,
    )


def stem(channels: int = 8, extent: int = 14, **changes: Any) -> KernelSpec:
    return KernelSpec(
        op=Op.CONV2D,
        out_channels=channels,
        input_h=extent,
        input_w=extent,
        activation=Activation.RELU6,
        **{"in_channels": 3, "kernel_h": 3, "kernel_w": 3, "stride": 2, "padding": 1, **changes},
    )


def mobile_ops() -> list[PlanOp]:
    """Everything that the sparse path allows: 7x7 (odd, so that SAME would pad alike), both windows, a residual."""

    def mean(extent: int) -> KernelSpec:
        return KernelSpec(op=Op.GLOBAL_AVG_POOL, in_channels=16, out_channels=16, input_h=extent, input_w=extent)

    def add() -> KernelSpec:
        return KernelSpec(op=Op.ADD, in_channels=16, out_channels=16, input_h=4, input_w=4)

    linear = KernelSpec(op=Op.FULLY_CONNECTED, in_channels=16, out_channels=10)
    return [
        PlanOp(name="stem", kernel=stem(), inputs=("input",)),
        PlanOp(name="dw1", kernel=_depthwise(8, 7, 3, 1), inputs=("stem",)),
        PlanOp(name="pw1", kernel=pointwise(8, 16, 7, activation=Activation.RELU6), inputs=("dw1",)),
        PlanOp(name="dw2", kernel=_depthwise(16, 7, 3, 2), inputs=("pw1",)),
        PlanOp(name="pw2", kernel=pointwise(16, 16, 4, pruning=GROUP), inputs=("dw2",)),
        PlanOp(name="dw3", kernel=_depthwise(16, 4, 5, 1), inputs=("pw2",)),
        PlanOp(name="pw3", kernel=pointwise(16, 16, 4, residual=True), inputs=("dw3",), residual="pw2"),
        PlanOp(name="sum", kernel=add(), inputs=("pw3", "pw2")),
        PlanOp(name="dw4", kernel=_depthwise(16, 4, 5, 2), inputs=("sum",)),
        PlanOp(name="pw4", kernel=pointwise(16, 16, 2, activation=Activation.RELU), inputs=("dw4",)),
        PlanOp(name="mean", kernel=mean(2), inputs=("pw4",)),
        PlanOp(name="head", kernel=linear, inputs=("mean",)),
    ]


def network_of(ops: list[PlanOp]) -> tuple[NetworkPlan, dict[str, np.ndarray]]:
    """The plan of `ops` with weights of their seeds."""
    kernel = ops[0].kernel
    shape = (kernel.in_channels, kernel.input_h, kernel.input_w)
    plan = NetworkPlan(name="mobile", input_shape=shape, ops=tuple(ops))
    tensors = {f"{op.name}.{part}": values for op in ops for part, values in synthesize_weights(op.kernel).items()}
    return plan, tensors


def mobile_network() -> tuple[NetworkPlan, dict[str, np.ndarray]]:
    return network_of(mobile_ops())
