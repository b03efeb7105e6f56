"""Data sets with one folder of images for each class, `CLASS/IMAGE`, possibly below one common folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Generic, TypeVar

import numpy as np

from search.data.dataset import DataError, Int64Array
from search.data.limits import MAX_IMAGE_FILE_BYTES
from search.data.pictures import IMAGE_SUFFIXES
from search.data.source import check_class_names, check_count

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member(Generic[T]):
    """A file or folder inside of a data set. `handle` is what it is read by."""

    name: PurePosixPath
    is_folder: bool
    size_bytes: int
    handle: T


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassFolders(Generic[T]):
    """The images in the order of their labels, and of their names within a class."""

    class_names: tuple[str, ...]
    labels: Int64Array
    images: tuple[Member[T], ...]


@dataclass(frozen=True, slots=True, eq=False)
class ClassFolderSource(Generic[T]):
    """What all sources of class folders have; they differ in how images are read."""

    path: Path
    found: ClassFolders[T]
    has_given_names: bool = True

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.found.class_names

    @property
    def labels(self) -> Int64Array:
        return self.found.labels


def sort_into_classes(members: Sequence[Member[T]], where: str) -> ClassFolders[T]:
    """Which image belongs to which class: folders' names in alphabetical order.

    What operating systems add by themselves (names with a leading dot, `__MACOSX`) is left out.

    Raises:
        DataError: A file is no image or too large, a class has no images, or folders do not stand side by side.
    """
    folders: dict[PurePosixPath, list[Member[T]]] = {}
    for member in members:
        name = member.name
        if any(part.startswith(".") or part == "__MACOSX" for part in name.parts):
            continue
        if member.is_folder:
            folders.setdefault(name, [])
        elif name.suffix.lower() not in IMAGE_SUFFIXES:
            raise DataError(
                f"{where}: {str(name)!r} is no image: a data set holds only folders of "
                f"{', '.join(sorted(IMAGE_SUFFIXES))} files"
            )
        elif member.size_bytes > MAX_IMAGE_FILE_BYTES:
            raise DataError(
                f"{where}: {str(name)!r} has {member.size_bytes} bytes, more than {MAX_IMAGE_FILE_BYTES}: shrink it"
            )
        else:
            folders.setdefault(name.parent, []).append(member)
    return _sorted(_classes(folders, where), where)


def _classes(folders: Mapping[PurePosixPath, list[Member[T]]], where: str) -> dict[PurePosixPath, list[Member[T]]]:
    """The folders that are classes; others only hold folders, such as a common one above the classes."""
    parents = {parent for folder in folders for parent in folder.parents}
    classes = {folder: members for folder, members in folders.items() if members or folder not in parents}
    roots = {folder.parent for folder in classes}
    if not classes or PurePosixPath(".") in classes or len(roots) != 1:
        found = ", ".join(sorted(str(f) for f in classes)[:4]) or "no images"
        raise DataError(
            f"{where} must hold one folder of images for each class, side by side; found {found}. Training and test "
            "images are two data sets"
        )
    for folder, members in sorted(classes.items()):
        if not members:
            raise DataError(f"{where}: the class folder {folder.name!r} has no images: add some, or remove the folder")
    return classes


def _sorted(classes: Mapping[PurePosixPath, list[Member[T]]], where: str) -> ClassFolders[T]:
    check_count(sum(len(members) for members in classes.values()), where)
    ordered = sorted(classes.items())
    images = tuple(member for _, members in ordered for member in sorted(members, key=lambda m: str(m.name)))
    labels = np.repeat(np.arange(len(ordered), dtype=np.int64), [len(members) for _, members in ordered])
    return ClassFolders(
        class_names=check_class_names([folder.name for folder, _ in ordered], where), labels=labels, images=images
    )
