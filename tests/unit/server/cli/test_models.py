"""`kerf models`: own code, exported programs and weights become files; what could run code is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from device_agent.contracts import ContractError
from search.networks.build import build_network
from search.networks.file import read_network
from server.cli.config_file import ConfigFileError
from server.cli.main import app
from tests.unit.search.networks.onnx_files import exported

CODE = """
import widths
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, widths.FIRST, 3), nn.ReLU(), nn.Conv2d(widths.FIRST, 2, 6), nn.Flatten())

def fails():
    raise RuntimeError("no weights today")

def nothing():
    return 3
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "widths.py").write_text("FIRST = 5\n")
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


def run(*arguments: Any) -> str:
    result = CliRunner().invoke(app, ["models", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.output


def convert(source: Any, output: Path, *more: Any, shape: str | None = "3,8,8") -> str:
    return run("convert", source, "--output", output, *(() if shape is None else ("--example-shape", shape)), *more)


def make() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 6), nn.Flatten())


def test_own_code_with_weights_is_converted_and_inspected(code: Path, tmp_path: Path) -> None:
    model = make()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    output = tmp_path / "mine.kerf"

    said = convert(f"{code}:make", output, "--weights", tmp_path / "weights.safetensors")
    rebuilt = build_network(read_network(output)).model
    found = json.loads(run("inspect", output, "--json"))

    assert "kerf models inspect" in said
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(rebuilt(x), model(x))
    assert found["name"] == "mine"
    assert found["input_shape"] == [3, 8, 8]
    assert found["ops"] == {"conv2d": 2, "flatten": 1, "relu": 1}
    assert found["macs"] == 5 * 27 * 36 + 2 * 180
    assert found["parameters"] == 5 * 27 + 5 + 2 * 180 + 2
    assert [g["name"] for g in found["groups"]] == ["0"]
    assert "0.out, 2.in" in run("inspect", output)


def test_an_exported_program_is_converted_only_if_trusted(tmp_path: Path) -> None:
    model = make().eval()
    model[0].weight.requires_grad_(False)
    path, output = tmp_path / "net.pt2", tmp_path / "net.kerf"
    torch.export.save(torch.export.export(model, (torch.zeros(1, 3, 8, 8),)), path)

    with pytest.raises(ContractError, match=r"can run code.*--trust-file"):
        convert(path, output, shape=None)
    assert not output.exists()
    convert(path, output, "--trust-file", shape=None)
    network = read_network(output)

    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(build_network(network).model(x), model(x))
    assert network.document.nodes[0].frozen == ("weight",)
    with pytest.raises(ConfigFileError, match="leave --example-shape"):
        convert(path, output, "--trust-file")


def test_onnx_is_converted(tmp_path: Path) -> None:
    model = make()
    path, output = exported(model, tmp_path / "net.onnx"), tmp_path / "net.kerf"

    said = json.loads(convert(path, output, "--json", shape=None))
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(build_network(read_network(output)).model(x), model(x))

    assert said["nodes"] == 4
    assert "says nothing of training" in said["notes"][0]
    with pytest.raises(ContractError, match="leave --example-shape out"):
        convert(path, output, shape="3,9,9")
    with pytest.raises(ConfigFileError, match="leave --weights out"):
        convert(path, output, "--weights", "w.safetensors")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("net.pt", "pickles can run any code"),
        ("net.pth", "safetensors.torch.save_file"),
        ("net.onnx", "cannot read the network"),
        ("net.safetensors", "weights without a network"),
        ("net", "names no network"),
        ("missing.py:make", "there is no file"),
        ("no.such.package:make", "cannot be imported"),
        ("{code}:fail", "has no 'fail'"),
        ("{code}:fails", "no weights today"),
        ("{code}:nothing", "gave int"),
    ],
)
def test_what_is_no_network_is_refused(source: str, said: str, code: Path, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=said):
        convert(source.format(code=code), tmp_path / "x.kerf")
    assert not (tmp_path / "x.kerf").exists()


def test_bad_options_are_refused(code: Path, tmp_path: Path) -> None:
    source, output = f"{code}:make", tmp_path / "x.kerf"
    for shape in ("3,8", "3x8x8", "3,8,0", "3,-8,8"):
        with pytest.raises(ConfigFileError, match="three positive sizes"):
            convert(source, output, shape=shape)
    with pytest.raises(ConfigFileError, match="--example-shape"):
        convert(source, output, shape=None)
    with pytest.raises(ConfigFileError, match=r"must end in \.kerf"):
        convert(source, tmp_path / "x.safetensors")
    with pytest.raises(ContractError, match="must be letters"):
        convert(source, output, "--name", "a/b")
    with pytest.raises(ContractError, match="leave it out"):
        convert(source, output, "--trust-file")
    save_file({"other": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(ConfigFileError, match="does not fit Sequential"):
        convert(source, output, "--weights", tmp_path / "weights.safetensors")
    with pytest.raises(ContractError, match="cannot read the network"):
        run("inspect", output)
