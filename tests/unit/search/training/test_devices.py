"""Networks run and are trained on a device that is not the processor, and come to the same."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from device_agent.contracts import ContractError, PruningScheme, WeightPruning
from search.accuracy.one_shot import OneShotEstimator
from search.compute import CPU, device_of, gpu
from search.data.batches import as_tensors
from search.data.loading import LoadedData, load_data
from search.domain.config import DatasetConfig, Regime, TrainingConfig
from search.domain.network import NetworkSpec
from search.domain.space import Decisions
from search.evaluation import evaluate, recalibrate_batch_norm
from search.models.zoo import build_model
from search.pruning.apply import PrunedModel
from search.pruning.trace import trace_network
from search.training.regimes import CandidateTrainer
from search.training.sgd import Watcher
from tests.unit.search.training.elsewhere import ELSEWHERE, elsewhere
from tests.unit.search.training.stopping import StopAfter, Stopped

GROUP = WeightPruning(scheme=PruningScheme.GROUP, density=0.5, block_filters=4)
DECISIONS = Decisions(channels={"conv4": 24}, pruning={"conv2": GROUP, "conv5": GROUP})
SETTINGS = {
    "distilled": TrainingConfig(epochs=0.5, batch_size=64, learning_rate=0.05, distillation=0.5),
    "jcw": TrainingConfig(regime=Regime.JCW, batch_size=64, schedule_factor=0.004),
}


@pytest.fixture(scope="module")
def data() -> LoadedData:
    return load_data(DatasetConfig(name="digits"), input_shape=(1, 8, 8), calibration_images=128)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return build_model("small_cnn")


@pytest.fixture(scope="module")
def spec(model: nn.Module) -> NetworkSpec:
    return trace_network(model, (1, 8, 8), "small_cnn")


def test_tensors_that_are_apart_are_found() -> None:
    with elsewhere(), pytest.raises(RuntimeError, match="tensors are on meta and on cpu"):
        torch.ones(2).to(ELSEWHERE) + torch.ones(2)


def test_networks_run_where_their_weights_are(model: nn.Module, data: LoadedData) -> None:
    here, there = copy.deepcopy(model), copy.deepcopy(model)
    images, _ = as_tensors(data.split.calibration)
    judged = []
    with elsewhere():
        there.to(ELSEWHERE)
        for network in (here, there):
            recalibrate_batch_norm(network, images, data.normalise, resolution=6, batch_size=64)
            judged.append(evaluate(network, data.split.holdout, data.normalise))
        assert device_of(there) == ELSEWHERE
    assert device_of(here) == device_of(nn.ReLU()) == CPU
    assert judged[0] == judged[1]


def test_candidates_are_judged_there_as_here(model: nn.Module, spec: NetworkSpec, data: LoadedData) -> None:
    split = data.split

    def estimate(device: torch.device) -> object:
        estimator = OneShotEstimator(model, spec, split.calibration, split.holdout, data.normalise, device=device)
        return estimator.estimate([DECISIONS])

    with elsewhere() as used:
        there = estimate(ELSEWHERE)
    assert used["convolution"] > 0
    assert there == estimate(CPU)
    assert device_of(model) == CPU


# It believes that nothing can be copied into weights of "meta".
@pytest.mark.filterwarnings("ignore:for .* which is a no-op")
# JCW is stopped where it learns with ADMM.
@pytest.mark.parametrize(("regime", "steps"), [("distilled", 3), ("jcw", 11)])
def test_a_training_goes_from_one_device_to_the_other_and_ends_on_the_same_bits(
    regime: str, steps: int, model: nn.Module, spec: NetworkSpec, data: LoadedData, tmp_path: Path
) -> None:
    def train(device: torch.device, watcher: Watcher) -> PrunedModel:
        trainer = CandidateTrainer(model, spec, data, SETTINGS[regime], 0, lambda line: None, device=device)
        return trainer.train(DECISIONS, watcher)

    def stopping(after: int) -> Watcher:
        path = tmp_path / "run"
        return Watcher(on_step=StopAfter(after), checkpoint_path=path, checkpoint_interval_s=0.0)

    whole = train(CPU, Watcher())
    with elsewhere() as used:
        with pytest.raises(Stopped):
            train(ELSEWHERE, stopping(steps))
        assert used["convolution_backward"] > 0
    with pytest.raises(Stopped):
        train(CPU, stopping(1))
    with elsewhere():
        trained = train(ELSEWHERE, stopping(1000))
    found = trained.model.state_dict()
    for name, tensor in whole.model.state_dict().items():
        assert found[name].device == CPU
        assert torch.equal(found[name], tensor), name
    assert trained.masks.keys() == whole.masks.keys() != set()
    assert all(torch.equal(trained.masks[name], mask) for name, mask in whole.masks.items())


def test_a_machine_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ContractError, match=r"torch .* sees none in this process.*set KERF_EVALUATOR_GPUS to 0"):
        gpu()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu() == torch.device("cuda", 0)
