"""Estimated errors of pruned layers against what pruning really does to their outputs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
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
from search.reconstruction import loss_growth
from search.reconstruction.estimates import errors_from_json, errors_to_json, estimate_errors
from search.reconstruction.layer_errors import output_change
from search.reconstruction.loss_growth import LayerChanges, loss_growths
from search.reconstruction.moments import BATCH_SIZE, LayerMoments, layer_moments
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
    handle = model.get_submodule(layer).register_forward_hook(lambda m, i, o: found.append(o.clone()))
    model(network_input(as_tensors(images())[0], NORMALISE))
    handle.remove()
    return found[0].numpy().astype(np.float64)


def changed_outputs(moments: LayerMoments, change: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """What `change` makes of a layer's inputs (n, c, h, w), for a kernel of 3 x 3 with padding."""
    patches = F.unfold(torch.from_numpy(inputs), 3, padding=1).numpy()
    positions = (len(inputs), -1, *inputs.shape[2:])
    return np.einsum("od,ndp->nop", change, patches - moments.mean[:, None]).reshape(positions)


def without_channels(network: TwoLayers, removed: list[int]) -> nn.Module:
    found = copy.deepcopy(network)
    with torch.no_grad():
        found.conv2.weight[:, removed] = 0.0
    return found


@pytest.mark.parametrize("is_sparse", [True, False])
def test_the_change_is_what_is_left_after_batch_norm_is_recalibrated(network: TwoLayers, is_sparse: bool) -> None:
    spec = trace_network(network, (1, 8, 8), "two")
    moments = layer_moments(network, spec, images(), NORMALISE)["conv2"]
    if is_sparse:
        pruned = apply_decisions(network, spec, Decisions(pruning={"conv2": HALF})).model
        change = output_change(moments, np.arange(6), HALF)
    else:
        pruned = without_channels(network, [1, 4])
        change = output_change(moments, np.array([0, 2, 3, 5]), DENSE)
    recalibrate_batch_norm(pruned, as_tensors(images())[0], NORMALISE, resolution=None, batch_size=200)

    difference = outputs_of(pruned, "norm2") - outputs_of(network, "norm2")

    expected = changed_outputs(moments, change, np.maximum(outputs_of(network, "norm"), 0.0))
    assert expected == pytest.approx(difference, abs=0.03 * np.abs(difference).max())


def test_without_batch_norm_it_is_the_plain_change_of_weights() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 6, 1, 1))
    moments = LayerMoments(weight=weight, mean=np.zeros(6), root=rng.normal(size=(50, 6)), gain=None)
    missing = -weight[:, :, 0, 0]
    missing[:, :4] = 0.0

    assert output_change(moments, np.arange(4), DENSE) == pytest.approx(missing)
    assert output_change(moments, np.arange(6), DENSE) == pytest.approx(0.0)


@pytest.mark.parametrize("scheme", [HALF, WeightPruning(scheme=PruningScheme.GROUP, density=0.5, block_filters=4)])
def test_least_squares_makes_up_for_what_is_gone(scheme: WeightPruning) -> None:
    rng = np.random.default_rng(1)
    root = rng.normal(size=(400, 12)) @ rng.normal(size=(12, 12)) / 20.0
    moments = LayerMoments(weight=rng.normal(size=(8, 12, 1, 1)), mean=np.zeros(12), root=root, gain=None)
    plain, adapted = (
        np.square(output_change(moments, np.arange(12), scheme, least_squares=adapt) @ root.T).sum(axis=1)
        for adapt in (False, True)
    )
    assert (adapted <= 1.01 * plain).all()
    assert adapted.sum() < 0.5 * plain.sum()


