"""`kerf models`: own code, exported programs and weights become files; what could run code is refused."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from device_agent.contracts import ContractError
from search.networks.build import build_network
from search.networks.file import read_network
from server.cli import models
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
    groups = [json.loads(run("inspect", file, "--json"))["groups"] for file in (path, output)]
    assert groups[0] == groups[1] != []
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


SERIES = {
    "id": "series-1", "runtime": "native", "runtime_version": "1.2", "threads": 1, "isa": "neon",
    "agent_version": "0.1", "num_measurements": 90, "source": "measured",
}  # fmt: skip


class LatencyServer:
    """Answers for one measured layer, and predicts the others."""

    def __init__(self, *series: dict[str, Any]) -> None:
        self.found, self.asked = series, []

    def series(self, **wanted: Any) -> list[dict[str, Any]]:
        return [s for s in self.found if wanted["runtime"] in (None, s["runtime"]) and wanted["device"] == "phone"]

    def predict(self, series: str, kernels: list[dict[str, Any]]) -> dict[str, Any]:
        self.asked.append((series, kernels))
        each = {
            "ci95_low_ns": 900.0,
            "ci95_high_ns": 1300.0,
            "latency_ns": 1000.0,
            "std_ns": 10.0,
            "extrapolated": False,
        }
        latencies = [{**each, "kernel_id": str(i), "predicted": i > 0} for i in range(len(kernels))]
        return {"latencies": latencies, "model": {"series": SERIES}}


def test_inspect_tells_the_latency_of_each_layer_on_a_device(
    code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "mine.kerf"
    convert(f"{code}:make", output)
    server = LatencyServer(SERIES)
    monkeypatch.setattr(models, "connect", lambda *_: nullcontext(SimpleNamespace(latency=server)))

    found = json.loads(run("inspect", output, "--device", "phone", "--json"))
    told = run("inspect", output, "--device", "phone")

    (series, kernels), _ = server.asked
    assert series == "series-1"
    assert kernels == [layer["kernel"] for layer in found["layers"]]
    assert [layer["layer"] for layer in found["latency"]["layers"]] == ["0", "2"]
    assert [layer["predicted"] for layer in found["latency"]["layers"]] == [False, True]
    assert found["latency"]["sum_ns"] == 2000.0
    assert "measured" in told
    assert "predicted" in told
    assert "sum of the layers 0.0020 ms on one image, 1 of 2 measured (measured), in series series-1" in told
    assert json.loads(run("inspect", output, "--json"))["latency"] is None
    assert "us" not in run("inspect", output).split()

    server.found = (SERIES, {**SERIES, "id": "series-2", "runtime": "tflite"})
    with pytest.raises(ConfigFileError, match=r"'phone' has 2 series, which are not mixed.*series-1.*series-2"):
        run("inspect", output, "--device", "phone")
    run("inspect", output, "--device", "phone", "--runtime", "tflite")
    assert server.asked[-1][0] == "series-2"
    run("inspect", output, "--series", "series-3")
    assert server.asked[-1][0] == "series-3"
    with pytest.raises(ConfigFileError, match=r"nothing was measured on 'tablet'.*kerf devices ls"):
        run("inspect", output, "--device", "tablet")
    with pytest.raises(ConfigFileError, match="name it with --device"):
        run("inspect", output, "--runtime", "native")
