from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from device_agent.contracts import ContractError, PruningScheme, WeightPruning
from search.accuracy.one_shot import OneShotEstimator
from search.data.batches import Normalisation, network_input
from search.data.dataset import DataError, ImageData
from search.domain.space import Decisions
from search.evaluation import evaluate, recalibrate_batch_norm
from search.models.zoo import build_model
from search.pruning.trace import trace_network

NORMALISE = Normalisation(mean=(0.5,), std=(0.25,))


def random_images(count: int, seed: int = 0) -> ImageData:
    """Bright and dark noise, in two classes."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, count)
    images = generator.integers(0, 128, (count, 8, 8, 1)) + 127 * labels[:, None, None, None]
    return ImageData(images=images.astype(np.uint8), labels=labels.astype(np.int64), class_names=("dark", "bright"))


class Brightness(nn.Module):
    """Says bright where the normalised mean is positive."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([-8 * mean, 8 * mean], 1)


def test_evaluates_accuracy_and_mean_loss() -> None:
    data = random_images(50)
    wrong = data.labels.copy()
    wrong[:10] = 1 - wrong[:10]
    mislabelled = dataclasses.replace(data, labels=wrong)

    right = evaluate(Brightness(), data, NORMALISE, batch_size=16)
    mixed = evaluate(Brightness(), mislabelled, NORMALISE, batch_size=16)

    assert right.accuracy == 1.0
    assert right.loss < 0.01
    assert mixed.accuracy == pytest.approx(0.8)
    assert evaluate(Brightness(), mislabelled, NORMALISE, batch_size=50).loss == pytest.approx(mixed.loss, rel=1e-5)


def test_evaluating_restores_each_modules_mode() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), Brightness()).train()
    model[0].eval()

    evaluate(model, random_images(4), NORMALISE)

    assert model.training
    assert not model[0].training


def test_batch_norm_takes_the_plain_mean_over_batches() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1, momentum=0.3))
    norm = model[0]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.running_mean.fill_(100.0)
    images = torch.from_numpy(random_images(60).images)
    batches = [network_input(b, NORMALISE) for b in images.split(20)]

    recalibrate_batch_norm(model.eval(), images, NORMALISE, resolution=None, batch_size=29)

    assert norm.running_mean.item() == pytest.approx(np.mean([b.mean().item() for b in batches]), rel=1e-3)
    assert norm.running_var.item() == pytest.approx(np.mean([b.var().item() for b in batches]), rel=1e-3)
    assert norm.momentum == 0.3
    assert not norm.training


@pytest.fixture(scope="module")
def estimator() -> OneShotEstimator:
    model = build_model("small_cnn", num_classes=2)
    spec = trace_network(model, (1, 8, 8), "small_cnn")
    return OneShotEstimator(model, spec, random_images(64, 1), random_images(100, 2), NORMALISE, batch_size=32)


def test_equal_decisions_get_equal_estimates(estimator: OneShotEstimator) -> None:
    pruning = WeightPruning(scheme=PruningScheme.GROUP, density=0.5, block_filters=4)
    decisions = Decisions(channels={"conv4": 20}, pruning={"conv2": pruning})

    (first,) = estimator.estimate([decisions])
    (dense,) = estimator.estimate([Decisions()])

    assert estimator.estimate([Decisions(), decisions]) == (dense, first)
    assert first != dense
    assert 0.0 <= first.accuracy <= 1.0
    assert first.loss > 0


def test_estimates_at_another_resolution(estimator: OneShotEstimator) -> None:
    assert estimator.estimate([Decisions(resolution=6)]) != estimator.estimate([Decisions()])


def test_refuses_what_does_not_fit(estimator: OneShotEstimator) -> None:
    wrong, right = estimator.estimate([Decisions(channels={"conv9": 2}), Decisions()])
    assert wrong.failure is not None
    assert "conv9" in wrong.failure
    assert right.failure is None
    model = build_model("small_cnn")
    spec = trace_network(model, (1, 8, 8), "small_cnn")
    colour = Normalisation(mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(DataError, match="3 channels"):
        OneShotEstimator(model, spec, random_images(4), random_images(4), colour)
    with pytest.raises(ContractError, match="batch_size 0"):
        OneShotEstimator(model, spec, random_images(4), random_images(4), NORMALISE, batch_size=0)
