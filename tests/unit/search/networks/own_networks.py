"""Small networks as users write them, one for each construct that the converter must know. None is of the zoo."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUT_SHAPE = (3, 8, 8)


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class Classifier(nn.Module):
    """Features, global pooling and a linear layer."""

    def __init__(self, features: nn.Module, channels: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
        return result


def plain_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding="same"),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 6, 2, padding="same"),
        nn.BatchNorm2d(6, eps=1e-3, momentum=0.03),
        nn.LeakyReLU(0.2),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.4),
        nn.Linear(96, 4),
    )


class ResidualB(nn.Module):
    """A shortcut with a convolution of its own where the shape changes."""

    def __init__(self, inputs: int = 8, outputs: int = 12, stride: int = 2) -> None:
        super().__init__()
        self.first = conv_bn(inputs, outputs, stride=stride)
        self.second = conv_bn(outputs, outputs)
        changes = stride != 1 or inputs != outputs
        self.shortcut = conv_bn(inputs, outputs, 1, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class ResidualA(nn.Module):
    """A shortcut without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_bn(8, 12, stride=2), conv_bn(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        out = self.second(F.relu(self.first(x)))
        out += shortcut
        return F.relu_(out)


class InvertedResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(8, 24, 1),
            nn.ReLU6(inplace=True),
            conv_bn(24, 24, groups=24),
            nn.ReLU6(inplace=True),
            conv_bn(24, 8, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.body(x)
        return result


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv_bn(8, 8)
        self.reduce, self.expand = nn.Linear(8, 3), nn.Linear(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv(x))
        batch, channels = x.shape[:2]
        gate = F.relu(self.reduce(x.mean((2, 3))))
        gate = torch.sigmoid(self.expand(gate)).view(batch, channels, 1, 1)
        return x * gate.expand_as(x)


class Concatenation(nn.Module):
    """Dense connections and an Inception-like end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_bn(8, 4), conv_bn(12, 4)
        self.one, self.three = nn.Conv2d(16, 5, 1), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, F.relu(self.first(x))], 1)
        x = torch.cat((x, F.hardswish(self.second(x))), dim=1)
        pooled = F.avg_pool2d(x, 3, 1, 1)
        return torch.cat([self.one(x), self.three(x), pooled], 1)


class ChannelShuffle(nn.Module):
    """A unit of ShuffleNetV2."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv_bn(4, 4, 1), nn.ReLU(), conv_bn(4, 4, groups=4), conv_bn(4, 4, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        kept, processed = x.chunk(2, dim=1)
        x = torch.cat((kept, self.branch(processed)), 1)
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width)
        return torch.transpose(x, 1, 2).contiguous().view(batch, -1, height, width)


class CrossStage(nn.Module):
    """A channel split whose parts take different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(8, 8)
        self.inner = conv_bn(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.stem(x))
        left, right = torch.split(y, [3, 5], dim=1)
        return torch.cat([left, right, self.inner(right), y[:, 2:6]], 1)


class SeveralHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, stride=2)
        self.label, self.box = nn.Linear(8, 4), nn.Linear(8, 2)
        self.mask = nn.ConvTranspose2d(8, 2, 2, stride=2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.stem(x))
        pooled = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        return {"label": self.label(pooled), "box": torch.sigmoid(self.box(pooled)), "mask": self.mask(x)}


def frozen_stem() -> nn.Module:
    stem = conv_bn(3, 8)
    for parameter in stem.parameters():
        parameter.requires_grad = False
    return Classifier(nn.Sequential(stem, nn.ReLU(), nn.Conv2d(8, 8, 3)), 8)


class RawConvolution(nn.Module):
    """Weights that no module of torch holds: one trained, one fixed, and a factor for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 3, 3, 3))
        self.register_buffer("blur", torch.full((6, 1, 3, 3), 1 / 9))
        self.gain = nn.Parameter(torch.randn(6))
        self.offset = nn.Parameter(torch.randn(1, 6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.kernel, padding=1)
        x = F.conv2d(x, self.blur, groups=6)
        return (x * self.gain.view(1, -1, 1, 1) + self.offset).relu()


class Reuse(nn.Module):
    """One module three times, and a skip that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.shared(F.relu(self.shared(x)))
        return self.shared(y + x.detach())


class Upscaling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3, stride=2, padding=1, dilation=1), nn.Conv2d(2, 4, 3, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(F.gelu(self.conv(x)), 2)
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return F.interpolate(self.last(x), size=(5, 7))


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.group = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.GroupNorm(2, 8)
        self.layer, self.mixed = nn.LayerNorm(8), nn.Linear(8, 6)
        self.drop, self.last = nn.Dropout2d(0.3), nn.BatchNorm1d(6, momentum=None)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.group(self.conv(x)), 0.1)
        x = self.mixed(self.layer(self.drop(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        x = self.last((1 - x / 6).clamp(-3, 3).mean(dim=(2, 3)))
        return torch.softmax(torch.tanh(x) - 0.5, dim=-1)


def _stemmed(block: nn.Module, channels: int, stem: int = 8) -> nn.Module:
    return Classifier(nn.Sequential(nn.Conv2d(3, stem, 3, padding=1), nn.ReLU(), block), channels)


OWN_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain_cnn": plain_cnn,
    "resnet_a": lambda: _stemmed(ResidualA(), 12),
    "resnet_b": lambda: _stemmed(nn.Sequential(ResidualB(), ResidualB(12, 12, 1)), 12),
    "mobilenet_v2": lambda: _stemmed(InvertedResidual(), 8),
    "squeeze_excite": lambda: _stemmed(SqueezeExcite(), 8),
    "concatenation": lambda: _stemmed(Concatenation(), 24),
    "grouped": lambda: _stemmed(conv_bn(8, 12, groups=4), 12),
    "depthwise_multiplier": lambda: _stemmed(conv_bn(8, 16, groups=8), 16),
    "channel_shuffle": lambda: _stemmed(ChannelShuffle(), 8),
    "channel_split": lambda: _stemmed(CrossStage(), 17),
    "several_heads": SeveralHeads,
    "frozen_stem": frozen_stem,
    "raw_convolution": lambda: Classifier(RawConvolution(), 6),
    "reuse": lambda: Classifier(Reuse(), 8),
    "upscaling": Upscaling,
    "norms": Norms,
}


def own_network(name: str) -> nn.Module:
    """A network with weights and statistics of its own, always the same."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = OWN_NETWORKS[name]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return model
