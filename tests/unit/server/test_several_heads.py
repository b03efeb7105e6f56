"""A network with two heads and a task that gives them one loss: searched, trained, exported, judged by its metric."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load as load_tensors
from torch import Tensor, nn

from device_agent.contracts import NetworkPlan, decode
from device_agent.runtimes.reference import run_network
from device_agent.synthesis import synthesize_input
from search.domain.config import (
    ChannelsConfig,
    DatasetConfig,
    ModelConfig,
    SearchConfig,
    SpaceConfig,
    TrainingConfig,
    WeightsConfig,
)
from search.networks.convert import convert_module
from search.networks.file import write_network
from search.onnx_export import INPUT
from tests.unit.device_agent.formats.test_tflite_format import run_model
from tests.unit.server.server_lab import ServerLab
from tests.unit.server.test_datasets import stored_file
from tests.unit.server.test_own_tasks import announce
from tests.unit.server.worker_lab import Kill, WorkerLab, quick_search

SIDE = 8
KINDS = 2


class BlobTask:
    """What kind of blob is in the image, and in which row and column."""

    metric_name = "kind and place"
    follows_geometry = True

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        kind, place = outputs.split((KINDS, 2), 1)
        return F.cross_entropy(kind, targets[:, 0].long(), reduction="none") + (place - targets[:, 1:]).square().sum(1)

    def metric(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Half for the kind, half for how near the place is."""
        kind, place = outputs.split((KINDS, 2), 1)
        away = (place - targets[:, 1:]).abs().amax(1)
        return 0.5 * (kind.argmax(1) == targets[:, 0]).float() + 0.5 * (1 - away).clamp(0, 1)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

        self.body = nn.Sequential(layer(1, 8, 1), layer(8, 16, 2))
        self.kind, self.place = nn.Linear(16, KINDS), nn.Linear(256, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x)
        return {"kind": self.kind(x.mean((2, 3))), "place": torch.sigmoid(self.place(x.flatten(1)))}


def blobs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (n, 8, 8), and for each its kind, row and column in 0..1, float32 (n, 3)."""
    rng = np.random.default_rng(0)
    kinds, rows, columns = rng.integers(0, KINDS, count), *rng.integers(0, SIDE - 2, (2, count))
    images = rng.integers(0, 60, (count, SIDE, SIDE)).astype(np.uint8)
    for image, kind, row, column in zip(images, kinds, rows, columns, strict=True):
        blob = image[row : row + 3, column : column + 3]
        blob[:] = 220
        if kind:
            blob[1, 1] = 0
    targets = np.stack([kinds, rows / (SIDE - 3), columns / (SIDE - 3)], axis=1).astype(np.float32)
    return images, targets


def trained(images: np.ndarray, targets: np.ndarray) -> nn.Module:
    torch.manual_seed(0)
    network, task = TwoHeads().train(), BlobTask()
    x = (torch.from_numpy(images)[:, None].float() / 255.0 - 0.3) / 0.2
    y = torch.from_numpy(targets)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(12):
        for chosen in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            task.loss(torch.cat(tuple(network(x[chosen]).values()), 1), y[chosen]).mean().backward()
            optimizer.step()
    return network.eval()


def blobs_search(lab: ServerLab, folder: Path) -> SearchConfig:
    images, targets = blobs(300)
    np.savez(folder / "blobs.npz", images=images, targets=targets)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    converted = convert_module(trained(images, targets), torch.zeros(1, 1, SIDE, SIDE), "two_heads")
    torch.set_num_threads(threads)
    write_network(converted.network, folder / "heads.kerf")
    dataset = DatasetConfig(
        name="blobs", train=stored_file(lab, folder / "blobs.npz"), mean=(0.3,), std=(0.2,), flip=False,
        crop_padding=0, holdout_fraction=0.25,
    )  # fmt: skip
    return quick_search(
        "blobs",
        task="blobs",
        model=ModelConfig(network=stored_file(lab, folder / "heads.kerf")),
        dataset=dataset,
        space=SpaceConfig(
            channels=ChannelsConfig(min_ratio=0.5, multiple_of=4), weights=WeightsConfig(densities=(0.5, 1.0))
        ),
        training=TrainingConfig(epochs=6, batch_size=16, learning_rate=0.05, distillation=0.0),
    )


@pytest.mark.slow  # Some seconds: a whole search.
def test_a_network_with_two_heads_is_searched_trained_and_exported(
    sqlite_lab: ServerLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(tmp_path / "site", f"blobs = {__name__}:BlobTask", monkeypatch)
    worker = WorkerLab(sqlite_lab)

    search_id = worker.done(blobs_search(sqlite_lab, tmp_path), Kill(steps=2))

    _, front = worker.outcome(search_id)
    result = worker.get(f"/v1/searches/{search_id}/result")
    assert result["data"]["metric"] == "kind and place"
    # A constant guess of both gives about 0.5.
    assert result["baseline"]["accuracy"] > 0.75
    assert front[0]["accuracy"] > 0.65
    files = {name: sqlite_lab.get(f"/v1/artifacts/sha256/{sha}").content for name, sha in front[0]["files"].items()}
    plan = decode(NetworkPlan, json.loads(files["plan.json"]))
    assert plan.macs < result["baseline"]["macs"]
    x = synthesize_input(plan.input_shape, 3)
    expected = run_network(plan, load_tensors(files["weights.safetensors"]), x).reshape(-1)
    # Both heads, one behind the other.
    assert expected.shape == (KINDS + 2,)
    np.testing.assert_allclose(run_model(files["network.tflite"], x), expected, atol=1e-4)
    session = onnxruntime.InferenceSession(files["network.onnx"], providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {INPUT: x[None]})[0].reshape(-1), expected, atol=1e-4)
