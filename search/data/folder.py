"""Data sets as a folder with one folder of images for each class."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from search.data.class_folders import ClassFolderSource, Member, sort_into_classes
from search.data.dataset import DataError, Int64Array
from search.data.source import DataSource, StoredImage

#: What zip can say of a time; the same for all, so that the same images always make the same file.
_NO_TIME = (1980, 1, 1, 0, 0, 0)


class _FolderSource(ClassFolderSource[Path]):
    def images(self, indices: Int64Array) -> Iterator[StoredImage]:
        for index in indices:
            member = self.found.images[index]
            try:
                content = member.handle.read_bytes()
            except OSError as error:
                raise DataError(f"{self.path}: {str(member.name)!r} cannot be read: {error.strerror}") from None
            yield StoredImage(where=f"{self.path}: {str(member.name)!r}", content=content)

    def check_stored(self) -> None:
        """Files have no checksums."""


@contextmanager
def open_folder(path: Path) -> Iterator[DataSource]:
    """A folder of class folders. Links out of it, links to folders, and what is no plain file are refused."""
    yield _FolderSource(path, sort_into_classes(_members(path), str(path)))


def _members(root: Path) -> list[Member[Path]]:
    members: list[Member[Path]] = []
    inside = root.resolve()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{folder} cannot be read: {error.strerror}; check its permissions") from None
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            name = PurePosixPath(path.relative_to(root).as_posix())
            if not _is_unicode(entry.name):
                raise DataError(f"{root}: the name {entry.name!r} is no valid Unicode: rename it")
            if entry.is_symlink() and (entry.is_dir() or not path.resolve().is_relative_to(inside)):
                raise DataError(f"{root}: {str(name)!r} links to a folder or out of the data set: copy what it names")
            if entry.is_dir():
                waiting.append(path)
            try:
                found = entry.stat()
            except OSError:
                raise DataError(f"{root}: {str(name)!r} is a link to nothing: remove it") from None
            if not entry.is_dir() and not stat.S_ISREG(found.st_mode):
                raise DataError(f"{root}: {str(name)!r} is no plain file: remove it")
            members.append(Member(name=name, is_folder=entry.is_dir(), size_bytes=found.st_size, handle=path))
    return members


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def pack_folder(path: Path, target: Path) -> None:
    """Write a folder of class folders as a zip, so that it can be uploaded: equal images give equal bytes.

    Raises what `open_folder` raises. Nothing is compressed, as images hardly can be.
    """
    found = sort_into_classes(_members(path), str(path))
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for label, member in zip(found.labels, found.images, strict=True):
            entry = zipfile.ZipInfo(f"{found.class_names[label]}/{member.name.name}", _NO_TIME)
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, member.handle.read_bytes())


def folder_digest(path: Path) -> str:
    """SHA-256 over the names and contents of the images of a folder."""
    found = sort_into_classes(_members(path), str(path))
    digest = hashlib.sha256()
    for member in found.images:
        with member.handle.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        # Names cannot hold a zero byte, so no two folders read alike.
        digest.update(f"{member.name}\0{content}\0".encode())
    return digest.hexdigest()
