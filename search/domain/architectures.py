"""The network zoo as data: names, default inputs, numbers of classes, and tables of blocks. The modules are in
`search.models`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One member of the zoo. `input_shape` is (channels, h, w)."""

    name: str
    input_shape: tuple[int, int, int]
    num_classes: int
    description: str


_CIFAR = (3, 32, 32)
_IMAGENET = (3, 224, 224)

ARCHITECTURES: dict[str, Architecture] = {
    a.name: a
    for a in (
        *(
            Architecture(
                name=f"resnet{depth}",
                input_shape=_CIFAR,
                num_classes=10,
                description=f"CIFAR ResNet-{depth} with option A shortcuts (He et al. 2015, section 4.2)",
            )
            for depth in (20, 32, 44, 56, 110)
        ),
        Architecture(name="resnet18", input_shape=_IMAGENET, num_classes=1000, description="ImageNet ResNet-18"),
        Architecture(name="resnet50", input_shape=_IMAGENET, num_classes=1000, description="ImageNet ResNet-50"),
        Architecture(name="mobilenet_v1", input_shape=_IMAGENET, num_classes=1000, description="MobileNetV1 1.0"),
        Architecture(name="mobilenet_v2", input_shape=_IMAGENET, num_classes=1000, description="MobileNetV2 1.0"),
        Architecture(name="vgg16", input_shape=_CIFAR, num_classes=10, description="CIFAR VGG-16 with batch norm"),
        Architecture(name="small_cnn", input_shape=(1, 8, 8), num_classes=10, description="a small CNN for 8x8 images"),
        Architecture(
            name="small_resnet",
            input_shape=(1, 8, 8),
            num_classes=10,
            description="CIFAR ResNet-14 for 8x8 images, with residual blocks that can be removed",
        ),
    )
}

#: (output channels, stride) of MobileNetV1's separable convolutions (Howard et al. 2017, arXiv 1704.04861, table 1).
MOBILENET_V1_BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)
#: (expansion, output channels, repetitions, stride of the first) of MobileNetV2's stages (Sandler et al. 2018,
#: arXiv 1801.04381, table 2).
MOBILENET_V2_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
