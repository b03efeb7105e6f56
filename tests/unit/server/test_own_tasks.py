"""A task of a package, `examples/segmentation`: its network is searched, trained, exported, judged by its metric."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.numpy import load as load_tensors
from torch import Tensor

from device_agent.contracts import ContractError, NetworkPlan, decode, encode
from device_agent.runtimes.reference import run_network
from device_agent.synthesis import synthesize_input
from search.data.dataset import DataError
from search.domain.config import (
    ChannelsConfig,
    DatasetConfig,
    ModelConfig,
    ResolutionConfig,
    SearchConfig,
    SpaceConfig,
    TrainingConfig,
    WeightsConfig,
    parse_config,
)
from search.domain.result import SearchResult
from search.tasks.own import OwnTask, TaskError, load_task
from server.cli.output import print_front
from server.context import TOKEN_COOKIE
from tests.unit.device_agent.formats.test_tflite_format import run_model
from tests.unit.server.server_lab import ServerLab
from tests.unit.server.test_datasets import stored_file
from tests.unit.server.worker_lab import Kill, WorkerLab, quick_search

EXAMPLE = Path(__file__).parents[3] / "examples" / "segmentation"
TASK = "shapes-segmentation"


def announce(folder: Path, points: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What installing a package leaves behind."""
    info = folder / f"{folder.name}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {folder.name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[kerf.tasks]\n{points}\n")
    monkeypatch.syspath_prepend(str(folder))


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example as if it were installed."""
    announce(tmp_path / "site", f"{TASK} = shapes_segmentation:ShapesSegmentation", monkeypatch)
    monkeypatch.syspath_prepend(str(EXAMPLE))
    return importlib.import_module("shapes_segmentation")


def shapes_search(lab: ServerLab, folder: Path, **dataset: Any) -> SearchConfig:
    settings = {"mean": (0.3,), "std": (0.2,), "flip": False, "crop_padding": 0, "holdout_fraction": 0.25, **dataset}
    return quick_search(
        "shapes",
        task=TASK,
        space=SpaceConfig(
            channels=ChannelsConfig(min_ratio=0.5, multiple_of=4), weights=WeightsConfig(densities=(0.5, 1.0))
        ),
        training=TrainingConfig(epochs=10, batch_size=16, learning_rate=0.05, distillation=0.0),
        model=ModelConfig(network=stored_file(lab, folder / "shapes.kerf")),
        dataset=DatasetConfig(name="shapes", train=stored_file(lab, folder / "shapes.npz"), **settings),
    )


def test_the_example_is_what_it_says() -> None:
    config = parse_config(yaml.safe_load((EXAMPLE / "search.yaml").read_text()))
    assert config.task == config.name == TASK
    points = (EXAMPLE / "pyproject.toml").read_text()
    assert f'{TASK} = "shapes_segmentation:ShapesSegmentation"' in points


def test_a_segmentation_network_is_searched_trained_and_exported(
    sqlite_lab: ServerLab, example: ModuleType, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    example.write(tmp_path, images=300, epochs=16)
    torch.set_num_threads(threads)
    worker = WorkerLab(sqlite_lab)

    search_id = worker.done(shapes_search(sqlite_lab, tmp_path), Kill(steps=2))

    _, front = worker.outcome(search_id)
    result = worker.get(f"/v1/searches/{search_id}/result")
    assert result["data"]["metric"] == "mean IoU"
    assert (result["data"]["class_names"], result["data"]["num_test"]) == ([], 60)
    # Predicting the ground everywhere gives about 0.27.
    assert result["baseline"]["accuracy"] > 0.6
    assert front[0]["accuracy"] > 0.5
    low, high = front[0]["accuracy_ci95"]
    assert low < front[0]["accuracy"] < high
    assert any("mean IoU" in text and "on the test set" in text for text in worker.messages(search_id))
    # The files compute the same map, whole.
    files = {name: sqlite_lab.get(f"/v1/artifacts/sha256/{sha}").content for name, sha in front[0]["files"].items()}
    plan = decode(NetworkPlan, json.loads(files["plan.json"]))
    x = synthesize_input(plan.input_shape, 3)
    expected = run_network(plan, load_tensors(files["weights.safetensors"]), x)
    assert expected.shape == (3, 8, 8)
    np.testing.assert_allclose(run_model(files["network.tflite"], x), expected.reshape(-1), atol=1e-4)
    # What people read calls the figures by their name.
    console = Console(file=io.StringIO(), width=200)
    print_front(decode(SearchResult, result), console)
    assert "mean IoU %" in console.file.getvalue()  # type: ignore[attr-defined]
    own = {"Cookie": f"{TOKEN_COOKIE}={sqlite_lab.user}"}
    page = sqlite_lab.client.get(f"/searches/{search_id}", headers=own)
    assert "mean IoU, the mean over images" in page.text
    assert "latency against mean IoU in per cent" in page.text
    assert sqlite_lab.client.get(f"/searches/{search_id}/front.json", headers=own).json()["metric"] == "mean IoU"


def test_targets_that_follow_the_image_are_neither_flipped_nor_resized(
    sqlite_lab: ServerLab, example: ModuleType, tmp_path: Path
) -> None:
    example.write(tmp_path, images=60, epochs=1)
    worker = WorkerLab(sqlite_lab)
    good = shapes_search(sqlite_lab, tmp_path)
    small = tmp_path / "small.npz"
    np.savez(small, images=np.zeros((60, 12, 12), dtype=np.uint8), targets=np.zeros((60, 8, 8), dtype=np.int64))
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, images=np.zeros((60, 16, 16), dtype=np.uint8), targets=np.zeros((60, 16, 16), dtype=np.int64))
    cases = (
        (with_data(good, flip=True), DataError, "set dataset.flip to false"),
        (
            with_data(good, train=stored_file(sqlite_lab, small)),
            DataError,
            "is 12 x 12, but the network takes 16 x 16",
        ),
        (
            with_data(good, train=stored_file(sqlite_lab, wrong)),
            TaskError,
            r"loss of .* failed on outputs \(8, 3, 8, 8\)",
        ),
        (
            dataclasses.replace(
                good, space=dataclasses.replace(good.space, resolution=ResolutionConfig(sides=(12, 16)))
            ),
            TaskError,
            "leave space.resolution out",
        ),
    )
    for config, error, message in cases:
        with pytest.raises(error, match=message):
            worker.run(worker.submit(config))
    top1 = dataclasses.replace(good, task="top1")
    with pytest.raises(DataError, match="targets and no classes: name the task"):
        worker.run(worker.submit(top1))


def with_data(config: SearchConfig, **changes: Any) -> SearchConfig:
    return dataclasses.replace(config, dataset=dataclasses.replace(config.dataset, **changes))


def test_a_config_says_nothing_that_only_classes_have() -> None:
    body = encode(parse_config(yaml.safe_load((EXAMPLE / "search.yaml").read_text())))
    for change, message in (
        ({"model": {"architecture": "small_cnn"}}, "give model.network"),
        ({"method": {"name": "exact"}}, "draws labels from classes"),
        ({"method": {"seed_with": "exact", "name": "nsga2"}}, "draws labels from classes"),
        ({"training": {"regime": "jcw"}}, "smooths labels"),
        ({"training": {}}, "set it to 0"),
        ({"task": "a\nb"}, "must be the name"),
    ):
        with pytest.raises(ContractError, match=message):
            parse_config(body | change)


class Sound:
    """A task that does as it should. Others below differ in one thing."""

    metric_name = "agreement"
    follows_geometry = False

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean(1)

    def metric(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.exp(-self.loss(outputs, targets))


class Detached(Sound):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, targets).detach()


class Averaging(Sound):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, targets).mean()


class Unbounded(Sound):
    def metric(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return -self.loss(outputs, targets)


class Undefined(Sound):
    def metric(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().metric(outputs, targets) * torch.nan


class Failing(Sound):
    def metric(self, outputs: Tensor, targets: Tensor) -> Tensor:
        raise KeyError("boxes")


def test_a_task_is_tried_before_anything_is_done_with_it() -> None:
    outputs, targets = torch.randn(4, 3), torch.randn(4, 3)
    OwnTask("sound", Sound()).check(outputs, targets)
    for task, message in (
        (Detached(), "without gradients"),
        (Averaging(), r"gives \(\) for 4 images"),
        (Unbounded(), r"must be in \[0, 1\]"),
        (Undefined(), r"is nan to nan: it must be in \[0, 1\]"),
        (Failing(), r"metric of the task 'x' failed on outputs \(4, 3\) .* KeyError: 'boxes'"),
    ):
        with pytest.raises(TaskError, match=message):
            OwnTask("x", task).check(outputs, targets)


def test_sums_do_not_depend_on_the_batches() -> None:
    outputs, targets = torch.randn(10, 3), torch.randn(10, 3)
    task = OwnTask("sound", Sound())
    whole = task.judge(outputs, targets)
    parts = [task.judge(o, t) for o, t in zip(outputs.split(4), targets.split(4), strict=True)]
    assert sum(p.metric_sum for p in parts) == pytest.approx(whole.metric_sum)
    assert sum(p.loss_sum for p in parts) == pytest.approx(whole.loss_sum)


def test_tasks_come_from_installed_packages_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "my_tasks.py").write_text(
        "from tests.unit.server.test_own_tasks import Sound, Unbounded\n"
        "made = Sound()\n"
        "def make():\n    return made\n"
        "def fails():\n    raise RuntimeError('no weights today')\n"
        "number = 3\n"
    )
    points = (
        "one = my_tasks:Sound\ntwo = my_tasks:made\nthree = my_tasks:make\nbad = my_tasks:fails\nno = my_tasks:number"
    )
    announce(tmp_path / "site", f"{points}\ngone = my_tasks:gone\ntwice = my_tasks:made", monkeypatch)
    announce(tmp_path / "other", "twice = my_tasks:make", monkeypatch)

    assert load_task("top1") is None
    for name in ("one", "two", "three"):
        task = load_task(name)
        assert task is not None
        assert (task.name, task.metric_name) == (name, "agreement")
    for name, message in (
        ("four", "no package on this worker has the task 'four'; there are: top1 and of packages .*one"),
        ("bad", "cannot be loaded: RuntimeError: no weights today"),
        ("gone", "cannot be loaded: AttributeError"),
        ("no", "cannot be loaded|is no task"),
        ("twice", "several packages"),
    ):
        with pytest.raises(TaskError, match=message):
            load_task(name)
