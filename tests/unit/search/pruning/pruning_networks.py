"""Networks and weights for the tests of pruning."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search.domain.network import NetworkSpec
from search.models.zoo import build_model, initialise_weights
from search.pruning.trace import trace_network


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and batch norm statistics, in place: fresh ones are too regular to show an error."""
    generator = torch.Generator().manual_seed(seed)
    initialise_weights(model, generator)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0.0, 0.2, generator=generator)
            nn.init.normal_(module.running_mean, 0.0, 0.2, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
    return model.eval()


@functools.cache
def traced(architecture: str) -> tuple[nn.Module, NetworkSpec]:
    """A network of the zoo for small images, and its description. Tests share them and must not change them."""
    shape = (1, 8, 8) if architecture.startswith("small_") else (3, 32, 32)
    model = randomise(build_model(architecture, num_classes=10))
    return model, trace_network(model, shape, architecture)


def conv_bn(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class Mixed(nn.Module):
    """Functional forms, both kinds of adds, every pool, a depthwise convolution, and a linear layer on an image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.left = conv_bn(8, 8)
        self.right = conv_bn(8, 8, kernel=1)
        self.depthwise = conv_bn(8, 8, groups=8, stride=2)
        self.expand = nn.Conv2d(8, 12, (3, 3), padding=1)
        self.dropout = nn.Dropout(0.5)
        self.hidden = nn.Linear(12 * 2 * 2, 10)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        x = torch.relu(torch.add(self.left(x), self.right(x)))
        x = F.max_pool2d(x, 2) + F.avg_pool2d(x, 2)
        x = self.depthwise(x).relu()
        x = self.expand(x)
        x = x.view(x.size(0), -1)
        x = F.relu(self.hidden(self.dropout(x)))
        return self.head(x)


class LiteralView(nn.Module):
    """Its shapes are written down, so that channels of the second convolution cannot be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.head(x.view(-1, 6 * 16))
