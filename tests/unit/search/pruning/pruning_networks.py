"""Networks and weights for the tests of pruning."""

from __future__ import annotations

import functools
from collections.abc import Callable

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
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(module.bias, 0.0, 0.2, generator=generator)
            nn.init.normal_(module.running_mean, 0.0, 0.2, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
    return model.eval()


@functools.cache
def traced(architecture: str) -> tuple[nn.Module, NetworkSpec]:
    """A network of the zoo or of `_WITHOUT_ZOO` for small images, and its description. Tests share them and must not
    change them. Some take seconds: files that ask for those are in the group "traced", and so in one process.
    """
    if architecture in _WITHOUT_ZOO:
        made = randomise(_WITHOUT_ZOO[architecture]())
        return made, trace_network(made, (3, 8, 8), architecture)
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


class Joined(nn.Module):
    """Dense connections, an Inception-like block, a depthwise convolution over joined channels, and an add of two
    concatenations, whose image is flattened.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.first, self.second = conv_bn(8, 4), conv_bn(12, 6)
        self.depthwise = conv_bn(18, 18, groups=18, stride=2)
        self.one, self.three, self.reduce = nn.Conv2d(18, 5, 1), conv_bn(18, 7), nn.Conv2d(18, 5, 1)
        self.left, self.right = conv_bn(35, 4), conv_bn(35, 6)
        self.low, self.high = nn.Conv2d(10, 4, 1), nn.Conv2d(10, 6, 1)
        self.hidden = nn.Linear(10 * 16, 9)
        self.head = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([x, F.relu(self.first(x))], 1)
        x = torch.cat((x, F.hardswish(self.second(x))), dim=1)
        x = F.relu(self.depthwise(x))
        reduced = self.reduce(x)
        x = torch.cat([self.one(x), F.relu(self.three(x)), reduced, F.max_pool2d(x, 3, 1, 1)], 1)
        x = torch.cat((self.left(x), self.right(x)), 1)
        x = F.relu(x + torch.cat([self.low(x), self.high(x)], 1))
        return self.head(F.relu(self.hidden(x.flatten(1))))


class JoinedGate(nn.Module):
    """A gate over a concatenation, made of parts that fit and of one that does not."""

    def __init__(self, *, fits: bool) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 1)
        self.low, self.high, self.whole = nn.Conv2d(10, 4, 1), nn.Conv2d(10, 6, 1), nn.Conv2d(10, 10, 1)
        self.last = conv_bn(20, 6)
        self.head = nn.Linear(6, 5)
        self.fits = fits

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([self.left(x), self.right(x)], 1)
        y = x.mean((2, 3), keepdim=True)
        gate = torch.cat([self.low(y), self.high(y)], 1) if self.fits else self.whole(y)
        x = x * gate
        return self.head(F.relu(self.last(torch.cat([x, x], 1))).mean((2, 3)))


class PreActivation(nn.Module):
    """A dense block as in DenseNet: batch norm and ReLU in front of each convolution, and in front of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(12)])
        self.convs = nn.ModuleList([nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(12, 6, 3, padding=1)])
        self.last_norm, self.transition = nn.BatchNorm2d(18), nn.Conv2d(18, 10, 1)
        self.head_norm, self.head = nn.BatchNorm2d(10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        x = F.avg_pool2d(self.transition(F.relu(self.last_norm(x))), 2)
        return self.head(F.relu(self.head_norm(x)).mean((2, 3)))


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


_WITHOUT_ZOO: dict[str, Callable[[], nn.Module]] = {"joined": Joined, "pre_activation": PreActivation}
