"""ResNet for CIFAR (He et al. 2015, arXiv 1512.03385, section 4.2): three stages of 16, 32 and 64 channels.

Where a stage changes the shape, the shortcut is their option A, without parameters: every second pixel, and zero
channels, half of them in front and half behind.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_STAGE_WIDTHS = (16, 32, 64)


class CifarBasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self._stride = stride
        missing = out_channels - in_channels
        self._pad_before = missing // 2
        self._pad_after = missing - missing // 2

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self._stride != 1:
            x = x[:, :, :: self._stride, :: self._stride]
        if self._pad_before or self._pad_after:
            x = F.pad(x, (0, 0, 0, 0, self._pad_before, self._pad_after))
        return x


class CifarResNet(nn.Module):
    """`depth` = 6n + 2 layers: a stem, three stages of n blocks, global pooling and one linear layer."""

    def __init__(self, depth: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        blocks, remainder = divmod(depth - 2, 6)
        if blocks < 1 or remainder:
            raise ValueError(f"a CIFAR ResNet has 6n + 2 layers, and {depth} is not of that form")
        width = _STAGE_WIDTHS[0]
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages = []
        for stage_width in _STAGE_WIDTHS:
            stride = 1 if stage_width == width else 2
            stage = [CifarBasicBlock(width, stage_width, stride)]
            stage += [CifarBasicBlock(stage_width, stage_width, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*stage))
            width = stage_width
        self.layer1, self.layer2, self.layer3 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits
