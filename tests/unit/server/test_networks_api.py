"""/v1/networks: own networks are checked and converted in a process with limits; what can run code is refused."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest
import torch
from fastapi.testclient import TestClient
from torch import nn

import kerf
from device_agent.contracts import encode
from search.domain.config import ModelConfig
from search.limited_process import Limits
from search.networks import take_process
from search.networks.convert import convert_module
from search.networks.file import read_network, write_network
from search.networks.kinds import RunsCode
from server.accounts.service import mint_user_token
from server.app import create_app
from server.catalog import networks
from server.settings import Settings
from tests.unit.search.networks.onnx_files import exported, node, onnx_model, saved, weights
from tests.unit.server.server_lab import ServerLab
from tests.unit.server.worker_lab import WorkerLab, quick_search


def make() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 4))


def stored(lab: ServerLab, path: Path) -> str:
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert lab.request("PUT", f"/v1/artifacts/sha256/{digest}", content=data).status_code in (200, 201)
    return digest


@pytest.fixture
def here() -> Iterator[None]:
    """Files are read in this process, which is what a process of its own does a second time for seconds."""

    def take(module: str, request: dict[str, Any], path: Path, limits: Limits) -> dict[str, Any]:
        answer = take_process._take(request)
        return {**answer, "error": answer["error"].replace(f"{path.parent}/", "")} if "error" in answer else answer

    with mock.patch.object(take_process, "run_limited", take):
        yield


def registered(lab: ServerLab, path: Path, status: int = 201, **more: Any) -> dict[str, Any]:
    answer = lab.request("POST", "/v1/networks", json={"name": "my net", "sha256": stored(lab, path), **more})
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_onnx_is_converted_and_kerf_is_kept(sqlite_lab: ServerLab, tmp_path: Path) -> None:
    model = make().eval()
    onnx_file = exported(model, tmp_path / "net.onnx")
    kerf_file = tmp_path / "net.kerf"
    write_network(convert_module(model, torch.zeros(1, 3, 8, 8), "by_hand").network, kerf_file)

    converted = registered(sqlite_lab, onnx_file)
    kept = registered(sqlite_lab, kerf_file)
    again = registered(sqlite_lab, onnx_file)
    (tmp_path / "back.kerf").write_bytes(sqlite_lab.get(f"/v1/artifacts/sha256/{converted['sha256']}").content)
    back = read_network(tmp_path / "back.kerf")

    assert again == converted
    assert converted["format"] == "onnx"
    assert converted["source_sha256"] == hashlib.sha256(onnx_file.read_bytes()).hexdigest() != converted["sha256"]
    assert "says nothing of training" in converted["notes"][0]
    assert back.document.name == f"onnx-{converted['source_sha256'][:12]}"
    assert sorted(t.size for t in back.tensors.values()) == sorted(p.numel() for p in model.parameters())
    assert kept["sha256"] == kept["source_sha256"] == hashlib.sha256(kerf_file.read_bytes()).hexdigest()
    assert (kept["name"], kept["format"], kept["notes"]) == ("my net", "kerf", [])
    for view in (converted, kept):
        assert (view["input_shape"], view["num_nodes"]) == ([3, 8, 8], 4)
        assert view["parameters"] == sum(p.numel() for p in model.parameters())
    assert sqlite_lab.get("/v1/networks").json()["items"] == [converted, kept]
    assert sqlite_lab.get(f"/v1/networks/{kept['id']}").json() == kept
    assert sqlite_lab.get("/v1/networks/network-none").status_code == 404


def test_files_that_run_code_are_refused_with_the_remedy(sqlite_lab: ServerLab, tmp_path: Path) -> None:
    path = tmp_path / "net"
    torch.save(make(), path)
    files = [path.read_bytes(), pickle.dumps({"weight": 3})]
    torch.export.save(torch.export.export(make(), (torch.zeros(1, 3, 8, 8),)), tmp_path / "net.pt2")
    files.append((tmp_path / "net.pt2").read_bytes())
    with mock.patch.object(take_process, "run_limited") as child:
        for content in files:
            path.write_bytes(content)
            problem = registered(sqlite_lab, path, status=422)
            assert problem["code"] == "runs_code"
            assert "can run any code" in problem["detail"]
            assert "kerf models convert" in problem["detail"]
            assert problem["errors"][0]["field"] == "sha256"
    # They are told by their first bytes, so not even the process with limits reads them.
    assert not child.called


@pytest.mark.usefixtures("here")
def test_what_is_wrong_is_told_without_paths_of_the_server(sqlite_lab: ServerLab, tmp_path: Path) -> None:
    path = saved(onnx_model([node("Det", "x")]), tmp_path / "x.onnx")
    assert "sha256: /Det (Det) cannot be converted" in registered(sqlite_lab, path, status=422)["detail"]
    opened = saved(
        onnx_model([node("Conv", "x", "w")], {"w": weights(4, 3, 3, 3)}, shape=("n", 3, "h", "w")), tmp_path / "o.onnx"
    )
    assert "height of the input 'x' are open" in registered(sqlite_lab, opened, status=422)["detail"]
    assert registered(sqlite_lab, opened, input_shape=[3, 6, 6])["input_shape"] == [3, 6, 6]
    path.write_bytes(b"\xff" * 100)
    detail = registered(sqlite_lab, path, status=422)["detail"]
    assert detail.startswith("sha256: the artifact is no ONNX file")
    assert str(sqlite_lab.settings.data_dir) not in detail
    assert "three positive sizes" in registered(sqlite_lab, path, status=422, input_shape=[3, 0, 6])["detail"]
    missing = sqlite_lab.request("POST", "/v1/networks", json={"name": "n", "sha256": "0" * 64})
    assert "upload it to /v1/artifacts" in missing.json()["detail"]


@pytest.mark.slow  # Imports torch in a process of its own.
def test_conversions_are_limited(sqlite_lab: ServerLab, tmp_path: Path) -> None:
    """Shapes of a small file may ask for far more memory than it has itself."""
    nodes = [node("Tile", "k", "n", output="t"), node("ReduceSum", "t", output="s"), node("Add", "x", "s")]
    path = saved(onnx_model(nodes, {"k": weights(1 << 12), "n": [1 << 13]}), tmp_path / "x.onnx")
    with mock.patch.object(take_process, "LIMITS", Limits(memory_bytes=64 << 20, timeout_s=300)):
        detail = registered(sqlite_lab, path, status=422)["detail"]

    assert "sha256: " in detail
    assert any(said in detail for said in ("takes more than", "broke the check off", "MemoryError", "allocate"))


def test_without_torch_a_server_says_where_to_convert(sqlite_lab: ServerLab, tmp_path: Path) -> None:
    path = exported(make(), tmp_path / "net.onnx")
    with mock.patch.object(networks, "converts_onnx", return_value=False):
        assert "kerf models convert net.onnx" in registered(sqlite_lab, path, status=422)["detail"]


@pytest.mark.usefixtures("here")
def test_a_search_may_name_an_onnx_file(sqlite_lab: ServerLab, tmp_path: Path) -> None:
    """It is converted when it is submitted, once, and the search's config names what was made of it."""
    worker = WorkerLab(sqlite_lab)
    digest = stored(sqlite_lab, exported(make(), tmp_path / "net.onnx"))
    config = quick_search("onnx search", model=ModelConfig(network=digest))

    first, second = worker.submit(config), worker.submit(config)
    (network,) = sqlite_lab.get("/v1/networks").json()["items"]

    assert network["sha256"] != digest == network["source_sha256"]
    for search_id in (first, second):
        found = sqlite_lab.get(f"/v1/searches/{search_id}").json()["config"]
        assert found["model"]["network"] == network["sha256"]
    # Under another name it is the same network.
    other = sqlite_lab.request("POST", "/v1/networks", json={"name": "other", "sha256": digest}).json()
    assert (other["name"], other["sha256"]) == ("other", network["sha256"])
    assert other["id"] != network["id"]
    assert worker.submit(config)
    assert worker.submit(quick_search("own", model=ModelConfig(network=network["sha256"])))


