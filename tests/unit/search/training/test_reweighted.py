"""Reweighted regularisation: its gradient, its milestones, and that a run which stops goes on with the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from device_agent.contracts import PruningScheme, WeightPruning
from search.data.loading import LoadedData, load_data
from search.domain.config import DatasetConfig, TrainingConfig
from search.models.zoo import build_model
from search.pruning.apply import PrunedModel
from search.training.finetuning import finetune
from search.training.reweighted import EPSILON, ReweightedRegulariser, group_norms, group_scores
from search.training.sgd import Watcher

GROUP = WeightPruning(scheme=PruningScheme.GROUP, density=0.5, block_filters=4)
PUNCHED = WeightPruning(scheme=PruningScheme.BLOCK_PUNCHED, density=0.5, block_filters=4, block_channels=3)
PATTERN = WeightPruning(scheme=PruningScheme.PATTERN, density=0.4, block_filters=2, pattern_entries=4)
BLOCK = WeightPruning(scheme=PruningScheme.BLOCK, density=0.5, block_filters=4, block_channels=3)


@pytest.fixture(scope="module")
def data() -> LoadedData:
    return load_data(DatasetConfig(name="digits"), input_shape=(1, 8, 8), calibration_images=64)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(5, 6, 3), nn.Flatten(), nn.Linear(7, 10))


@pytest.mark.parametrize("pruning", [GROUP, PUNCHED, PATTERN, WeightPruning(scheme=PruningScheme.UNSTRUCTURED)])
def test_the_pull_is_the_gradient_of_the_penalty(pruning: WeightPruning) -> None:
    check_gradient("0", pruning, 0.3)


def test_rows_and_columns_of_blocks_are_pulled_together() -> None:
    check_gradient("2", BLOCK, 0.3)


def check_gradient(name: str, pruning: WeightPruning, strength: float) -> None:
    model = network()
    weight = model.get_submodule(name).weight
    with torch.no_grad():  # away from zero, where the pull is bounded
        weight.add_(0.05 * weight.sign())
    regulariser = ReweightedRegulariser({name: pruning}, strength, 4)
    regulariser.begin(model)
    weight.grad = torch.zeros_like(weight)
    regulariser.add_gradients(model)

    def penalty(values: torch.Tensor) -> torch.Tensor:
        shaped = values if values.ndim == 4 else values[:, :, None, None]
        filters, channels = pruning.block_filters, pruning.block_channels
        shapes = [(filters, 1), (1, channels)] if pruning.scheme is PruningScheme.BLOCK else [(filters, channels)]
        total = torch.zeros(())
        for height, width in shapes:
            for rows in shaped.split(height, 0):
                for block in rows.split(width, 1):
                    positions = [block] if pruning.scheme is PruningScheme.PATTERN else block.flatten(2).unbind(2)
                    for group in positions:
                        norm = group.norm()
                        total = total + norm / (norm.detach() + EPSILON)
        return strength * total

    copy = weight.detach().clone().requires_grad_()
    penalty(copy).backward()
    torch.testing.assert_close(weight.grad, copy.grad, rtol=1e-4, atol=1e-6)


def test_vanished_groups_are_pulled_within_bounds() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[:4] = 0.0
        model[0].weight[4:] = 1e-7
    regulariser = ReweightedRegulariser({"0": GROUP}, 1.0, 4)
    regulariser.begin(model)
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    regulariser.add_gradients(model)
    assert not model[0].weight.grad[:4].any()
    assert torch.isfinite(model[0].weight.grad).all()
    assert model[0].weight.grad.abs().max() <= 100.0


def test_weights_of_groups_are_set_anew_at_milestones() -> None:
    model = network()
    regulariser = ReweightedRegulariser({"0": GROUP}, 1.0, 10)
    regulariser.begin(model)
    first = regulariser.tensors()["0.groups"].clone()
    with torch.no_grad():
        model[0].weight.mul_(2.0)
    regulariser.after_epoch(model, 0)
    assert torch.equal(regulariser.tensors()["0.groups"], first)
    regulariser.after_epoch(model, 1)  # a fifth of ten epochs
    expected = 1.0 / (group_norms(model[0].weight, GROUP)["groups"] + EPSILON)
    torch.testing.assert_close(regulariser.tensors()["0.groups"], expected)


def test_scores_are_root_mean_squares_of_groups() -> None:
    model = network()
    scores = group_scores(model, {"0": GROUP, "2": BLOCK})
    weight = model[0].weight.detach().numpy()
    np.testing.assert_allclose(
        scores["0"].reshape(weight.shape)[:4, 2, 1, 1], np.sqrt((weight[:4, 2, 1, 1] ** 2).mean())
    )
    np.testing.assert_allclose(
        scores["0"].reshape(weight.shape)[4:, 2, 1, 1], np.sqrt((weight[4:, 2, 1, 1] ** 2).mean())
    )
    linear = model[2].weight.detach().numpy()
    column, row = np.sqrt((linear[:4, 3] ** 2).mean()), np.sqrt((linear[1, 3:6] ** 2).mean())
    assert scores["2"].reshape(linear.shape)[1, 3] == pytest.approx(min(column, row), rel=1e-5)


def test_groups_part_and_a_run_goes_on_with_the_same_bits(data: LoadedData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model("small_cnn")
    settings = TrainingConfig(epochs=2, batch_size=64, learning_rate=0.02, distillation=0.0)
    names = ("conv3", "conv4", "conv5")

    class Stopped(Exception):
        pass

    def train(strength: float, watcher: Watcher | None = None) -> nn.Module:
        regulariser = ReweightedRegulariser(dict.fromkeys(names, GROUP), strength, settings.epochs)
        dense = PrunedModel(model=model, masks={}, kept={})
        generator = torch.Generator().manual_seed(1)
        return finetune(dense, data, settings, generator, regulariser=regulariser, watcher=watcher).model

    steps = 0

    def stop() -> None:
        nonlocal steps
        steps += 1
        if steps == 25:  # inside the second epoch, after the first milestone
            raise Stopped

    whole = train(1e-2)
    path = tmp_path / "run.safetensors"
    with pytest.raises(Stopped):
        train(1e-2, Watcher(on_step=stop, checkpoint_path=path, checkpoint_interval_s=0.0))
    resumed = train(1e-2, Watcher(checkpoint_path=path))
    for first, second in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(first, second)

    def weak_part(trained: nn.Module) -> float:
        norms = group_norms(trained.get_submodule("conv5").weight, GROUP)["groups"]
        return float((norms < 0.1 * norms.max()).float().mean())

    assert weak_part(whole) > weak_part(train(1e-9)) + 0.2
