"""`kerf export`: which network is meant, and what the user is told when that is unclear."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

from device_agent.contracts import ContractError, NetworkPlan, Source, decode, encode
from device_agent.formats.packed import open_packed, write_packed
from search.domain.result import (
    Baseline,
    BaselineLatency,
    DeviceSummary,
    FrontPoint,
    SearchResult,
    SearchSummary,
)
from search.networks.convert import convert_module
from search.networks.file import write_network
from search.onnx_export import plan_to_onnx
from server.cli import export as command
from server.cli.config_file import ConfigFileError
from server.cli.export import ExportError, whole_name
from server.cli.main import app
from tests.unit.device_agent.native.image_samples import every_kind, weights_of
from tests.unit.search.networks.own_networks import INPUT_SHAPE, own_network

ROOT = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def this_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's command is this checkout's, whatever is installed."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def candidate(tmp_path: Path) -> Path:
    """A candidate's folder in the output of a search."""
    folder = tmp_path / "out" / "candidates" / "abc"
    folder.mkdir(parents=True)
    plan = every_kind()
    (folder / "network.kerfnet").write_bytes(write_packed(plan, weights_of(plan)))
    return folder


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["export", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("part", ["", "network.kerfnet"])
def test_a_candidate_of_a_local_result_is_exported_without_a_server(candidate: Path, tmp_path: Path, part: str) -> None:
    output = tmp_path / "deployed"
    assert f"written to {output}" in run(str(candidate / part), "--output", str(output), "--no-tune")
    assert (output / "network.kerf").is_file()
    assert (output / "kerf_runtime.cpp").is_file()
    assert (output / "network.kerfnet").read_bytes() == (candidate / "network.kerfnet").read_bytes()
    plan, tensors = every_kind(), weights_of(every_kind())
    assert (output / "network.onnx").read_bytes() == plan_to_onnx(plan, tensors)
    assert load_file(output / "weights.safetensors").keys() == tensors.keys()
    assert decode(NetworkPlan, json.loads((output / "plan.json").read_text())) == plan


def test_a_terminal_shows_what_takes_long(candidate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_deploy", lambda *_: None)
    # Which has rich take the output for a terminal.
    terminal = CliRunner(env={"FORCE_COLOR": "1", "COLUMNS": "140"})
    arguments = ["export", str(candidate), "--output", str(tmp_path / "deployed")]
    assert "--no-tune guesses them instead" in terminal.invoke(app, arguments).stdout
    assert "writing the program image" in terminal.invoke(app, [*arguments, "--no-tune"]).stdout
    shown = terminal.invoke(app, [*arguments, "--json"])
    assert json.loads(shown.stdout) == {"output": str(tmp_path / "deployed")}
    assert "--no-tune guesses them instead" in shown.stderr


def test_the_beginning_of_a_name_is_enough_where_it_is_one(candidate: Path) -> None:
    short = candidate.with_name(candidate.name[:-1])
    assert whole_name(short) == candidate
    (candidate.parent / f"{candidate.name}2").mkdir()
    with pytest.raises(ConfigFileError, match="beginning of several"):
        whole_name(short)
    assert whole_name(candidate) == candidate
    assert whole_name(candidate.with_name("other")) == candidate.with_name("other")


def test_a_network_of_ones_own_is_exported_as_it_is(tmp_path: Path) -> None:
    model = own_network("squeeze_excite").eval()
    network = convert_module(model, torch.zeros(1, *INPUT_SHAPE), "own").network
    write_network(network, tmp_path / "own.kerf")
    output = tmp_path / "deployed"
    run(str(tmp_path / "own.kerf"), "--output", str(output), "--no-tune")
    x = torch.randn(2, *INPUT_SHAPE)
    session = onnxruntime.InferenceSession(output / "network.onnx")
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], model(x).numpy(), rtol=0, atol=1e-5)
    plan, tensors = open_packed((output / "network.kerfnet").read_bytes())
    assert (plan.name, plan.parameters) == ("own", sum(np.asarray(t).size for t in tensors.values()))

    write_network(
        convert_module(own_network("norms"), torch.zeros(1, *INPUT_SHAPE), "norms").network, tmp_path / "n.kerf"
    )
    with pytest.raises(ContractError, match=r"norms has something that no kernel runs yet.*kerf models inspect"):
        run(str(tmp_path / "n.kerf"), "--output", str(output))


