"""VGG-16 with batch norm for small images: the thirteen convolutions of Simonyan and Zisserman 2014 (arXiv 1409.1556)
and, as is usual on CIFAR, one linear layer behind global pooling.
"""

from __future__ import annotations

from torch import Tensor, nn

#: Output channels of the convolutions of each stage; every stage ends with 2x2 max pooling.
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class Vgg16(nn.Module):
    """Five stages of 3x3 convolutions. The input must be at least 32x32."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for stage in _STAGES:
            for out_channels in stage:
                layers += [
                    nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
                    nn.BatchNorm2d(out_channels),
                    nn.ReLU(inplace=True),
                ]
                channels = out_channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits
