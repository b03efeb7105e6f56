from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from device_agent.contracts import PruningScheme, WeightPruning
from search.data.loading import LoadedData, load_data
from search.distillation import DistillationTeacher
from search.domain.config import DatasetConfig, TrainingConfig
from search.domain.space import Decisions
from search.evaluation import evaluate
from search.models.checkpoint import CheckpointError
from search.models.zoo import build_model
from search.pruning.apply import PrunedModel, apply_decisions
from search.pruning.trace import trace_network
from search.training.finetuning import finetune, train_from_scratch
from search.training.sgd import EpochReport, TrainingDiverged, Watcher

SETTINGS = TrainingConfig(epochs=2.0, batch_size=32, learning_rate=0.05)


@pytest.fixture(scope="module")
def data() -> LoadedData:
    return load_data(DatasetConfig(name="digits"), input_shape=(1, 8, 8), calibration_images=128)


@pytest.fixture(scope="module")
def trained(data: LoadedData) -> torch.nn.Module:
    return train_from_scratch(build_model("small_cnn"), data, 6, seeded(0))


@pytest.fixture(scope="module")
def pruned(trained: torch.nn.Module) -> PrunedModel:
    spec = trace_network(trained, (1, 8, 8), "small_cnn")
    group = WeightPruning(scheme=PruningScheme.GROUP, density=0.25, block_filters=4)
    decisions = Decisions(channels={"conv4": 32}, pruning=dict.fromkeys(("conv2", "conv3", "conv4", "conv5"), group))
    return apply_decisions(trained, spec, decisions)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def states_equal(first: PrunedModel, second: PrunedModel) -> bool:
    other = second.model.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in first.model.state_dict().items())


def test_learns_the_digits_from_scratch(trained: torch.nn.Module, data: LoadedData) -> None:
    assert evaluate(trained, data.split.test, data.normalise).accuracy > 0.9


def test_fine_tuning_recovers_accuracy_and_holds_the_zeros(pruned: PrunedModel, data: LoadedData) -> None:
    before = evaluate(pruned.model, data.split.test, data.normalise)
    original = {name: tensor.clone() for name, tensor in pruned.model.state_dict().items()}
    reports: list[EpochReport] = []

    tuned = finetune(pruned, data, SETTINGS, seeded(0), watcher=Watcher(on_epoch=reports.append))

    assert evaluate(tuned.model, data.split.test, data.normalise).accuracy > max(0.85, before.accuracy)
    for name, mask in tuned.masks.items():
        weight = tuned.model.get_submodule(name).weight
        assert not weight[~mask].any()
        assert weight[mask].all()
    assert [r.epoch for r in reports] == [1, 2]
    assert reports[1].loss < reports[0].loss
    assert all(torch.equal(pruned.model.state_dict()[name], tensor) for name, tensor in original.items())
    assert not tuned.model.training


def test_equal_seeds_give_equal_networks(pruned: PrunedModel, data: LoadedData) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=0.5)
    runs = [finetune(pruned, data, settings, seeded(seed)) for seed in (1, 1, 2)]

    assert states_equal(runs[0], runs[1])
    assert not states_equal(runs[0], runs[2])


class Stopped(Exception):
    pass


def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    pruned: PrunedModel, trained: torch.nn.Module, data: LoadedData, tmp_path: Path
) -> None:
    path = tmp_path / "run.safetensors"
    settings = dataclasses.replace(SETTINGS, epochs=1.5)

    def stop(report: EpochReport) -> None:
        raise Stopped

    whole = finetune(pruned, data, settings, seeded(3), teacher=DistillationTeacher(trained, data))
    with pytest.raises(Stopped):
        finetune(
            pruned,
            data,
            settings,
            seeded(3),
            teacher=DistillationTeacher(trained, data),
            watcher=Watcher(on_epoch=stop, checkpoint_path=path),
        )
    reports: list[EpochReport] = []
    resumed = finetune(
        pruned,
        data,
        settings,
        seeded(3),
        teacher=DistillationTeacher(trained, data),
        watcher=Watcher(on_epoch=reports.append, checkpoint_path=path),
    )

    assert [r.epoch for r in reports] == [2]
    assert states_equal(whole, resumed)
    again = finetune(
        pruned,
        data,
        settings,
        seeded(3),
        teacher=DistillationTeacher(trained, data),
        watcher=Watcher(checkpoint_path=path),
    )
    assert states_equal(whole, again)


def test_refuses_the_checkpoint_of_another_run(pruned: PrunedModel, data: LoadedData, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    settings = dataclasses.replace(SETTINGS, epochs=0.2)
    finetune(pruned, data, settings, seeded(3), watcher=Watcher(checkpoint_path=path))

    with pytest.raises(CheckpointError, match="another training run"):
        finetune(pruned, data, settings, seeded(4), watcher=Watcher(checkpoint_path=path))
    path.write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="no readable safetensors file"):
        finetune(pruned, data, settings, seeded(3), watcher=Watcher(checkpoint_path=path))


def test_a_teachers_outputs_are_computed_once(pruned: PrunedModel, trained: torch.nn.Module, data: LoadedData) -> None:
    calls = 0

    def count(module: torch.nn.Module, inputs: object, output: object) -> None:
        nonlocal calls
        calls += 1

    counted = build_model("small_cnn")
    counted.load_state_dict(trained.state_dict())
    counted.register_forward_hook(count)
    teacher = DistillationTeacher(counted, data)
    settings = dataclasses.replace(SETTINGS, epochs=0.3)

    first = finetune(pruned, data, settings, seeded(5), teacher=teacher)
    steps = calls
    second = finetune(pruned, data, settings, seeded(5), teacher=teacher)

    assert steps > 0
    assert calls == steps
    assert states_equal(first, second)
    assert not states_equal(first, finetune(pruned, data, settings, seeded(5)))


def test_without_epochs_only_batch_norm_is_adapted(pruned: PrunedModel, data: LoadedData) -> None:
    adapted = finetune(pruned, data, dataclasses.replace(SETTINGS, epochs=0.0), seeded(0))

    before, after = pruned.model.state_dict(), adapted.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("running_" in name or "num_batches" in name for name in changed)


def test_a_loss_that_explodes_is_an_error(pruned: PrunedModel, data: LoadedData) -> None:
    with pytest.raises(TrainingDiverged, match=r"learning_rate 1e\+20"):
        finetune(pruned, data, dataclasses.replace(SETTINGS, learning_rate=1e20), seeded(0))


def test_a_teacher_belongs_to_its_data(pruned: PrunedModel, trained: torch.nn.Module, data: LoadedData) -> None:
    with pytest.raises(ValueError, match="other data"):
        finetune(
            pruned,
            dataclasses.replace(data),
            SETTINGS,
            seeded(0),
            teacher=DistillationTeacher(trained, data),
        )
