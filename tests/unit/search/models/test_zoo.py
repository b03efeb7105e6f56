"""Each network of the zoo: sizes known from its paper, reproducible weights."""

from __future__ import annotations

import pytest
import torch

from device_agent.contracts import ContractError
from search.domain.architectures import ARCHITECTURES
from search.models.zoo import build_model

#: Parameters as the papers or torchvision state them.
_PARAMETERS = {
    "resnet20": 269_722,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "mobilenet_v1": 4_231_976,
    "mobilenet_v2": 3_504_872,
}


@pytest.mark.parametrize("architecture", sorted(_PARAMETERS))
def test_has_the_published_number_of_parameters(architecture: str) -> None:
    model = build_model(architecture)

    assert sum(p.numel() for p in model.parameters()) == _PARAMETERS[architecture]


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_maps_an_image_to_class_scores(architecture: str) -> None:
    channels, height, width = ARCHITECTURES[architecture].input_shape
    model = build_model(architecture, num_classes=7)

    # Networks for large images also run on small ones, which is quicker here.
    extent = min(height, 64)
    with torch.no_grad():
        scores = model(torch.zeros(2, channels, extent, min(width, extent)))

    assert scores.shape == (2, 7)


def test_weights_are_reproducible_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()

    first = build_model("small_cnn").state_dict()
    second = build_model("small_cnn").state_dict()
    other = build_model("small_cnn", generator=torch.Generator().manual_seed(1)).state_dict()

    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_first_layer_takes_the_channels_of_the_input() -> None:
    model = build_model("resnet20", input_shape=(1, 28, 28))

    with torch.no_grad():
        assert model(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_option_a_shortcut_takes_every_second_pixel_between_zero_channels() -> None:
    block = build_model("resnet20").get_submodule("layer2.0")
    x = torch.randn(1, 16, 8, 8)

    shortcut = block._shortcut(x)

    assert torch.equal(shortcut[:, 8:24], x[:, :, ::2, ::2])
    assert not shortcut[:, :8].any()
    assert not shortcut[:, 24:].any()


@pytest.mark.parametrize(
    ("architecture", "classes", "message"),
    [("restnet20", 10, "did you mean 'resnet20'"), ("resnet20", 0, "0 classes")],
)
def test_refuses_what_it_cannot_build(architecture: str, classes: int, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        build_model(architecture, num_classes=classes)
