"""A quick check of a zip of class folders, for when it is handed in: no image is decoded but one of each class."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from search.data.dataset import DataError
from search.data.image_zip import list_image_files, read_class_names

#: Real images hardly deflate; a zip that unpacks to more than this and by this factor is a bomb.
_MAX_RATIO = 50
_SMALL_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ZipContents:
    """What a data set's zip holds. The order of the names is that of the labels."""

    class_names: tuple[str, ...]
    num_images: int


def check_image_zip(path: Path, class_names: Sequence[str] | None = None) -> ZipContents:
    """Check names, classes, checksums of all files, and that the first image of each class can be decoded.

    Args:
        path: The zip file.
        class_names: The classes that must be there, for a test set.

    Raises:
        DataError: The zip is damaged, unsafe or too large, a class is empty or unexpected, or an image is undecodable.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > _SMALL_BYTES and unpacked > _MAX_RATIO * path.stat().st_size:
                raise DataError(f"{path.name} unpacks to {unpacked} bytes, {_MAX_RATIO} times its size: no images do")
            files = list_image_files(archive, path)
            names = read_class_names(files, class_names, path)
            damaged = archive.testzip()
            if damaged is not None:
                raise DataError(f"{path.name}: {damaged!r} is damaged (its checksum is wrong): make the zip again")
            for entries in files.values():
                _try_decoding(archive.read(entries[0]), entries[0].filename)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path.name} is no readable zip file ({error}): make it again") from None
    return ZipContents(class_names=names, num_images=sum(len(entries) for entries in files.values()))


def _try_decoding(content: bytes, name: str) -> None:
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name!r} cannot be decoded ({error}): replace or remove the file") from None