@pytest.mark.usefixtures("here")
def test_an_onnx_file_of_two_sizes_does_not_say_which(sqlite_lab: ServerLab, tmp_path: Path) -> None:
    worker = WorkerLab(sqlite_lab)
    graph = onnx_model([node("Conv", "x", "w")], {"w": weights(4, 3, 3, 3)}, shape=("n", 3, "h", "w"))
    path = saved(graph, tmp_path / "open.onnx")
    small, large = (registered(sqlite_lab, path, input_shape=[3, side, side])["sha256"] for side in (6, 8))
    refused = sqlite_lab.post("/v1/searches", quick_search("open", model=ModelConfig(network=stored(sqlite_lab, path))))
    assert refused.status_code == 422
    assert "was registered as 2 networks, of other sizes" in refused.json()["detail"]
    assert worker.submit(quick_search("small", model=ModelConfig(network=small))) != large


@pytest.mark.usefixtures("here")
def test_with_several_users_the_network_of_a_search_is_its_user_s(sqlite_settings: Settings, tmp_path: Path) -> None:
    """Submitting a search registers nothing then: what is registered, everybody sees."""
    onnx_file = exported(make(), tmp_path / "net.onnx").read_bytes()
    source = hashlib.sha256(onnx_file).hexdigest()
    with TestClient(create_app(replace(sqlite_settings, multi_user=True))) as client:
        lab = ServerLab(client, sqlite_settings)
        WorkerLab(lab)
        with lab.database.write() as session:
            ada, bob = (mint_user_token(session, lab.hasher, name=name) for name in ("ada", "bob"))

        def sees(token: str, digest: str) -> bool:
            return bool(lab.get(f"/v1/artifacts/sha256/{digest}", token).status_code == 200)

        def submit(token: str, name: str, digest: str) -> httpx.Response:
            config = encode(quick_search(name, model=ModelConfig(network=digest)))
            return lab.request("POST", "/v1/searches", token, json=config)

        lab.request("PUT", f"/v1/artifacts/sha256/{source}", ada, content=onnx_file)
        first, again = (submit(ada, name, source).json()["config"]["model"]["network"] for name in ("one", "one"))
        assert first == again != source
        # What was made of the file is hers as well, and can be searched by itself.
        assert submit(ada, "two", first).status_code == 201
        for digest in (source, first):
            assert (sees(ada, digest), sees(bob, digest)) == (True, False)
            assert f"no artifact {digest} is stored" in submit(bob, "his", digest).text
        assert lab.get("/v1/networks", bob).json()["items"] == []
        # Until she shares it.
        assert lab.request("POST", "/v1/networks", ada, json={"name": "n", "sha256": first}).status_code == 201
        assert (sees(bob, source), sees(bob, first)) == (False, True)
        assert submit(bob, "his", first).status_code == 201
        lab.close()


@pytest.mark.usefixtures("here")
def test_the_client_sends_onnx_and_no_pickles(sqlite_lab: ServerLab, tmp_path: Path) -> None:
    def forward(request: httpx.Request) -> httpx.Response:
        headers = {"Authorization": request.headers["Authorization"]}
        path = request.url.raw_path.decode()
        answer = sqlite_lab.client.request(request.method, path, headers=headers, content=request.read())
        return httpx.Response(answer.status_code, headers=dict(answer.headers), content=answer.content)

    torch.save(make(), tmp_path / "net.pt")
    with kerf.Client("http://server", sqlite_lab.user, transport=httpx.MockTransport(forward)) as client:
        found = client.models.upload(exported(make(), tmp_path / "net.onnx"))

        assert (found["name"], found["format"]) == ("net", "onnx")
        assert [n["id"] for n in client.models.networks()] == [found["id"]]
        assert client.models.network(found["id"]) == found
        with pytest.raises(RunsCode, match="can run any code"):
            client.models.upload(tmp_path / "net.pt")
