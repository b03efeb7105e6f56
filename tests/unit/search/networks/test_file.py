"""The `.kerf` file: the same network gives the same bytes, and nothing unsound is read."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from device_agent.contracts import ContractError, decode
from search.networks import document as document_module
from search.networks import file as file_module
from search.networks.build import build_network
from search.networks.document import NetworkDocument
from search.networks.file import METADATA_KEY, Network, read_network, write_network

CONVOLUTION = {
    "in_channels": 3,
    "out_channels": 4,
    "kernel": [3, 3],
    "stride": [1, 1],
    "padding": [1, 1],
    "dilation": [1, 1],
    "groups": 1,
}
DOCUMENT: dict[str, Any] = {
    "format": 1,
    "name": "tiny",
    "input": {"shape": [3, 8, 8]},
    "outputs": ["head"],
    "nodes": [
        {
            "name": "block.conv",
            "op": "conv2d",
            "inputs": ["input"],
            "attributes": CONVOLUTION,
            "weights": {"weight": "block.conv.weight"},
            "frozen": [],
        },
        {"name": "relu", "op": "relu", "inputs": ["block.conv"], "attributes": {}, "weights": {}, "frozen": []},
        {"name": "pool", "op": "adaptive_avg_pool", "inputs": ["relu"], "attributes": {"size": [1, 1]}},
        {"name": "flat", "op": "flatten", "inputs": ["pool"], "attributes": {"start": 1}},
        {
            "name": "head",
            "op": "linear",
            "inputs": ["flat"],
            "attributes": {"in_features": 4, "out_features": 2},
            "weights": {"weight": "head.weight", "bias": "head.bias"},
        },
    ],
}


def tensors() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    shapes = {"block.conv.weight": (4, 3, 3, 3), "head.weight": (2, 4), "head.bias": (2,)}
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def written(
    folder: Path, document: Any = DOCUMENT, values: dict[str, Any] | None = None, metadata: dict[str, str] | None = None
) -> Path:
    """A file as somebody else may have made it."""
    text = document if isinstance(document, str) else json.dumps(document)
    path = folder / "given.kerf"
    path.write_bytes(save(tensors() if values is None else values, metadata=metadata or {METADATA_KEY: text}))
    return path


def test_a_network_comes_back_and_always_gives_the_same_bytes(tmp_path: Path) -> None:
    network = read_network(written(tmp_path))
    write_network(network, tmp_path / "a.kerf")
    backwards = dict(reversed(network.tensors.items()))
    write_network(Network(document=network.document, tensors=backwards), tmp_path / "b" / "b.kerf")
    again = read_network(tmp_path / "a.kerf")

    assert (tmp_path / "a.kerf").read_bytes() == (tmp_path / "b" / "b.kerf").read_bytes()
    assert again.document == network.document == decode(NetworkDocument, DOCUMENT)
    assert all(np.array_equal(again.tensors[n], t) for n, t in tensors().items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.kerf", "b", "given.kerf"]


def changed(path: str, value: Any) -> Callable[[Any], None]:
    """Sets what a path such as "nodes.0.op" leads to."""

    def change(document: Any) -> None:
        *steps, last = path.split(".")
        for step in steps:
            document = document[int(step) if step.isdigit() else step]
        document[int(last) if last.isdigit() else last] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed("format", 2), "format 2 is unknown"),
        (changed("comment", "x"), "unknown field 'comment'"),
        (changed("nodes.0.code", "x"), "unknown field 'code'"),
        (changed("nodes.0.op", "exec"), "'exec' is not one of"),
        (changed("name", "../../etc/passwd"), r"passwd.*must be letters"),
        (changed("nodes.1.name", "../relu"), r"'\.\./relu' must be letters"),
        (changed("nodes.1.name", "a/b"), "must be letters"),
        (changed("nodes.1.name", 'x");import os;("'), "must be letters"),
        (changed("nodes.1.name", "relu\n"), "must be letters"),
        (changed("nodes.1.name", "a" * 201), "at most 200"),
        (changed("nodes.0.weights.weight", "block.__class__.weight"), "Python reserves"),
        (changed("nodes.0.weights.weight", "block.lambda.weight"), "Python reserves"),
        (changed("nodes.0.weights.weight", "other.kernel"), "called after one module"),
        (changed("nodes.0.weights", {}), "'weight' of conv2d is missing"),
        (changed("nodes.0.weights.scale", "block.conv.scale"), "no tensor 'scale'"),
        (changed("nodes.4.weights", {"weight": "block.conv.weight"}), "share the module 'block.conv'"),
        (changed("nodes.1.inputs", ["relu"]), "reads 'relu', which no earlier node writes"),
        (changed("nodes.1.inputs", ["head"]), "reads 'head', which no earlier node writes"),
        (changed("nodes.1.inputs", []), "takes 1 inputs, not 0"),
        (changed("nodes.2.inputs", ["input"]), "nothing reads 'relu'"),
        (changed("nodes.1.name", "block.conv"), "two nodes are called"),
        (changed("nodes.1.name", "input"), "two nodes are called"),
        (changed("outputs", []), "must name one or more"),
        (changed("outputs", ["input"]), "is no node"),
        (changed("outputs", ["head", "head"]), "once each"),
        (changed("nodes", []), "1 to 10000 nodes"),
        (changed("input.shape", [3, 8, 0]), "three positive sizes"),
        (changed("input.shape", [3, 1 << 20, 1 << 20]), "at most"),
        (changed("input.shape", [3, 8]), "expected 3 items"),
        (changed("nodes.0.attributes.stride", [0, 1]), "stride is .0, 1., but must be two integers"),
        (changed("nodes.0.attributes.stride", [True, 1]), "stride"),
        (changed("nodes.0.attributes.padding", [1 << 40, 1]), "padding"),
        (changed("nodes.0.attributes.groups", 2), "2 groups do not divide"),
        (changed("nodes.0.attributes.hook", "x"), "no attribute 'hook'"),
        (changed("nodes.2.attributes", {}), "'size' of adaptive_avg_pool is missing"),
        (changed("nodes.0.frozen", ["running_mean"]), "frozen"),
        (changed("nodes.0.attributes.out_channels", 5), r"'block\.conv\.weight' has shape \(4, 3, 3, 3\)"),
    ],
)
def test_an_unsound_document_is_refused(change: Callable[[Any], None], said: str, tmp_path: Path) -> None:
    document = copy.deepcopy(DOCUMENT)
    change(document)

    with pytest.raises(ContractError, match=said):
        read_network(written(tmp_path, document))


def with_nan(values: dict[str, Any]) -> None:
    values["head.bias"][0] = np.nan


def with_infinity(values: dict[str, Any]) -> None:
    values["head.weight"][1, 2] = np.inf


def without_bias(values: dict[str, Any]) -> None:
    del values["head.bias"]


def with_another(values: dict[str, Any]) -> None:
    values["more"] = np.zeros(3, np.float32)


def in_half(values: dict[str, Any]) -> None:
    values["head.bias"] = values["head.bias"].astype(np.float16)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_nan, "'head.bias' holds values that are not finite"),
        (with_infinity, "'head.weight' holds values that are not finite"),
        (without_bias, "'head.bias' of shape .2,. is missing"),
        (with_another, "no node uses the tensor 'more'"),
        (in_half, "'head.bias' is float16"),
    ],
)
def test_unsound_tensors_are_refused(change: Callable[[dict[str, Any]], None], said: str, tmp_path: Path) -> None:
    values = tensors()
    change(values)

    with pytest.raises(ContractError, match=said):
        read_network(written(tmp_path, values=values))


def test_what_is_no_kerf_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.kerf"
    with pytest.raises(ContractError, match="cannot read the network"):
        read_network(path)
    for content in (b"", b"123", pickle.dumps(tensors()), b"\xff" * 64, (1 << 40).to_bytes(8, "little") + b"{}"):
        path.write_bytes(content)
        with pytest.raises(ContractError, match=r"does not fit into it|no sound \.kerf network"):
            read_network(path)
    whole = written(tmp_path).read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(ContractError, match=r"no sound \.kerf network"):
        read_network(path)
    for text, said in (
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        (json.dumps(DOCUMENT)[:-1] + ', "name": "other"}', "'name' stands twice"),
        (json.dumps(DOCUMENT).replace("[1, 1]", "[NaN, 1]"), "NaN is no JSON number"),
        ("[]", "expected an object"),
    ):
        with pytest.raises(ContractError, match=said):
            read_network(written(tmp_path, text))
    with pytest.raises(ContractError, match="alone, and hold"):
        read_network(written(tmp_path, metadata={METADATA_KEY: json.dumps(DOCUMENT), "more": "x"}))
    with pytest.raises(ContractError, match="alone, and hold format"):
        read_network(written(tmp_path, metadata={"format": "pt"}))
    monkeypatch.setattr(file_module, "MAX_HEADER_BYTES", 100)
    with pytest.raises(ContractError, match="its header has"):
        read_network(written(tmp_path))
    monkeypatch.setattr(file_module, "MAX_FILE_BYTES", 100)
    with pytest.raises(ContractError, match=r"more than a \.kerf file may have"):
        read_network(written(tmp_path))


def test_too_many_nodes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_module, "MAX_NODES", 4)

    with pytest.raises(ContractError, match="1 to 4 nodes, not 5"):
        read_network(written(tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed("nodes.2.attributes.size", [2, 2]), r"head does not fit what it reads, of shape \(7, 16\)"),
        (changed("nodes.2.attributes.size", [1 << 20, 1 << 20]), "pool does not fit.*more values than"),
        (changed("input.shape", [4, 8, 8]), "block.conv does not fit"),
        (changed("nodes.3", {**DOCUMENT["nodes"][3], "op": "reshape", "attributes": {"shape": [2]}}), "mixes the"),
    ],
)
def test_nodes_that_do_not_fit_are_refused_before_anything_runs(
    change: Callable[[Any], None], said: str, tmp_path: Path
) -> None:
    document = copy.deepcopy(DOCUMENT)
    change(document)

    with pytest.raises(ContractError, match=said):
        build_network(read_network(written(tmp_path, document)))


@pytest.mark.parametrize("path", ["forward.conv", "graph.conv", "training", "block.forward"])
def test_names_that_torch_itself_uses_are_refused(path: str, tmp_path: Path) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["nodes"][0]["weights"]["weight"] = f"{path}.weight"
    values = tensors()
    values[f"{path}.weight"] = values.pop("block.conv.weight")

    with pytest.raises(ContractError, match="is taken: rename it"):
        build_network(read_network(written(tmp_path, document, values)))
