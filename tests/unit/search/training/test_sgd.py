"""Runs that stop at any step, and what regularisers may do to them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from search.data.loading import LoadedData, load_data
from search.domain.config import DatasetConfig
from search.evaluation import evaluate
from search.models.checkpoint import CheckpointError
from search.models.zoo import build_model
from search.pruning.apply import PrunedModel
from search.training.schedule import LearningRate
from search.training.sgd import EpochReport, SgdRun, SgdSettings, Watcher
from tests.unit.search.training.stopping import StopAfter, Stopped

SETTINGS = SgdSettings(
    epochs=1.4, batch_size=32, learning_rate=LearningRate(peak=0.05), weight_decay=1e-4, keeps_best_epoch=True
)


class Shrinking:
    """A regulariser that touches everything it may: it counts, pulls, and remembers what it saw."""

    def __init__(self, strength: float = 0.01) -> None:
        self._strength = strength
        self._counts = torch.zeros(3)
        self._memory = torch.zeros(0)

    def begin(self, model: nn.Module) -> None:
        self._memory = torch.zeros_like(model.conv2.weight)

    def add_gradients(self, model: nn.Module) -> None:
        self._counts[0] += 1
        model.conv2.weight.grad.add_(model.conv2.weight.detach() - self._memory, alpha=self._strength)

    def after_step(self, model: nn.Module, step: int) -> None:
        assert step == int(self._counts[1])
        self._counts[1] += 1
        self._memory.mul_(0.9).add_(model.conv2.weight.detach(), alpha=0.1)

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        assert epoch == int(self._counts[2])
        self._counts[2] += 1
        model.conv2.weight.data.mul_(0.5)

    def tensors(self) -> Mapping[str, Tensor]:
        return {"counts": self._counts, "memory": self._memory}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._counts, self._memory = tensors["counts"], tensors["memory"]

    def fingerprint(self) -> str:
        return f"shrinking {self._strength}"


@pytest.fixture(scope="module")
def data() -> LoadedData:
    return load_data(DatasetConfig(name="digits"), input_shape=(1, 8, 8), calibration_images=128)


@pytest.fixture(scope="module")
def fresh() -> PrunedModel:
    torch.manual_seed(0)
    model = build_model("small_cnn")
    # Dropout draws from torch's own generator, which must not depend on where a run was stopped.
    model.avgpool = nn.Sequential(model.avgpool, nn.Dropout(0.1))
    return PrunedModel(model=model, masks={}, kept={})


def test_a_run_killed_at_any_step_ends_with_the_same_bits(fresh: PrunedModel, data: LoadedData, tmp_path: Path) -> None:
    reports: list[EpochReport] = []
    whole = SgdRun(fresh, data, SETTINGS, 1, regulariser=Shrinking(), watcher=Watcher(on_epoch=reports.append)).finish()

    path, resumed_reports = tmp_path / "run.safetensors", []
    # In the first epoch, at its end, in the second, and once with work since the last checkpoint lost.
    for steps, interval_s in ((3, 0.0), (2, 3600.0), (1, 0.0), (45, 0.0), (2, 0.0)):
        watcher = Watcher(
            on_epoch=resumed_reports.append,
            on_step=StopAfter(steps),
            checkpoint_path=path,
            checkpoint_interval_s=interval_s,
        )
        with pytest.raises(Stopped):
            SgdRun(fresh, data, SETTINGS, 1, regulariser=Shrinking(), watcher=watcher).finish()
    watcher = Watcher(on_epoch=resumed_reports.append, checkpoint_path=path)
    resumed = SgdRun(fresh, data, SETTINGS, 1, regulariser=Shrinking(), watcher=watcher).finish()

    other = resumed.model.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in whole.model.state_dict().items())
    assert reports[-1].loss == resumed_reports[-1].loss
    assert reports[-1].holdout == resumed_reports[-1].holdout


def test_the_best_epoch_on_held_out_images_is_kept(fresh: PrunedModel, data: LoadedData) -> None:
    class Spoiling(Shrinking):
        def after_epoch(self, model: nn.Module, epoch: int) -> None:
            if epoch == 1:
                model.linear.weight.data.zero_()

    reports: list[EpochReport] = []
    run = SgdRun(fresh, data, SETTINGS, 1, regulariser=Spoiling(0.0), watcher=Watcher(on_epoch=reports.append))
    kept = run.finish()

    first, second = (r.holdout.accuracy for r in reports)
    assert first > second
    assert evaluate(kept.model, data.split.holdout, data.normalise).accuracy == first


def test_another_regulariser_does_not_take_the_checkpoint(fresh: PrunedModel, data: LoadedData, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    watcher = Watcher(on_step=StopAfter(2), checkpoint_path=path, checkpoint_interval_s=0.0)
    with pytest.raises(Stopped):
        SgdRun(fresh, data, SETTINGS, 1, regulariser=Shrinking(), watcher=watcher).finish()

    for other in (Shrinking(0.02), None):
        with pytest.raises(CheckpointError, match="another training run"):
            SgdRun(fresh, data, SETTINGS, 1, regulariser=other, watcher=Watcher(checkpoint_path=path))


def test_rates_rise_and_fall() -> None:
    rate = LearningRate(peak=0.256, warm_up=5 / 120, start=0.001)
    values = [rate.at(step, 1200) for step in range(1200)]

    assert values[0] == pytest.approx(0.001 + 0.255 / 50)
    assert max(values) == pytest.approx(0.256)
    assert values.index(max(values)) in (49, 50)
    assert values[-1] < 1e-5
    assert values[50:] == sorted(values[50:], reverse=True)
    assert {LearningRate(peak=0.005, is_cosine=False).at(step, 10) for step in range(10)} == {0.005}
