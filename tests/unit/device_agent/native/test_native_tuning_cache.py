"""Choices on disk: found again by the same kernel, device and library, and never trusted."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from device_agent.contracts import Activation, KernelSpec, Op, PruningScheme, WeightPruning
from device_agent.native.executor import NativeKernel
from device_agent.native.library import Kind, load_library
from device_agent.native.steps import LateWay, Offer, Signature, Way, Ways
from device_agent.native.tuner import _Choice, _Tuner
from device_agent.native.tuning_cache import SWITCH, CachedChoice, TuningCache
from device_agent.synthesis import kernel_inputs

KERNEL = KernelSpec(
    op=Op.CONV2D,
    in_channels=8,
    out_channels=8,
    input_h=7,
    input_w=7,
    kernel_h=3,
    kernel_w=3,
    padding=1,
    pruning=WeightPruning(scheme=PruningScheme.GROUP, density=0.5, block_filters=4),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(SWITCH)
    return tmp_path / "kerf" / "tunings"


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> list[Ways]:
    """The convolutions that are tuned."""
    calls: list[Ways] = []
    tune = _Tuner.tune

    def count(tuner: _Tuner, ways: Ways) -> tuple[Way, _Choice]:
        calls.extend([ways] if isinstance(ways[0], LateWay) else [])
        return tune(tuner, ways)

    monkeypatch.setattr(_Tuner, "tune", count)
    return calls


def only_file(folder: Path) -> Path:
    [path] = folder.iterdir()
    return path


def test_a_kernel_is_tuned_once(folder: Path, tuned: list[Ways]) -> None:
    first = NativeKernel(KERNEL)
    assert len(tuned) == 1
    # Other weights of the same structure are the same work.
    second = NativeKernel(replace(KERNEL, seed=5))
    assert len(tuned) == 1
    chosen = [(s.vector_length, s.max_vectors, s.pack_rows, s.num_chunks) for s in first._run.steps]
    assert chosen == [(s.vector_length, s.max_vectors, s.pack_rows, s.num_chunks) for s in second._run.steps]
    # So are others of its shape: what is added and cut off in the end costs all tilings alike.
    NativeKernel(replace(KERNEL, residual=True, activation=Activation.RELU6))
    assert len(tuned) == 1
    NativeKernel(replace(KERNEL, input_h=9))
    assert len(tuned) == 2
    assert len(list(folder.iterdir())) == 2


def test_of_a_known_kernel_only_the_chosen_way_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Signature] = []
    tune, recall = _Tuner.tune, _Tuner.recall

    def counted(ways: Ways) -> Ways:
        def make(way: Offer) -> Way:
            made.append(way.signature)
            return way.make()

        return tuple(LateWay(signature=way.signature, make=functools.partial(make, way)) for way in ways)

    monkeypatch.setattr(_Tuner, "tune", lambda tuner, ways: tune(tuner, counted(ways)))
    monkeypatch.setattr(_Tuner, "recall", lambda tuner, ways, known: recall(tuner, counted(ways), known))
    first = NativeKernel(KERNEL)
    assert {Kind.CONV, Kind.WINOGRAD} <= {signature[0][0] for signature in made}
    made.clear()
    again = NativeKernel(KERNEL)
    chosen = [step.kind for step in first._run.steps]
    assert [step.kind for step in again._run.steps] == chosen
    assert len([signature for signature in made if signature[0][0] in (Kind.CONV, Kind.WINOGRAD)]) == 1


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"key": 1, "signature": "", "tilings": []}', '{"tilings": {}}', "\x00\xff"],
)
def test_a_damaged_file_is_replaced(folder: Path, tuned: list[Ways], text: str) -> None:
    expected = NativeKernel(KERNEL).run(*kernel_inputs(KERNEL))
    path = only_file(folder)
    sound = json.loads(path.read_text())
    path.write_text(text)
    assert (NativeKernel(KERNEL).run(*kernel_inputs(KERNEL)) == expected).all()
    assert len(tuned) == 2
    assert json.loads(only_file(folder).read_text()).keys() == sound.keys()


@pytest.mark.parametrize(
    "change",
    [
        {"key": "another kernel's"},
        {"signature": "((0, 3, 0),)"},
        {"tilings": []},
        {"tilings": ["Tiling(vector_length=16, max_vectors=1000)"]},
        {"tilings": ["__import__('os').abort()"]},
        {"tilings": [7]},
    ],
)
def test_a_foreign_choice_is_not_followed(folder: Path, tuned: list[Ways], change: dict[str, object]) -> None:
    NativeKernel(KERNEL)
    path = only_file(folder)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    NativeKernel(KERNEL)
    assert len(tuned) == 2


def test_other_backends_and_libraries_do_not_share_choices(tmp_path: Path) -> None:
    library = load_library()
    backends = [backend for backend in library.backends if backend.is_supported]
    TuningCache(library, backends[0], tmp_path).store("a", "way", ["tiling"])
    assert TuningCache(library, backends[0], tmp_path).load("a") == CachedChoice(signature="way", tilings=("tiling",))
    assert TuningCache(library, backends[0], tmp_path).load("b") is None
    assert TuningCache(library, replace(backends[0], name="other"), tmp_path).load("a") is None
    with mock.patch.dict(library.__dict__, sha256="0" * 64):
        assert TuningCache(library, backends[0], tmp_path).load("a") is None


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path: Path) -> None:
    library = load_library()
    (tmp_path / "file").write_text("")
    cache = TuningCache(library, library.backend(), tmp_path / "file" / "folder")
    cache.store("a", "way", ["tiling"])
    assert cache.load("a") is None


def test_the_switch_turns_the_cache_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    NativeKernel(KERNEL)
    assert not folder.exists()
