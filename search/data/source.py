"""What all forms of a data set have in common once they are opened: classes, labels, and images that are read one by
one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np

from search.data.dataset import DataError, Int64Array, Targets, UInt8Array
from search.data.limits import MAX_CLASS_NAME_CHARS, MAX_CLASSES, MAX_IMAGES


class DataFormat(StrEnum):
    """The forms in which a data set may come."""

    FOLDER = "folder"
    ZIP = "zip"
    NPZ = "npz"
    PARQUET = "parquet"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredImage:
    """An image as it is stored: an encoded file, or pixels (h, w) or (h, w, c). `where` is what errors call it."""

    where: str
    content: bytes | UInt8Array


class DataSource(Protocol):
    """An opened data set.

    Attributes:
        class_names: In the order of the labels; empty where there are targets of a task of one's own instead.
        has_given_names: Whether the file says what the classes are called; otherwise they are numbers.
        labels: int64 (n,), or the targets (n, ...).
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def has_given_names(self) -> bool: ...

    @property
    def labels(self) -> Targets: ...

    def images(self, indices: Int64Array) -> Iterator[StoredImage]:
        """The images at `indices`, which must ascend. Raises `DataError`, naming the image."""
        ...

    def check_stored(self) -> None:
        """Check the checksums that the form has, without decoding. Raises `DataError`, naming what is damaged."""
        ...


#: How a form is opened. Raises `DataError` for what is damaged, unsafe or too large.
Opened = AbstractContextManager[DataSource]


def check_class_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """The names as a tuple. Raises `DataError` where one cannot be shown or stored, or stands there twice."""
    if len(names) > MAX_CLASSES:
        raise DataError(f"{where} has {len(names)} classes, more than {MAX_CLASSES}: is the label really a class?")
    for name in names:
        if not name or not name.isprintable() or len(name) > MAX_CLASS_NAME_CHARS:
            raise DataError(
                f"{where}: the class name {name!r} must have 1 to {MAX_CLASS_NAME_CHARS} printable characters: "
                "rename it"
            )
    if len(set(names)) != len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise DataError(f"{where}: two classes are called {twice!r}: rename one")
    return tuple(names)


def numbered(labels: Int64Array) -> tuple[str, ...]:
    """Names for classes that have none: their numbers, up to the largest label."""
    return tuple(map(str, range(int(labels.max(initial=0)) + 1)))


def check_count(count: int, where: str) -> None:
    """Raise `DataError` where there are no images or too many."""
    if count == 0:
        raise DataError(f"{where} has no images")
    if count > MAX_IMAGES:
        raise DataError(f"{where} has {count} images, more than {MAX_IMAGES}: use a part of them")


def check_labels(labels: Int64Array, class_names: Sequence[str], where: str) -> None:
    """Raise `DataError` where a label is out of range, or a class has no image."""
    bad = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if len(bad):
        raise DataError(
            f"{where}: the label of image {bad[0]} is {labels[bad[0]]}, but there are {len(class_names)} classes: "
            f"labels run from 0 to {len(class_names) - 1}"
        )
    empty = np.flatnonzero(np.bincount(labels, minlength=len(class_names)) == 0)
    if len(empty):
        raise DataError(
            f"{where}: the class {class_names[empty[0]]!r} has no images: add some, or number the classes without gaps"
        )
