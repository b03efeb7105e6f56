"""What torch makes of a kernel's channels, of its second tensor and of its activation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from device_agent.contracts import Activation, KernelSpec, Op


def with_second(kernel: KernelSpec, y: Tensor, second: Tensor | None) -> Tensor:
    """`y`, (n, c, h, w), together with the second tensor of `kernel`, if it takes one."""
    if second is None:
        return y
    if kernel.op is Op.MUL:
        return y * second
    if kernel.op is Op.CONCAT:
        return torch.cat((y, second), dim=1)
    return y + second


def num_groups(kernel: KernelSpec) -> int:
    """The groups of a convolution."""
    return kernel.in_channels if kernel.op is Op.DEPTHWISE_CONV2D else kernel.groups


def moved_channels(kernel: KernelSpec, x: Tensor) -> Tensor:
    """`x`, (n, c, h, w), behind a kernel that takes or orders channels; as it is behind others."""
    if kernel.op is Op.FIRST_CHANNELS:
        return x[:, : kernel.out_channels]
    if kernel.op is Op.LAST_CHANNELS:
        return x[:, -kernel.out_channels :]
    return torch.channel_shuffle(x, kernel.groups) if kernel.op is Op.CHANNEL_SHUFFLE else x


def activated(y: Tensor, activation: Activation) -> Tensor:
    functions = {
        Activation.NONE: lambda x: x,
        Activation.RELU: F.relu,
        Activation.RELU6: F.relu6,
        Activation.SIGMOID: torch.sigmoid,
        Activation.HARDSIGMOID: F.hardsigmoid,
        Activation.HARDSWISH: F.hardswish,
        Activation.SILU: F.silu,
    }
    return functions[activation](y)
