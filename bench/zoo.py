"""Plans of the networks that benchmarks run, with random weights: times do not depend on their values.

The same operators as `search.pruning.trace` finds in `search.models`, written down here so that a benchmark starts
without torch. Batch norm is folded in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import (
    DENSE,
    NETWORK_INPUT,
    Activation,
    KernelSpec,
    NetworkPlan,
    Op,
    PlanOp,
    WeightPruning,
)
from device_agent.synthesis import synthesize_weights
from search.domain.architectures import MOBILENET_V1_BLOCKS, MOBILENET_V2_STAGES


def cifar_resnet_plan(pruning: WeightPruning = DENSE, *, blocks_per_stage: int = 9, extent: int = 32) -> NetworkPlan:
    """A CIFAR ResNet of 6 * blocks + 2 layers (56 by default) with shortcuts without parameters (He et al. 2015, arXiv
    1512.03385, option A). `pruning` is that of every convolution but the stem.
    """
    plan = _PlanBuilder(f"resnet{6 * blocks_per_stage + 2}", extent)
    current = plan.conv("conv1", NETWORK_INPUT, 16, 3)
    for stage, out_channels in enumerate((16, 32, 64), start=1):
        for block in range(blocks_per_stage):
            name, shortcut = f"layer{stage}.{block}", current
            stride = 2 if stage > 1 and block == 0 else 1
            first = plan.conv(f"{name}.conv1", current, out_channels, 3, stride=stride, pruning=pruning)
            if stride == 2:
                shortcut = plan.shortcut_pad(f"{name}.shortcut", current, out_channels, stride=2)
            current = plan.conv(f"{name}.conv2", first, out_channels, 3, pruning=pruning, residual=shortcut)
    plan.classifier(current, 10)
    return plan.build()


def resnet18_plan(pruning: WeightPruning = DENSE, *, extent: int = 224) -> NetworkPlan:
    """ResNet-18 (He et al. 2015, arXiv 1512.03385) with 1x1 convolutions in the shortcuts. `pruning` is that of every
    convolution but the stem.
    """
    plan = _PlanBuilder("resnet18", extent)
    current = plan.conv("conv1", NETWORK_INPUT, 64, 7, stride=2)
    current = plan.max_pool("maxpool", current, 3, stride=2)
    for stage, out_channels in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            name, source = f"layer{stage}.{block}", current
            stride = 2 if stage > 1 and block == 0 else 1
            current = plan.conv(f"{name}.conv1", source, out_channels, 3, stride=stride, pruning=pruning)
            if stride == 1:
                current = plan.conv(f"{name}.conv2", current, out_channels, 3, pruning=pruning, residual=source)
                continue
            # The sum is fused into the convolution that comes last.
            current = plan.conv(f"{name}.conv2", current, out_channels, 3, pruning=pruning, activation=Activation.NONE)
            current = plan.conv(
                f"{name}.downsample.0", source, out_channels, 1, stride=2, pruning=pruning, residual=current
            )
    plan.classifier(current, 1000)
    return plan.build()


def mobilenet_v1_plan(pruning: WeightPruning = DENSE, *, extent: int = 224) -> NetworkPlan:
    """MobileNetV1, width 1. `pruning` is that of the 1x1 convolutions."""
    plan = _PlanBuilder("mobilenet_v1", extent)
    current = plan.conv("conv1", NETWORK_INPUT, 32, 3, stride=2)
    for index, (out_channels, stride) in enumerate(MOBILENET_V1_BLOCKS):
        current = plan.depthwise(f"blocks.{index}.depthwise", current, stride=stride)
        current = plan.conv(f"blocks.{index}.pointwise", current, out_channels, 1, pruning=pruning)
    plan.classifier(current, 1000)
    return plan.build()


def mobilenet_v2_plan(pruning: WeightPruning = DENSE, *, extent: int = 224) -> NetworkPlan:
    """MobileNetV2, width 1. `pruning` is that of the 1x1 convolutions."""
    plan = _PlanBuilder("mobilenet_v2", extent)
    relu6 = Activation.RELU6
    current = plan.conv("features.0.0", NETWORK_INPUT, 32, 3, stride=2, activation=relu6)
    channels, block = 32, 0
    for expansion, out_channels, count, first_stride in MOBILENET_V2_STAGES:
        for number in range(count):
            block += 1
            name, source = f"features.{block}.conv", current
            stride = first_stride if number == 0 else 1
            if expansion != 1:
                current = plan.conv(
                    f"{name}.expand", current, channels * expansion, 1, pruning=pruning, activation=relu6
                )
            current = plan.depthwise(f"{name}.depthwise", current, stride=stride, activation=relu6)
            current = plan.conv(
                f"{name}.project", current, out_channels, 1, pruning=pruning, activation=Activation.NONE,
                residual=source if stride == 1 and channels == out_channels else None,
            )  # fmt: skip
            channels = out_channels
    current = plan.conv("features.18.0", current, 1280, 1, pruning=pruning, activation=relu6)
    plan.classifier(current, 1000)
    return plan.build()


#: Every network that is timed whole, by name.
NETWORKS: Mapping[str, Callable[[WeightPruning], NetworkPlan]] = MappingProxyType(
    {
        "resnet18": resnet18_plan,
        "resnet56": cifar_resnet_plan,
        "mobilenet_v1": mobilenet_v1_plan,
        "mobilenet_v2": mobilenet_v2_plan,
    }
)


def plan_tensors(plan: NetworkPlan) -> dict[str, NDArray[np.float32]]:
    """Random weights for every operator of `plan`; residual branches are scaled down, so that sums stay moderate."""
    tensors = {}
    for op in plan.ops:
        for name, tensor in synthesize_weights(op.kernel).items():
            tensors[f"{op.name}.{name}"] = tensor * np.float32(0.3 if op.residual else 1.0)
    return tensors


class _PlanBuilder:
    """Appends operators whose input shapes follow from what they read. Each gets its own seed."""

    def __init__(self, name: str, extent: int, channels: int = 3) -> None:
        self._name = name
        self._ops: list[PlanOp] = []
        self._shapes = {NETWORK_INPUT: (channels, extent, extent)}

    def build(self) -> NetworkPlan:
        return NetworkPlan(name=self._name, input_shape=self._shapes[NETWORK_INPUT], ops=tuple(self._ops))

    def conv(
        self,
        name: str,
        source: str,
        out_channels: int,
        window: int,
        *,
        stride: int = 1,
        pruning: WeightPruning = DENSE,
        activation: Activation = Activation.RELU,
        residual: str | None = None,
    ) -> str:
        return self._add(
            name, source, Op.CONV2D, out_channels, kernel_h=window, kernel_w=window, padding=window // 2,
            stride=stride, pruning=pruning, activation=activation, residual=residual,
        )  # fmt: skip

    def depthwise(self, name: str, source: str, *, stride: int, activation: Activation = Activation.RELU) -> str:
        return self._add(
            name, source, Op.DEPTHWISE_CONV2D, None, kernel_h=3, kernel_w=3, padding=1, stride=stride,
            activation=activation,
        )  # fmt: skip

    def max_pool(self, name: str, source: str, window: int, *, stride: int) -> str:
        return self._add(
            name, source, Op.MAX_POOL, None, kernel_h=window, kernel_w=window, padding=window // 2, stride=stride
        )

    def shortcut_pad(self, name: str, source: str, out_channels: int, *, stride: int) -> str:
        before = (out_channels - self._shapes[source][0]) // 2
        return self._add(name, source, Op.SHORTCUT_PAD, out_channels, stride=stride, pad_channels_before=before)

    def classifier(self, source: str, num_classes: int) -> None:
        pooled = self._add("avgpool", source, Op.GLOBAL_AVG_POOL, None)
        self._add("fc", pooled, Op.FULLY_CONNECTED, num_classes)

    def _add(
        self,
        name: str,
        source: str,
        op: Op,
        out_channels: int | None,
        *,
        residual: str | None = None,
        kernel_h: int = 1,
        kernel_w: int = 1,
        stride: int = 1,
        padding: int = 0,
        pad_channels_before: int = 0,
        activation: Activation = Activation.NONE,
        pruning: WeightPruning = DENSE,
    ) -> str:
        channels, height, width = self._shapes[source]
        kernel = KernelSpec(
            op=op,
            in_channels=channels,
            out_channels=channels if out_channels is None else out_channels,
            input_h=height,
            input_w=width,
            kernel_h=kernel_h,
            kernel_w=kernel_w,
            stride=stride,
            padding=padding,
            residual=residual is not None,
            activation=activation,
            pruning=pruning,
            pad_channels_before=pad_channels_before,
            seed=len(self._ops) + 1,
        )
        self._ops.append(PlanOp(name=name, kernel=kernel, inputs=(source,), residual=residual))
        self._shapes[name] = (kernel.out_channels, kernel.output_h, kernel.output_w)
        return name
