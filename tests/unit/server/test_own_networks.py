"""A search on a network that is not of the zoo: from torch code to exported, verified candidates."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from device_agent.contracts import ContractError, decode, encode
from search.data.loading import load_data
from search.domain.config import Method, MethodConfig, ModelConfig, SearchConfig, TrainingConfig
from search.domain.space import Decisions
from search.evaluation import evaluate
from search.networks.build import build_network
from search.networks.convert import convert_module
from search.networks.file import read_network, write_network
from search.pruning.apply import apply_decisions
from search.pruning.operators import UnsupportedNetwork
from search.pruning.trace import trace_network
from search.training.finetuning import train_from_scratch
from server.cli.config_file import ConfigFileError, check_files, upload
from server.dashboard.searches import search_rows
from tests.unit.search.networks.own_networks import ResidualB, own_network
from tests.unit.server.server_lab import ServerLab
from tests.unit.server.worker_lab import Kill, WorkerLab, quick_search


class OwnResNet(nn.Module):
    """Option B shortcuts, a depthwise layer, ReLU6 and two linear layers: nothing of the zoo is built like this."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.block = ResidualB(8, 16, 2)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.hidden, self.dropout, self.out = nn.Linear(16, 24), nn.Dropout(0.1), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise(self.block(self.stem(x))))
        x = F.relu(self.hidden(x.mean((2, 3))))
        result: Tensor = self.out(self.dropout(x))
        return result


class OwnGates(nn.Module):
    """Squeeze-and-excite in an inverted residual, with hard swish and SiLU, as in MobileNetV3 and EfficientNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.expand = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.project = nn.Sequential(nn.Conv2d(16, 12, 1, bias=False), nn.BatchNorm2d(12), nn.Hardswish())
        self.out = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.expand(self.stem(x)))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        result: Tensor = self.out(self.project(gate * x).mean((2, 3)))
        return result


class OwnBranches(nn.Module):
    """A dense connection with batch norm in front of its layer, and an Inception-like block whose parts are joined in
    front of a depthwise convolution.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.norm = nn.BatchNorm2d(8)
        self.growth = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.one = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.three = nn.Sequential(nn.Conv2d(16, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(36, 36, 3, 2, 1, groups=36, bias=False), nn.BatchNorm2d(36), nn.ReLU())
        self.out = nn.Linear(36, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.growth(F.hardswish(self.norm(x)))], 1)
        x = self.depthwise(torch.cat([self.one(x), self.three(x), F.max_pool2d(x, 3, 1, 1)], 1))
        result: Tensor = self.out(x.mean((2, 3)))
        return result


