"""What a user gets wrong: one clear line with the value and the remedy, an exit code, and nothing half stored."""

from __future__ import annotations

import importlib
import io
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import save_file

from server.cli.exit_codes import ExitCode
from server.cli.local_stack import LocalStack

pytestmark = pytest.mark.xdist_group("stack")

DIGITS: dict[str, Any] = {
    "name": "bad input",
    "model": {"architecture": "small_cnn", "train_epochs": 1},
    "dataset": {"name": "digits", "holdout_fraction": 0.25},
    "space": {"channels": {}, "weights": {"densities": [0.3, 1.0]}},
    "method": {"population": 4, "generations": 1},
    "measuring": {"kernels": {"runtime": "simulated"}, "networks": {"runtime": "simulated"}},
}


#: The package has a function of the same name.
MAIN = importlib.import_module("server.cli.main")


@dataclass(frozen=True)
class Ended:
    """What a command left: its exit code and what it printed."""

    code: object
    stdout: str
    stderr: str


@pytest.fixture
def kerf(
    simulated_stack: LocalStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """`kerf search run` in this process: starting one takes longer than what is tested."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(config: Mapping[str, Any], *, data: Path | None = None) -> Ended:
        path = tmp_path / "search.yaml"
        path.write_text(yaml.safe_dump(dict(config)))
        command = ["kerf", "search", "run", "--config", str(path), "--output", str(tmp_path / "out")]
        command += ["--server", simulated_stack.url, "--token", simulated_stack.token]
        if data is not None:
            command += ["--data", str(data)]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as caught:
            MAIN.main()
        printed = capsys.readouterr()
        return Ended(caught.value.code, printed.out, printed.err)

    return run


def stored(stack: LocalStack) -> tuple[int, int]:
    with stack.client() as client:
        return len(client.searches.list(limit=500)), len(client.datasets.list())


def assert_refused(done: Ended, code: int, *words: str) -> None:
    assert done.code == code, done.stderr + done.stdout
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"architecture": "resnet-20"}}, ("'resnet-20'", "did you mean 'resnet20'")),
        ({"spcae": {}}, ("'spcae'", "did you mean 'space'")),
        ({"method": {"populaton": 8}}, ("'populaton'", "did you mean 'population'", "config.method")),
        ({"method": {"name": "genetic"}}, ("'genetic'", "'jcw'")),
        ({"space": {"weights": {"densities": [1.5]}}}, ("1.5", "(0, 1]")),
        ({"space": {"weights": {"schemes": ["grup:4x1"]}}}, ("'grup:4x1'", "group:4x1")),
        ({"constraints": [{"metric": "latency_ms", "max": -1}]}, ("-1", "positive")),
        ({"dataset": {"train": "train.zip", "test": "test.zip"}}, ("train.zip", "--data")),
    ],
)
def test_a_config_is_refused_before_anything_starts(
    simulated_stack: LocalStack,
    kerf: Callable[..., Ended],
    tmp_path: Path,
    change: dict[str, Any],
    words: tuple[str, ...],
) -> None:
    before = stored(simulated_stack)
    assert_refused(kerf(DIGITS | change), ExitCode.BAD_INPUT, *words)
    assert stored(simulated_stack) == before
    assert not (tmp_path / "out").exists()


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def image_zip(path: Path, files: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (b"PK this is no zip", ("zip",)),
        ({"cat/0.png": png(), "dog/": b""}, ("'dog'", "no images")),
        ({"cat/0.png": png(), "dog/0.png": b"no image"}, ("dog/0.png",)),
        ({"../cat/0.png": png(), "dog/0.png": png()}, ("../cat/0.png",)),
    ],
    ids=["corrupt zip", "empty class folder", "undecodable image", "path traversal"],
)
def test_a_bad_data_set_is_refused_at_upload(
    simulated_stack: LocalStack,
    kerf: Callable[..., Ended],
    tmp_path: Path,
    train: bytes | dict[str, bytes],
    words: tuple[str, ...],
) -> None:
    if isinstance(train, bytes):
        (tmp_path / "train.zip").write_bytes(train)
    else:
        image_zip(tmp_path / "train.zip", train)
    image_zip(tmp_path / "test.zip", {"cat/0.png": png(), "dog/0.png": png()})
    config = DIGITS | {"dataset": {"name": "pets", "train": "train.zip", "test": "test.zip"}}
    before = stored(simulated_stack)
    assert_refused(kerf(config, data=tmp_path), ExitCode.BAD_INPUT, *words)
    assert stored(simulated_stack) == before


def test_a_checkpoint_that_does_not_fit_names_the_tensors(kerf: Callable[..., Ended], tmp_path: Path) -> None:
    save_file({"conv1.weight": np.zeros((3, 1, 3, 3), dtype=np.float32)}, tmp_path / "wrong.safetensors")
    config = DIGITS | {"model": {"architecture": "small_cnn", "checkpoint": "wrong.safetensors"}}
    done = kerf(config, data=tmp_path)
    assert_refused(done, ExitCode.SEARCH_ENDED, "conv1.weight", "does not fit", "architecture")
    assert not (tmp_path / "out" / "result.json").exists()


@pytest.mark.parametrize(("metric", "bound"), [("macs", 1000), ("latency_ms", 1e-6)])
def test_a_budget_that_nothing_meets_names_the_smallest_value(
    kerf: Callable[..., Ended], tmp_path: Path, metric: str, bound: float
) -> None:
    config = DIGITS | {"constraints": [{"metric": metric, "max": bound}]}
    done = kerf(config)
    assert_refused(done, ExitCode.SEARCH_ENDED, f"{metric} <= ", "smallest", "Raise the bound")
    assert not (tmp_path / "out" / "result.json").exists()