def test_help_says_which_file_runs_sparse_where() -> None:
    said = " ".join(CliRunner().invoke(app, ["export", "--help"]).output.replace("│", " ").split())
    assert "Zeros are skipped by network.kerf (C) and network.kerfnet (Python)" in said
    assert "network.tflite and network.onnx store them and multiply by them" in said


def a_result() -> SearchResult:
    """The smallest result with one candidate."""
    search = SearchSummary(id="s1", name="n", method="jcw", seed=0, settings={}, evaluations=1, seconds={})
    device = DeviceSummary(
        id="d", name="d", cpu_model="c", runtime="native", runtime_version="1", isa="avx2", threads=1,
        source=Source.SIMULATED, kernels=0, kernels_reused=0,
    )  # fmt: skip
    baseline = Baseline(
        accuracy=0.9, latency_ms=BaselineLatency(tflite_dense=None, native_dense=None), macs=1, parameters=1
    )
    point = FrontPoint(
        candidate_id="0123456789abcdef", accuracy_estimate=None, accuracy=None, predicted_latency_ms=1.0,
        measured_latency_ms=None, uncorrected_latency_ms=None, latency_ci95_ms=None, verdict=None, verdict_reasons=(),
        output_max_abs_error=None, macs=1, parameters=1, files={}, decisions={},
    )  # fmt: skip
    return SearchResult(search=search, device=device, baseline=baseline, front=(point,))


@dataclass
class FakeClient:
    """The two calls that an export makes of a server."""

    result: dict[str, Any]
    files: dict[str, Path] = field(default_factory=dict)

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def search_result(self, search_id: str) -> dict[str, Any]:
        assert search_id == "s1"
        return self.result

    def download(self, digest: str, target: Path) -> None:
        shutil.copy(self.files[digest], target)

    @property
    def searches(self) -> SimpleNamespace:
        return SimpleNamespace(result=self.search_result)

    @property
    def artifacts(self) -> SimpleNamespace:
        return SimpleNamespace(download=self.download)


def test_a_candidate_of_a_search_on_the_server_is_exported(
    candidate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = encode(a_result())
    point = result["front"][0]
    point["files"] = {"network.kerfnet": "5" * 64}
    client = FakeClient(result, {"5" * 64: candidate / "network.kerfnet"})
    monkeypatch.setattr(command, "connect", lambda server, token: client)
    output = tmp_path / "deployed"
    arguments = ("--search", "s1", "--output", str(output), "--no-tune", "--candidate")
    run(*arguments, point["candidate_id"][:8])
    assert (output / "network.kerf").is_file()
    with pytest.raises(ConfigFileError, match=r"0 candidates of s1 begin with 'zzz'; there are"):
        run(*arguments, "zzz")
    point["files"], point["failure"] = {}, "the device went away"
    with pytest.raises(ConfigFileError, match=r"has no network\.kerfnet: the device went away"):
        run(*arguments, point["candidate_id"])


@pytest.mark.parametrize(
    "arguments", [(), ("x", "--search", "s1", "--candidate", "c"), ("--search", "s1"), ("x", "--candidate", "c")]
)
def test_exactly_one_network_has_to_be_named(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ConfigFileError, match="name one network"):
        run(*arguments)


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigFileError, match=r"network\.kerfnet is not there"):
        run(str(tmp_path))
    (tmp_path / "network.kerfnet").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="7 bytes are no packed network"):
        run(str(tmp_path), "--output", str(tmp_path / "out"))
