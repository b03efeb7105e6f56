"""The network zoo as data: names, default inputs and numbers of classes. The modules are in `search.models`."""

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
    )
}
