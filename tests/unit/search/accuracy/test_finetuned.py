"""Estimates by short fine-tuning: weights are inherited along chains, and a stopped search goes on the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from search.accuracy.finetuned import FinetunedEstimator
from search.data.loading import LoadedData, load_data
from search.domain.config import DatasetConfig, TrainingConfig
from search.domain.space import Decisions
from tests.unit.search.pruning.pruning_networks import traced

CHAIN = [
    Decisions(removed_blocks=("layer1.1",)),
    Decisions(removed_blocks=("layer1.1", "layer2.1")),
    Decisions(removed_blocks=("layer1.1", "layer2.1"), channels={"layer3.0.conv1": 24}, resolution=6),
]


@pytest.fixture(scope="module")
def data() -> LoadedData:
    return load_data(DatasetConfig(name="digits"), input_shape=(1, 8, 8), calibration_images=64)


def estimator(data: LoadedData, folder: Path, **changes: object) -> FinetunedEstimator:
    model, spec = traced("small_resnet")
    made = FinetunedEstimator(
        model=model,
        spec=spec,
        data=data,
        evaluation=data.split.holdout,
        settings=TrainingConfig(epochs=0.3, batch_size=64),
        seed=0,
        folder=folder,
    )
    return dataclasses.replace(made, **changes)


def test_a_chain_is_resumed_to_the_same_figures(data: LoadedData, tmp_path: Path) -> None:
    at_once = estimator(data, tmp_path / "one").estimate(CHAIN)
    assert all(e.failure is None for e in at_once)
    # Stopped within a generation: what was tuned is read back.
    estimator(data, tmp_path / "two").estimate(CHAIN[:1])
    assert estimator(data, tmp_path / "two").estimate(CHAIN) == at_once
    # Stopped between generations, and the folder was lost.
    late = estimator(data, tmp_path / "three", known=CHAIN[:2])
    assert late.estimate(CHAIN[2:]) == at_once[2:]


def test_it_tells_how_far_it_is(data: LoadedData, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    estimator(data, tmp_path).estimate(CHAIN[:2], on_progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2)]


def test_it_tells_of_each_candidate_whose_file_is_there_but_not_of_one_that_was(
    data: LoadedData, tmp_path: Path
) -> None:
    files: list[int] = []
    estimator(data, tmp_path).estimate(CHAIN[:1])
    told = estimator(data, tmp_path, on_tuned=lambda: files.append(len(list(tmp_path.iterdir()))))
    told.estimate(CHAIN[:2])
    assert files == [2]


def test_points_start_from_the_nearest_that_was_tuned(data: LoadedData, tmp_path: Path) -> None:
    chain = estimator(data, tmp_path / "chain").estimate(CHAIN[:2])
    alone = estimator(data, tmp_path / "alone").estimate(CHAIN[1:2])
    assert chain[1].loss < alone[0].loss
    # A network that lacks what is asked for cannot hand on its weights.
    other = estimator(data, tmp_path / "other").estimate([Decisions(removed_blocks=("layer3.1",)), CHAIN[1]])
    assert other[1] == alone[0]


def test_known_figures_cost_no_training(data: LoadedData, tmp_path: Path) -> None:
    first = estimator(data, tmp_path).estimate(CHAIN[:1])
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert estimator(data, tmp_path).estimate(CHAIN[:1]) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times
