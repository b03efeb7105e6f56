"""From an architecture's name to its torch module."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from device_agent.contracts import ContractError
from search.domain.architectures import ARCHITECTURES
from search.models.mobilenet import MobileNetV1, MobileNetV2
from search.models.resnet_cifar import CifarResNet
from search.models.resnet_imagenet import resnet18, resnet50
from search.models.small_cnn import SmallCnn
from search.models.vgg import Vgg16

#: Makes a module from its numbers of input channels and classes.
_BUILDERS: dict[str, Callable[[int, int], nn.Module]] = {
    **{f"resnet{depth}": partial(CifarResNet, depth) for depth in (20, 32, 44, 56, 110)},
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenet_v1": MobileNetV1,
    "mobilenet_v2": MobileNetV2,
    "vgg16": Vgg16,
    "small_cnn": SmallCnn,
    "small_resnet": partial(CifarResNet, 14),
}


def build_model(
    architecture: str,
    num_classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    *,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Build a network of the zoo with fresh weights, in evaluation mode.

    Args:
        architecture: A key of `search.domain.architectures.ARCHITECTURES`.
        num_classes: Outputs of the last layer; the architecture's own number by default.
        input_shape: (channels, h, w); only the channels matter here. The architecture's own shape by default.
        generator: Draws the weights. By default they are those of seed 0, so that two calls agree.

    Raises:
        ContractError: The architecture is unknown, or a size is not positive.
    """
    if architecture not in _BUILDERS:
        near = difflib.get_close_matches(architecture, _BUILDERS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ContractError(f"unknown architecture {architecture!r}: {hint}known are {', '.join(_BUILDERS)}")
    entry = ARCHITECTURES[architecture]
    classes = entry.num_classes if num_classes is None else num_classes
    shape = entry.input_shape if input_shape is None else input_shape
    if classes < 1 or min(shape) < 1:
        raise ContractError(f"{architecture} needs positive sizes, not {classes} classes and an input of {shape}")
    # The constructors of torch draw from the global generator: keep the caller's stream as it is.
    with torch.random.fork_rng(devices=()):
        model = _BUILDERS[architecture](shape[0], classes)
    initialise_weights(model, generator or torch.Generator().manual_seed(0))
    return model.eval()


@torch.no_grad()
def initialise_weights(model: nn.Module, generator: torch.Generator) -> None:
    """Draw fresh weights in place: He initialisation by fan-out for convolutions, N(0, 0.01) for linear layers."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