@pytest.mark.parametrize("operator", ["conv2", "linear"])
def test_the_growth_of_the_loss_is_that_of_all_outputs_and_positions_together(
    network: TwoLayers, operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One change at a time in memory, and gradients in pieces of an image.
    monkeypatch.setattr(loss_growth, "_CHANGE_BYTES", 1)
    monkeypatch.setattr(loss_growth, "_GRADIENT_BYTES", 1)
    spec = trace_network(network, (1, 8, 8), "two")
    moments = layer_moments(network, spec, images(), NORMALISE)[operator]
    rng = np.random.default_rng(0)
    shape = moments.weight.reshape(len(moments.weight), -1).shape
    changes = [rng.normal(size=shape) for _ in range(3)]
    kept = [np.arange(shape[0]), np.array([1])]

    found = loss_growths(
        network,
        spec,
        images(),
        NORMALISE,
        {operator: LayerChanges(make=lambda: iter(changes), mean=moments.mean, kept_outputs=kept)},
    )

    expected = [[growth_by_slope(network, moments, operator, change, k) for k in kept] for change in changes]
    assert found[operator] == pytest.approx(np.array(expected), rel=1e-3)


def growth_by_slope(
    network: TwoLayers, moments: LayerMoments, operator: str, change: np.ndarray, kept: np.ndarray
) -> float:
    """Half of the mean square of the loss's slope along the change, image by image, with `loss_growths`' labels."""
    step = torch.zeros((), dtype=torch.float64, requires_grad=True)
    model = copy.deepcopy(network).double()
    direction = np.zeros_like(change)
    direction[kept] = change[kept]

    def along(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if operator == "linear":
            return output + step * (inputs[0] @ torch.from_numpy(direction).T)
        moved = changed_outputs(moments, direction, seen[0].detach().numpy())
        return output + step * torch.from_numpy(moved)

    seen: list[Tensor] = []
    model.conv2.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.get_submodule("linear" if operator == "linear" else "norm2").register_forward_hook(along)
    generator = torch.Generator().manual_seed(0)
    squares = 0.0
    for batch in torch.split(as_tensors(images())[0], BATCH_SIZE):
        x = network_input(batch, NORMALISE)
        labels = torch.multinomial(network(x).softmax(1), 1, generator=generator)[:, 0]
        for image, label in zip(x, labels, strict=True):
            seen.clear()
            loss = F.cross_entropy(model(image[None].double()), label[None])
            squares += float(torch.autograd.grad(loss, step)[0]) ** 2
    return 0.5 * squares / len(images())


class Branches(nn.Module):
    """Two branches side by side, read by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(1, 4, 1)
        self.both = nn.Conv2d(10, 8, 3, padding=1)
        self.linear = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.both(torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)))
        return self.linear(x.mean((2, 3)))


def test_a_layer_that_reads_two_groups_has_a_table_for_each() -> None:
    torch.manual_seed(2)
    model = Branches().eval()
    spec = trace_network(model, (1, 8, 8), "branches")
    config = SpaceConfig(
        channels=ChannelsConfig(multiple_of=1),
        weights=WeightsConfig(densities=(0.3, 0.6), schemes=("group:4x1", "unstructured")),
    )
    space = build_space(spec, config)
    places = {(v.kind, v.target): p for p, v in enumerate(space.variables)}
    left, right, outputs = (places[VariableKind.CHANNELS, name] for name in ("left", "right", "both"))

    estimates = estimate_errors(model, spec, space, images(), NORMALISE, lambda genomes: np.zeros(len(genomes)))

    by_variables = {f.variables: f.values for f in estimates.factors}
    own = [places[kind, "both"] for kind in (VariableKind.DENSITY, VariableKind.SCHEME)]
    assert {tuple(sorted((left, outputs))), tuple(sorted((right, outputs)))} < set(by_variables)
    assert tuple(sorted((outputs, *own))) in by_variables
    # The error of the first branch's channels is that of the network where they alone are missing.
    moments = layer_moments(model, spec, images(), NORMALISE)["both"]
    kept = apply_decisions(model, spec, Decisions(channels={"left": int(space.variables[left].choices[0])})).kept
    change = output_change(moments, np.concatenate((kept["left"], np.arange(6, 10))), DENSE)
    changes = LayerChanges(make=lambda: iter([change]), mean=moments.mean, kept_outputs=[np.arange(8)])
    expected = loss_growths(model, spec, images(), NORMALISE, {"both": changes})["both"][0, 0]
    table = by_variables[tuple(sorted((left, outputs)))]
    assert (table if left < outputs else table.T)[0, -1] == pytest.approx(expected, rel=1e-6)
    assert expected > 0
    assert evaluate(estimates.factors, np.array([space.unpruned]))[0] == pytest.approx(0.0, abs=1e-12)


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
