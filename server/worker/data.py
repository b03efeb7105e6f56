"""The data of a search on the worker: artifacts, or what lies in its own data folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.data.loading import LoadedData, load_data
from search.data.reading import data_digest
from search.domain.config import DIGITS, WORKER_PREFIX, DatasetConfig, is_on_worker
from search.tasks.base import LearningTask
from server.states import JobStage
from server.worker.run import SearchFailed, SearchRun


def load_search_data(
    run: SearchRun, input_shape: tuple[int, int, int], checkpoint: Mapping[str, Any] | None, task: LearningTask | None
) -> tuple[LoadedData, dict[str, str]]:
    """The data, and the SHA-256 of what of it lies on the worker, by "train" and "test".

    Args:
        run: The search.
        input_shape: (channels, h, w) of the network's input.
        checkpoint: What PREPARING stored, or None before it did.
        task: What is learnt; None is classification.

    Raises:
        DataError: The data cannot be used.
        SearchFailed: A path leads nowhere or out of the folder, or what lies there has changed since the search began.
    """
    config = run.config.dataset
    paths: dict[str, Path] = {}
    digests: dict[str, str] = {}
    for role, name in (("train", config.train), ("test", config.test)):
        if name is None:
            continue
        if not is_on_worker(name):
            paths[role] = run.artifact_path(name)
            continue
        paths[role] = worker_path(run.settings.datasets_dir, name)
        digests[role] = data_digest(paths[role])
        known = digests[role] if checkpoint is None else checkpoint["worker_data"][role]
        if known != digests[role]:
            raise SearchFailed(f"the data at {name} has changed since this search began: submit the search again")
    data = load_data(
        dataclasses.replace(config, train=_text(paths.get("train")), test=_text(paths.get("test"))),
        input_shape=input_shape,
        calibration_images=run.config.accuracy.calibration_images,
        cache_dir=run.settings.data_dir / "cache",
        on_progress=lambda done, total: run.progress(JobStage.PREPARING, done, total, "images decoded"),
        task=task,
    )
    if checkpoint is None:
        _tell(run, config, data)
    return data, digests


def worker_path(datasets_dir: Path | None, name: str) -> Path:
    """The file or folder that `worker:PATH` means. Raises `SearchFailed` where it is none of the worker's data."""
    if datasets_dir is None:
        raise SearchFailed(
            f"{name} lies on the worker, but this worker has no data folder: start it with KERF_DATASETS_DIR, or "
            "upload the data"
        )
    root = datasets_dir.resolve()
    path = (root / name.removeprefix(WORKER_PREFIX)).resolve()
    if not path.is_relative_to(root):
        raise SearchFailed(f"{name} leads out of the worker's data folder: copy the data into it")
    if not path.exists():
        raise SearchFailed(f"there is no {name} in the worker's data folder: check the path and KERF_DATASETS_DIR")
    return path


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _tell(run: SearchRun, config: DatasetConfig, data: LoadedData) -> None:
    split = data.split
    classes = f"{split.train.num_classes} classes, " if split.train.class_names else ""
    run.message(
        f"{classes}{len(split.train)} images to train on, {len(split.holdout)} held out, {len(split.test)} to test"
    )
    if config.mean is None and config.name != DIGITS:
        told = " and ".join(", ".join(f"{x:.4f}" for x in part) for part in (data.normalise.mean, data.normalise.std))
        trained = (
            ""
            if run.config.model.checkpoint is None and run.config.model.network is None
            else (": if the weights were trained with others, give dataset.mean and dataset.std")
        )
        run.message(f"mean and standard deviation of the training images: {told}{trained}")
