"""The data set of a search that is submitted: found, and known to be sound and large enough, before it is queued."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sqlalchemy.orm import Session

from search.data.dataset import DataError
from search.data.splits import TEST_FRACTION, check_counts
from search.domain.config import DIGITS, DatasetConfig, is_on_worker
from server.artifacts.visibility import is_visible
from server.catalog import repository
from server.catalog.datasets import checked_contents
from server.catalog.naming import refused
from server.context import Context
from server.errors import Unprocessable

_FIELD = "config.dataset"


def usable_dataset(context: Context, config: DatasetConfig, owner: str | None) -> DatasetConfig:
    """The config with the files of an uploaded data set in place of its name. `owner` sees only their artifacts.

    Files that nobody registered are checked as registering would; what lies on a worker is checked there, in the first
    stage of the search.

    Raises `Unprocessable` naming the field, the value and the remedy.
    """
    if config.name == DIGITS:
        return config
    with context.database.read() as session:
        if config.train is None:
            config = _uploaded(session, config)
        files = {role: name for role, name in (("train", config.train), ("test", config.test)) if name is not None}
        stored = {role: name for role, name in files.items() if not is_on_worker(name)}
        for role, name in stored.items():
            check_artifact(context, session, f"{_FIELD}.{role}", name, owner)
        if len(stored) < len(files):
            return config
        row = repository.dataset_of(session, stored["train"], config.test)
        counts = None if row is None else dict(zip(row.class_names, row.contents["train"]["class_counts"], strict=True))
    if counts is None:
        contents, _ = checked_contents(context, stored["train"], config.test, f"{_FIELD}.")
        counts = dict(zip(contents.class_names, contents.class_counts, strict=True))
    _check_counts(config, counts)
    return config


def check_artifact(context: Context, session: Session, field: str, sha256: str, owner: str | None) -> None:
    """Raise `Unprocessable` where an artifact that a config names is not stored, or not for `owner` to see."""
    try:
        is_stored = context.store.has(sha256) and is_visible(session, sha256, owner)
    except Unprocessable as error:
        raise refused(field, f"{error.detail}. For files on your machine use `kerf search run --data`") from None
    if not is_stored:
        raise refused(field, f"no artifact {sha256} is stored: upload it to /v1/artifacts/sha256/{sha256} first")


def _uploaded(session: Session, config: DatasetConfig) -> DatasetConfig:
    found = repository.datasets_called(session, config.name)
    if not found:
        known = dict.fromkeys(row.name for row in repository.list_datasets(session, after=None, limit=20))
        raise refused(
            f"{_FIELD}.name",
            f"no data set {config.name!r} was uploaded; there are {', '.join(map(repr, known)) or 'none'}, and 'digits'"
            ": upload it with `kerf datasets upload`",
        )
    if len(found) > 1:
        told = ", ".join(row.id for row in found[-5:])
        raise refused(
            f"{_FIELD}.name", f"{len(found)} data sets are called {config.name!r}: name one by its id: {told}"
        )
    (row,) = found
    if row.test_sha256 is not None and config.test_fraction is not None:
        raise refused(
            f"{_FIELD}.test_fraction",
            f"{config.test_fraction!r} takes test images from the training set, but {row.name!r} comes with test "
            "images: leave it out",
        )
    return replace(config, name=row.name, train=row.train_sha256, test=row.test_sha256)


def _check_counts(config: DatasetConfig, class_counts: Mapping[str, int]) -> None:
    fraction = TEST_FRACTION if config.test_fraction is None else config.test_fraction
    try:
        check_counts(
            class_counts,
            test_fraction=fraction if config.test is None else None,
            holdout_fraction=config.holdout_fraction,
        )
    except DataError as error:
        raise refused(f"{_FIELD}.train", str(error)) from None
