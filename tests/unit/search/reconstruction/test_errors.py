"""Estimated errors of pruned layers against what pruning really does to their outputs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from device_agent.contracts import DENSE, ContractError, PruningScheme, WeightPruning
from search.algorithms.factors import evaluate
from search.data.batches import Normalisation, as_tensors, network_input
from search.data.dataset import ImageData
from search.domain.config import ChannelsConfig, SpaceConfig, WeightsConfig
from search.domain.space import Decisions, VariableKind
from search.evaluation import recalibrate_batch_norm
from search.models.zoo import build_model
from search.pruning.apply import apply_decisions
from search.pruning.trace import trace_network
from search.reconstruction.estimates import errors_from_json, errors_to_json, estimate_errors
from search.reconstruction.layer_errors import output_errors
from search.reconstruction.moments import LayerMoments, layer_moments
from search.space_builder import build_space

NORMALISE = Normalisation(mean=(0.5,), std=(0.25,))
HALF = WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.5)


def images(count: int = 96) -> ImageData:
    """Stripes across or along, with noise."""
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 2
    stripes = 200 * (np.arange(8) % 2)
    picture = np.where(labels[:, None, None] == 0, stripes[:, None], stripes[None, :])
    noisy = picture + generator.integers(0, 56, (count, 8, 8))
    return ImageData(
        images=noisy.astype(np.uint8)[..., None], labels=labels.astype(np.int64), class_names=("across", "along")
    )


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 5, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(5)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        return self.linear(torch.flatten(self.pool(x), 1))


@pytest.fixture(scope="module")
def network() -> TwoLayers:
    torch.manual_seed(0)
    model = TwoLayers()
    with torch.no_grad():
        for norm in (model.norm, model.norm2):
            norm.weight.uniform_(0.5, 2.0)
    pixels, _ = as_tensors(images())
    recalibrate_batch_norm(model, pixels, NORMALISE, resolution=None, batch_size=200)
    return model.eval()


@torch.no_grad()
def outputs_of(model: nn.Module, layer: str) -> np.ndarray:
    found: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda m, i, o: found.append(o))
    model(network_input(as_tensors(images())[0], NORMALISE))
    handle.remove()
    return found[0].numpy().astype(np.float64)


def test_the_error_is_what_is_left_after_batch_norm_is_recalibrated(network: TwoLayers) -> None:
    spec = trace_network(network, (1, 8, 8), "two")
    moments = layer_moments(network, spec, images(), NORMALISE)["conv2"]
    pruned = apply_decisions(network, spec, Decisions(pruning={"conv2": HALF})).model
    recalibrate_batch_norm(pruned, as_tensors(images())[0], NORMALISE, resolution=None, batch_size=200)

    squared = np.square(outputs_of(pruned, "norm2") - outputs_of(network, "norm2")).mean(axis=(0, 2, 3))

    errors = output_errors(moments, np.arange(6), HALF)
    assert errors == pytest.approx(0.5 * moments.sensitivity * squared, rel=0.03)


def test_removed_channels_cost_what_their_readers_miss(network: TwoLayers) -> None:
    spec = trace_network(network, (1, 8, 8), "two")
    moments = layer_moments(network, spec, images(), NORMALISE)["conv2"]
    without = copy.deepcopy(network)
    with torch.no_grad():
        without.conv2.weight[:, [1, 4]] = 0.0
    recalibrate_batch_norm(without, as_tensors(images())[0], NORMALISE, resolution=None, batch_size=200)

    squared = np.square(outputs_of(without, "norm2") - outputs_of(network, "norm2")).mean(axis=(0, 2, 3))

    errors = output_errors(moments, np.array([0, 2, 3, 5]), DENSE)
    assert errors == pytest.approx(0.5 * moments.sensitivity * squared, rel=0.03)


def test_without_batch_norm_it_is_the_plain_squared_error() -> None:
    rng = np.random.default_rng(0)
    inputs, weight = rng.normal(size=(50, 6)), rng.normal(size=(3, 6, 1, 1))
    moments = LayerMoments(weight=weight, root=inputs / np.sqrt(50), gain=None, sensitivity=np.array([1.0, 2.0, 3.0]))
    missing = inputs[:, 4:] @ weight[:, 4:, 0, 0].T

    errors = output_errors(moments, np.arange(4), DENSE)

    assert errors == pytest.approx(0.5 * np.array([1.0, 2.0, 3.0]) * np.square(missing).mean(axis=0))
    assert output_errors(moments, np.arange(6), DENSE) == pytest.approx(0.0)


@pytest.mark.parametrize("scheme", [HALF, WeightPruning(scheme=PruningScheme.GROUP, density=0.5, block_filters=4)])
def test_least_squares_makes_up_for_what_is_gone(scheme: WeightPruning) -> None:
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(400, 12)) @ rng.normal(size=(12, 12))
    moments = LayerMoments(weight=rng.normal(size=(8, 12, 1, 1)), root=inputs / 20.0, gain=None, sensitivity=np.ones(8))
    plain = output_errors(moments, np.arange(12), scheme)
    adapted = output_errors(moments, np.arange(12), scheme, least_squares=True)
    assert (adapted <= 1.01 * plain).all()
    assert adapted.sum() < 0.5 * plain.sum()


def test_tables_of_a_space_add_up_and_are_stored() -> None:
    torch.manual_seed(1)
    model = build_model("small_cnn", num_classes=2).eval()
    spec = trace_network(model, (1, 8, 8), "small_cnn")
    config = SpaceConfig(
        channels=ChannelsConfig(), weights=WeightsConfig(densities=(0.3, 0.6), schemes=("group:4x1", "unstructured"))
    )
    space = build_space(spec, config)

    estimates = estimate_errors(model, spec, space, images(), NORMALISE, lambda genomes: np.zeros(len(genomes)))

    rows = np.array([space.unpruned, space.smallest])
    assert evaluate(estimates.factors, rows)[0] == pytest.approx(0.0, abs=1e-12)
    assert evaluate(estimates.factors, rows)[1] > 0
    assert {v for f in estimates.factors for v in f.variables} == set(range(len(space.variables)))
    kinds = {frozenset(space.variables[v].kind for v in f.variables) for f in estimates.factors}
    assert frozenset({VariableKind.CHANNELS, VariableKind.DENSITY, VariableKind.SCHEME}) in kinds
    read = errors_from_json(errors_to_json(estimates))
    assert read.space_id == estimates.space_id
    assert evaluate(read.factors, rows) == pytest.approx(evaluate(estimates.factors, rows), rel=1e-4)
    with pytest.raises(ContractError, match="damaged"):
        errors_from_json(errors_to_json(estimates)[:-3])