class OwnSplits(nn.Module):
    """A channel split, a grouped convolution, an activation behind a concatenation, a shuffle, and a depthwise
    convolution that makes two channels of each; the stem is frozen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.stem.requires_grad_(False)
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(8))
        self.several = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1, groups=16, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.out = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        kept, processed = self.stem(x).chunk(2, 1)
        x = F.relu(torch.cat([kept, self.inner(processed)], 1))
        result: Tensor = self.out(self.several(F.channel_shuffle(x, 2)).mean((2, 3)))
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnNetwork:
    """A converted network, and the accuracy of the original on the test images."""

    path: Path
    accuracy: float


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> OwnNetwork:
    return trained(OwnResNet, "own_resnet", tmp_path_factory.mktemp("network") / "own.kerf")


def trained(make: Callable[[], nn.Module], name: str, path: Path) -> OwnNetwork:
    """A network trained on the digits for some epochs, and converted."""
    # As the search reads them.
    data = load_data(own_search("0" * 64).dataset, input_shape=(1, 8, 8), calibration_images=64)
    # The network is small, and other processes want the cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = train_from_scratch(make(), data, 4, torch.Generator().manual_seed(0))
    torch.set_num_threads(threads)
    write_network(convert_module(model, torch.zeros(1, 1, 8, 8), name).network, path)
    return OwnNetwork(path=path, accuracy=evaluate(model.eval(), data.split.test, data.normalise).accuracy)


def own_search(network: str, **changes: Any) -> SearchConfig:
    config = quick_search("own", model=ModelConfig(network=network), **changes)
    return dataclasses.replace(config, measuring=dataclasses.replace(config.measuring, max_kernels=80))


def stored(lab: ServerLab, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    assert lab.request("PUT", f"/v1/artifacts/sha256/{digest}", content=data).status_code in (200, 201)
    return digest


def test_an_own_network_is_searched_exported_and_verified_also_after_a_crash(
    sqlite_lab: ServerLab, own: OwnNetwork
) -> None:
    worker = WorkerLab(sqlite_lab)
    digest = stored(sqlite_lab, own.path.read_bytes())

    search_id = worker.done(own_search(digest), Kill(steps=2))
    _, front = worker.outcome(search_id)
    result = worker.get(f"/v1/searches/{search_id}/result")

    assert result["baseline"]["accuracy"] == pytest.approx(own.accuracy, abs=1e-9)
    assert result["baseline"]["parameters"] == 4530
    assert len(front) == 1
    assert {"network.kerfnet", "network.tflite", "network.onnx", "plan.json", "weights.safetensors"} <= set(
        front[0]["files"]
    )
    plan = json.loads(sqlite_lab.get(f"/v1/artifacts/sha256/{front[0]['files']['plan.json']}").content)
    assert plan["name"] == "own_resnet"
    assert "block.shortcut.0" in {op["name"] for op in plan["ops"]}
    assert any("own_resnet: " in text and "pruning groups proved" in text for text in worker.messages(search_id))
    with sqlite_lab.database.read() as session:
        (row,) = search_rows(session, 0.0, limit=5)
    assert row.architecture == f"own network {digest[:10]}"


def searched(lab: ServerLab, make: Callable[[], nn.Module], folder: Path, groups: int) -> Mapping[str, Any]:
    """The kernels by operator of the pruned network that a search of another one exports."""
    worker = WorkerLab(lab)
    own = trained(make, "own", folder / "own.kerf")

    search_id = worker.done(own_search(stored(lab, own.path.read_bytes())))
    _, front = worker.outcome(search_id)
    result = worker.get(f"/v1/searches/{search_id}/result")

    assert result["baseline"]["accuracy"] == pytest.approx(own.accuracy, abs=1e-9)
    assert {"network.kerfnet", "network.tflite", "network.onnx", "plan.json", "weights.safetensors"} <= set(
        front[0]["files"]
    )
    assert any(f"{groups} pruning groups proved, 0" in text for text in worker.messages(search_id))
    plan = json.loads(lab.get(f"/v1/artifacts/sha256/{front[0]['files']['plan.json']}").content)
    return {op["name"]: op["kernel"] for op in plan["ops"]}


def test_a_network_with_gates_is_searched_exported_and_verified(sqlite_lab: ServerLab, tmp_path: Path) -> None:
    kernels = searched(sqlite_lab, OwnGates, tmp_path, groups=4)

    assert kernels["excite"]["activation"] == "hardsigmoid"
    assert kernels["mul"]["op"] == "mul"
    assert kernels["mul"]["in_channels"] == kernels["excite"]["out_channels"] < 16


def test_a_network_with_concatenations_is_searched_exported_and_verified(sqlite_lab: ServerLab, tmp_path: Path) -> None:
    kernels = searched(sqlite_lab, OwnBranches, tmp_path, groups=4)

    made = {name: kernels[f"{name}.0"]["out_channels"] for name in ("stem", "growth", "one", "three")}
    joined = made["stem"] + made["growth"]
    assert kernels["one.0"]["in_channels"] == joined < 16
    assert kernels["cat"]["op"] == "concat"
    assert (kernels["norm"]["op"], kernels["norm"]["in_channels"]) == ("depthwise_conv2d", made["stem"])
    assert kernels["depthwise.0"]["out_channels"] == made["one"] + made["three"] + joined


def test_a_network_with_splits_and_groups_is_searched_exported_and_verified(
    sqlite_lab: ServerLab, tmp_path: Path
) -> None:
    kernels = searched(sqlite_lab, OwnSplits, tmp_path, groups=2)

    made = kernels["stem.0"]["out_channels"]
    assert made < 16
    assert kernels["chunk"]["op"] == "first_channels"
    assert kernels["chunk"]["out_channels"] + kernels["chunk_2"]["out_channels"] == made
    assert (kernels["inner.0"]["groups"], kernels["cat"]["activation"]) == (2, "relu")
    assert [k["groups"] for k in kernels.values() if k["op"] == "channel_shuffle"] == [2]
    assert kernels["several.0"]["out_channels"] == 2 * kernels["several.0"]["in_channels"]


def test_networks_that_a_search_cannot_use_are_refused(sqlite_lab: ServerLab, tmp_path: Path) -> None:
    worker = WorkerLab(sqlite_lab)

    class Other(nn.Module):
        def __init__(self, outputs: int) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(1, 4, 3), nn.Linear(4, outputs)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.out(torch.tanh(self.conv(x)).mean((2, 3)))
            return result

    for outputs, error, said in ((10, UnsupportedNetwork, "tanh"), (7, ContractError, "gives 7 .* 10 classes")):
        path = tmp_path / "other.kerf"
        write_network(convert_module(Other(outputs), torch.zeros(1, 1, 8, 8), "other").network, path)
        search_id = worker.submit(own_search(stored(sqlite_lab, path.read_bytes())))
        with pytest.raises(error, match=said):
            worker.run(search_id)


def test_exact_refuses_layers_of_many_groups_before_anything_is_measured(
    sqlite_lab: ServerLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = WorkerLab(sqlite_lab)
    path = tmp_path / "branches.kerf"
    write_network(convert_module(OwnBranches(), torch.zeros(1, 1, 8, 8), "branches").network, path)
    network = stored(sqlite_lab, path.read_bytes())
    monkeypatch.setattr("search.genome_costs._MAX_TABLE_CELLS", 10)
    exact = MethodConfig(name=Method.EXACT, population=4, generations=1)
    seeded = MethodConfig(name=Method.JCW, seed_with=Method.EXACT, population=4, generations=1)
    for method in (exact, seeded):
        search_id = worker.submit(own_search(network, method=method))
        with pytest.raises(ContractError, match=r"channels of \d groups, .* use another method, such as 'jcw'"):
            worker.run(search_id)
        assert worker.get(f"/v1/searches/{search_id}")["stage"] == "preparing"


def refusal(lab: ServerLab, network: str, **changes: Any) -> str:
    answer = lab.request("POST", "/v1/searches", json=encode(own_search(network, **changes)))
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == "config.model.network"
    return str(answer.json()["detail"])


def test_a_server_refuses_what_is_no_network_when_it_is_submitted(sqlite_lab: ServerLab, own: OwnNetwork) -> None:
    WorkerLab(sqlite_lab)
    data = own.path.read_bytes()

    assert "is no SHA-256" in refusal(sqlite_lab, "own.kerf")
    assert "upload it" in refusal(sqlite_lab, "0" * 64)
    said = refusal(sqlite_lab, stored(sqlite_lab, data[:-8]))
    assert "the artifact is no sound .kerf network" in said
    assert str(sqlite_lab.settings.data_dir) not in said
    assert "can run any code" in refusal(sqlite_lab, stored(sqlite_lab, b"PK\x03\x04" + data))
    broken = data.replace(b'\\"op\\":\\"linear\\"', b'\\"op\\":\\"evalpy\\"', 1)
    assert broken != data
    assert "'evalpy' is not one of" in refusal(sqlite_lab, stored(sqlite_lab, broken))


def test_what_a_search_cannot_do_with_a_network_is_told_when_it_is_submitted(
    sqlite_lab: ServerLab, tmp_path: Path
) -> None:
    """Not after an hour of measuring."""
    worker = WorkerLab(sqlite_lab)
    digests, files = {}, {}
    for name in ("several_heads", "grouped", "depthwise_multiplier"):
        files[name] = tmp_path / f"{name}.kerf"
        write_network(convert_module(own_network(name), torch.zeros(1, 3, 8, 8), name).network, files[name])
        digests[name] = stored(sqlite_lab, files[name].read_bytes())
    by_errors = MethodConfig(name=Method.EXACT, population=8, generations=1)
    seeded = MethodConfig(name=Method.NSGA2, population=8, generations=2, seed_with=Method.EXACT)

    said = refusal(sqlite_lab, digests["several_heads"])
    assert "has 3 outputs" in said
    assert "name a task of your own" in said
    assert worker.submit(own_search(digests["several_heads"], task="heads", training=TrainingConfig(distillation=0.0)))
    said = refusal(sqlite_lab, digests["grouped"], method=by_errors)
    assert "has grouped convolutions (features.2.0)" in said
    assert "as method.name 'exact' does: use another method" in said
    assert "as method.seed_with 'exact' does" in refusal(sqlite_lab, digests["grouped"], method=seeded)
    assert worker.submit(own_search(digests["grouped"]))
    assert worker.submit(own_search(digests["depthwise_multiplier"], method=by_errors))
    with pytest.raises(ConfigFileError, match="network: the network 'grouped' has grouped convolutions"):
        check_files(own_search("grouped.kerf", method=by_errors), tmp_path)


def test_the_command_line_uploads_a_network(own: OwnNetwork) -> None:
    config = own_search(own.path.name)
    client = mock.Mock()
    client.artifacts.upload.side_effect = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()

    paths = check_files(config, own.path.parent)
    body = upload(config, paths, client)

    assert paths == {"network": own.path}
    assert body["model"]["network"] == hashlib.sha256(own.path.read_bytes()).hexdigest()
    assert not client.models.create.called
    assert decode(SearchConfig, body) == dataclasses.replace(
        config, model=ModelConfig(network=body["model"]["network"])
    )


def test_the_command_line_refuses_a_broken_network_before_it_starts_anything(tmp_path: Path) -> None:
    (tmp_path / "own.kerf").write_bytes(b"\x80\x04broken pickle")
    with pytest.raises(ConfigFileError, match=r"network: .*can run any code"):
        check_files(own_search("own.kerf"), tmp_path)
    with pytest.raises(ConfigFileError, match="network: there is no file"):
        check_files(own_search("none.kerf"), tmp_path)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({}, "give one of architecture .* neither"),
        ({"architecture": "small_cnn", "network": "a.kerf"}, "both are given"),
        ({"network": "a.kerf", "checkpoint": "a.safetensors"}, "holds its weights"),
    ],
)
def test_a_search_names_one_network(model: dict[str, str], said: str) -> None:
    with pytest.raises(ContractError, match=said):
        decode(ModelConfig, model)


def test_pruned_networks_keep_what_is_frozen(tmp_path: Path) -> None:
    network = convert_module(own_network("frozen_stem"), torch.zeros(1, 3, 8, 8), "frozen").network
    write_network(network, tmp_path / "frozen.kerf")
    model = build_network(read_network(tmp_path / "frozen.kerf")).model
    spec = trace_network(model, (3, 8, 8), "frozen")

    pruned = apply_decisions(model, spec, Decisions(channels={"features.0.0": 5})).model

    weight = pruned.get_parameter("features.0.0.weight")
    assert weight.shape == (5, 3, 3, 3)
    assert not weight.requires_grad
    assert pruned.get_parameter("features.2.weight").requires_grad
