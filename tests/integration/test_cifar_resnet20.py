"""A real checkpoint on real images, through the whole path from torch to the device's executors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from device_agent.contracts import NetworkFormat
from device_agent.formats.packed import read_packed
from device_agent.native.executor import NativeNetwork
from search.data.batches import Normalisation, as_tensors, network_input
from search.data.dataset import ImageData
from search.data.reading import read_data
from search.domain.config import SpaceConfig, WeightsConfig
from search.domain.space import Decisions
from search.evaluation import evaluate
from search.export import write_network
from search.models.checkpoint import load_checkpoint
from search.models.zoo import build_model
from search.pruning.apply import apply_decisions
from search.pruning.fold import to_plan_tensors
from search.pruning.trace import trace_network
from search.space_builder import build_space
from tests.shared_data import shared_data

SHAPE = (3, 32, 32)
NORMALISE = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    model = build_model("resnet20")
    load_checkpoint(model, shared_data("resnet20-cifar10-jpeg.safetensors"))
    return model


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    cache: Path = tmp_path_factory.mktemp("cache")
    return read_data(shared_data("cifar10-jpeg-test.zip"), image_shape=SHAPE, cache_dir=cache)


@pytest.mark.slow  # 10,000 images.
def test_the_published_accuracy_is_reproduced(model: nn.Module, images: ImageData) -> None:
    assert len(images) == 10_000
    # 0.877 in the description of the data; bfloat16 moves a few of the 10,000 images.
    assert evaluate(model, images, NORMALISE).accuracy == pytest.approx(0.877, abs=0.002)


def test_a_pruned_network_gives_torchs_outputs_on_real_images(model: nn.Module, images: ImageData) -> None:
    spec = trace_network(model, SHAPE, "resnet20")
    space = build_space(spec, SpaceConfig(weights=WeightsConfig(densities=(0.3, 1.0), stem_min_density=0.3)))
    for decisions in (Decisions(), space.decode(space.smallest), Decisions(channels={g.name: 5 for g in spec.groups})):
        pruned = apply_decisions(model, spec, decisions)
        plan, tensors = to_plan_tensors(pruned, spec, decisions)
        network = NativeNetwork(*read_packed(write_network(plan, tensors, NetworkFormat.PACKED)))
        x = network_input(as_tensors(images)[0][:8], NORMALISE).contiguous()
        with torch.no_grad():
            expected = pruned.model(x).numpy()
        for sample, want in zip(x.numpy(), expected, strict=True):
            np.testing.assert_allclose(network.run(sample).reshape(-1), want, rtol=1e-4, atol=1e-4)
