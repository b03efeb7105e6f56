"""Data sets as zip files with one folder of images for each class."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from search.data.class_folders import ClassFolderSource, Member, sort_into_classes
from search.data.dataset import DataError, Int64Array
from search.data.limits import MAX_UNPACKING_RATIO, SMALL_BYTES
from search.data.source import DataSource, StoredImage

#: What reading an archive that is damaged, encrypted or of an unknown method raises.
BAD_ARCHIVE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)


@dataclass(frozen=True, slots=True, eq=False)
class _ZipSource(ClassFolderSource[zipfile.ZipInfo]):
    archive: zipfile.ZipFile = field(kw_only=True)

    def images(self, indices: Int64Array) -> Iterator[StoredImage]:
        for index in indices:
            member = self.found.images[index]
            where = f"{self.path}: {member.handle.filename!r}"
            try:
                content = self.archive.read(member.handle)
            except BAD_ARCHIVE as error:
                raise DataError(f"{where} is damaged ({error}): make the zip again") from None
            yield StoredImage(where=where, content=content)

    def check_stored(self) -> None:
        check_checksums(self.archive, self.path)


@contextmanager
def open_image_zip(path: Path) -> Iterator[DataSource]:
    """A zip of class folders. Names that lead out of it, links and bombs are refused."""
    with open_archive(path) as archive:
        members = [
            Member(name=_checked_name(e, path), is_folder=e.is_dir(), size_bytes=e.file_size, handle=e)
            for e in archive.infolist()
        ]
        yield _ZipSource(path, sort_into_classes(members, str(path)), archive=archive)


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip file that is no bomb. Raises `DataError`, also for what reading it raises."""
    try:
        with zipfile.ZipFile(path) as archive:
            # Also of files that lie over each other, which every count of single files would miss.
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > SMALL_BYTES and unpacked > MAX_UNPACKING_RATIO * path.stat().st_size:
                raise DataError(
                    f"{path} unpacks to {unpacked} bytes, {MAX_UNPACKING_RATIO} times its size and more: no images do"
                )
            yield archive
    except BAD_ARCHIVE as error:
        raise DataError(f"{path} is no readable zip file ({error}): make it again") from None


def check_checksums(archive: zipfile.ZipFile, path: Path) -> None:
    """Read every member, and compare its checksum. Raises `DataError` naming the first that is damaged."""
    damaged = archive.testzip()
    if damaged is not None:
        raise DataError(f"{path}: {damaged!r} is damaged (its checksum is wrong): make the file again")


def _checked_name(entry: zipfile.ZipInfo, path: Path) -> PurePosixPath:
    if not entry.filename:
        raise DataError(f"{path}: a file in it has no name: make the zip again")
    name = PurePosixPath(entry.filename)
    if name.is_absolute() or ".." in name.parts or "\\" in entry.filename or ":" in entry.filename.partition("/")[0]:
        raise DataError(f"{path}: the name {entry.filename!r} leads out of the archive: make the zip again")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise DataError(f"{path}: {entry.filename!r} is a symbolic link: store the file itself")
    return name
