"""The supernet of a generation: reproducible, discarded, and of some use in ranking."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from torch import nn

from device_agent.contracts import ContractError, PruningScheme, WeightPruning
from search.accuracy.supernet import SupernetEstimator
from search.data.loading import LoadedData, load_data
from search.domain.config import DatasetConfig
from search.domain.network import NetworkSpec
from search.domain.space import Decisions
from search.models.zoo import build_model
from search.pruning.fold import to_plan_tensors
from search.pruning.trace import trace_network


@pytest.fixture(scope="module")
def data() -> LoadedData:
    return load_data(DatasetConfig(name="digits", holdout_fraction=0.3), input_shape=(1, 8, 8), calibration_images=256)


@pytest.fixture(scope="module")
def traced_cnn() -> tuple[nn.Module, NetworkSpec]:
    model = build_model("small_cnn")
    return model, trace_network(model, (1, 8, 8), "small_cnn")


def estimator(cnn: tuple[nn.Module, NetworkSpec], data: LoadedData, seed: int = 0, factor: float = 0.1):
    return SupernetEstimator(*cnn, data, data.split.holdout, seed=seed, schedule_factor=factor, batch_size=64)


def candidate(width: float, density: float) -> Decisions:
    """Every group at `width` of its channels, every 3x3 convolution but the first at `density`."""
    pruning = (
        WeightPruning()
        if density == 1.0
        else WeightPruning(scheme=PruningScheme.GROUP, density=density, block_filters=4)
    )
    widths = {"conv1": 16, "conv2": 32, "conv4": 64, "conv5": 64}
    return Decisions(
        channels={name: max(4, int(width * count)) for name, count in widths.items()},
        pruning=dict.fromkeys(("conv2", "conv3", "conv4", "conv5"), pruning),
    )


def test_scores_follow_from_seed_and_generation_alone(
    traced_cnn: tuple[nn.Module, NetworkSpec], data: LoadedData
) -> None:
    candidates = [candidate(0.5, 0.4), candidate(1.0, 1.0), candidate(0.5, 1.0)]
    scorer = estimator(traced_cnn, data, factor=0.01)

    told: list[tuple[int, int]] = []
    first = scorer.estimate_generation(candidates, 3, on_progress=lambda done, total: told.append((done, total)))
    assert told == [(step, len(told)) for step in range(1, len(told) + 1)]
    other = scorer.estimate_generation(candidates, 4)
    torch.manual_seed(17)
    again = estimator(traced_cnn, data, factor=0.01).estimate_generation(candidates, 3)

    assert first == again
    assert scorer.estimate_generation(candidates, 3) == first
    assert first != other
    assert first != estimator(traced_cnn, data, seed=1, factor=0.01).estimate_generation(candidates, 3)


def test_ranks_candidates_by_what_they_can_learn(traced_cnn: tuple[nn.Module, NetworkSpec], data: LoadedData) -> None:
    candidates = [candidate(w, d) for w in (0.15, 0.4, 1.0) for d in (0.1, 0.4, 1.0)]
    losses = [e.loss for e in estimator(traced_cnn, data, factor=0.3).estimate_generation(candidates, 0)]

    assert min(losses) < 0.95 * np.log(10)
    kept = [w * w * d for w in (0.15, 0.4, 1.0) for d in (0.1, 0.4, 1.0)]
    assert kendalltau(kept, losses).statistic < -0.6


def test_an_extracted_candidate_has_the_plan_of_its_decisions(
    traced_cnn: tuple[nn.Module, NetworkSpec], data: LoadedData
) -> None:
    decisions = candidate(0.5, 0.3)
    pruned = estimator(traced_cnn, data).extracted(decisions)
    _, tensors = to_plan_tensors(pruned, traced_cnn[1], decisions)
    assert tensors["conv4.weight"].shape == (32, 16, 3, 3)


def test_it_can_be_interrupted_between_steps(traced_cnn: tuple[nn.Module, NetworkSpec], data: LoadedData) -> None:
    class Interrupted(Exception):
        pass

    calls = 0

    def interrupt() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        estimator(traced_cnn, data).estimate_generation([candidate(1.0, 1.0)], 0, interrupt)


def test_decisions_that_do_not_fit_are_refused_at_once(
    traced_cnn: tuple[nn.Module, NetworkSpec], data: LoadedData
) -> None:
    with pytest.raises(ContractError, match="no pruning group 'conv9'"):
        estimator(traced_cnn, data).estimate_generation([Decisions(channels={"conv9": 4})], 0)
