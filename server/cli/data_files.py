"""Data sets on the user's machine: checked here before they are sent, and folders packed for the way."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from kerf import Client
from search.data.check import DataContents, check_data
from search.data.dataset import DataError
from search.data.folder import pack_folder
from search.data.splits import TEST_FRACTION, check_counts
from search.domain.config import DatasetConfig
from server.cli.errors import ConfigFileError


def check_files_of(
    train: Path,
    test: Path | None,
    *,
    max_decoded: int | None = None,
    on_progress: Callable[[str, int, int], None] = lambda role, done, total: None,
) -> tuple[DataContents, DataContents | None]:
    """What a training and a test set hold. Raises `ConfigFileError` naming which is wrong, and what to do.

    Args:
        train: A folder or zip of class folders, `.npz` or Parquet.
        test: The same of the test set, or None.
        max_decoded: Images to decode of each; by default all.
        on_progress: Called with ("train" or "test", decoded, all to decode).
    """
    role = "train"
    try:
        found = check_data(train, max_decoded=max_decoded, on_progress=lambda *at: on_progress("train", *at))
        if test is None:
            return found, None
        role = "test"
        tested = check_data(
            test,
            class_names=found.class_names,
            max_decoded=max_decoded,
            on_progress=lambda *at: on_progress("test", *at),
        )
    except DataError as error:
        raise ConfigFileError(f"{role}: {error}") from None
    return found, tested


def check_split(train: DataContents, config: DatasetConfig) -> None:
    """Whether every class has enough images for the parts that a search makes. Raises `DataError` naming one."""
    fraction = TEST_FRACTION if config.test_fraction is None else config.test_fraction
    check_counts(
        dict(zip(train.class_names, train.class_counts, strict=True)),
        test_fraction=fraction if config.test is None else None,
        holdout_fraction=config.holdout_fraction,
    )


def upload_data(client: Client, path: Path) -> str:
    """Upload a file, or a folder of class folders as a zip; returns the artifact's SHA-256."""
    if not path.is_dir():
        return client.artifacts.upload(path)
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "data.zip"
        try:
            pack_folder(path, packed)
        except (DataError, OSError) as error:
            raise ConfigFileError(f"{path} cannot be packed: {error}") from None
        return client.artifacts.upload(packed)
