"""Data sets in any of their forms: opened by what they hold, and read into memory."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from search.data.dataset import DataError, ImageData, Int64Array, Targets, UInt8Array
from search.data.folder import folder_digest, open_folder
from search.data.image_zip import BAD_ARCHIVE, open_image_zip
from search.data.limits import MAX_DECODED_BYTES
from search.data.npz import open_npz
from search.data.parquet import open_parquet
from search.data.pictures import decode_picture, fit_picture
from search.data.source import DataFormat, DataSource, Opened
from search.domain.config import ImageFit

#: Part of the cache's key: raise it when decoding changes.
_CACHE_FORMAT = 2

_OPENERS: dict[DataFormat, Callable[[Path], Opened]] = {
    DataFormat.FOLDER: open_folder,
    DataFormat.ZIP: open_image_zip,
    DataFormat.NPZ: open_npz,
    DataFormat.PARQUET: open_parquet,
}


def detect_format(path: Path) -> DataFormat:
    """The form of a data set, by its content and not its name. Raises `DataError` where it is none of ours."""
    if path.is_dir():
        return DataFormat.FOLDER
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except FileNotFoundError:
        raise DataError(f"there is no data set {path}: check the path") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if head == b"PAR1":
        return DataFormat.PARQUET
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except BAD_ARCHIVE as error:
        raise DataError(
            f"{path} is no readable zip file ({error}), and no Parquet file either: give a folder or zip of class "
            "folders, .npz or Parquet"
        ) from None
    is_npz = bool(names) and all(name.endswith(".npy") for name in names)
    return DataFormat.NPZ if is_npz else DataFormat.ZIP


def open_data(path: Path) -> Opened:
    """Open a data set in whichever form it is. Raises `DataError` for what is damaged, unsafe or too large."""
    return _OPENERS[detect_format(path)](path)


def read_data(
    path: Path,
    *,
    image_shape: tuple[int, int, int],
    fit: ImageFit | None = ImageFit.STRETCH,
    class_names: Sequence[str] | None = None,
    cache_dir: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ImageData:
    """Read all images of a data set.

    Args:
        path: A folder or zip of class folders, `.npz` or Parquet.
        image_shape: (channels, h, w) of the network's input, with 1 (grey) or 3 (RGB) channels.
        fit: What is done with images of another size; None refuses them.
        class_names: The expected classes in the order of their labels, from the training set for a test set.
            By default those of the data set itself.
        cache_dir: Where the decoded images are kept, by the content's SHA-256, so that the next start reads them at
            once.
        on_progress: Called with (decoded, all) every thousand images.

    Raises:
        DataError: The data set is damaged, unsafe or too large, a class is empty or unexpected, or an image is
            undecodable. The text names the file and the remedy.
    """
    if image_shape[0] not in (1, 3):
        raise DataError(f"images have 1 or 3 channels, but the network's input has {image_shape[0]}")
    cached = None if cache_dir is None else _cache_file(path, image_shape, fit, cache_dir)
    with open_data(path) as source:
        labels, names = relabelled(source, class_names, str(path))
        if cached is not None and cached.exists():
            with np.load(cached, allow_pickle=False) as arrays:
                images = arrays["images"]
        else:
            images = _decode(source, image_shape, fit, str(path), on_progress)
    data = ImageData(images=images, labels=labels, class_names=names)
    if cached is not None and not cached.exists():
        _write_cache(cached, data)
    return data


def relabelled(source: DataSource, expected: Sequence[str] | None, where: str) -> tuple[Targets, tuple[str, ...]]:
    """Labels and class names of a source, in the order that is expected of it.

    Classes without names of their own are numbers, and those are the places of the expected names.

    Raises `DataError` where the classes are not those that are expected.
    """
    names = source.class_names
    if expected is None or tuple(expected) == names:
        return source.labels, names
    if not source.has_given_names and len(names) == len(expected):
        return source.labels, tuple(expected)
    missing = sorted(set(expected) - set(names))
    surplus = sorted(set(names) - set(expected))
    if missing or surplus:
        raise DataError(
            f"{where}: the classes differ from those of the training set: missing {missing[:4]}, "
            f"unexpected {surplus[:4]}"
        )
    by_name = {name: label for label, name in enumerate(expected)}
    place = np.array([by_name[name] for name in names], dtype=np.int64)
    return place[source.labels], tuple(expected)


def data_digest(path: Path) -> str:
    """SHA-256 of a data set: of a file, or of the names and contents of a folder's images."""
    if path.is_dir():
        return folder_digest(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _decode(
    source: DataSource,
    image_shape: tuple[int, int, int],
    fit: ImageFit | None,
    where: str,
    on_progress: Callable[[int, int], None] | None,
) -> UInt8Array:
    channels, height, width = image_shape
    total = len(source.labels)
    if total * channels * height * width > MAX_DECODED_BYTES:
        raise DataError(
            f"{where}: {total} images of {image_shape} take more than {MAX_DECODED_BYTES >> 30} GiB: use a part of them"
        )
    images = np.empty((total, height, width, channels), dtype=np.uint8)
    everything: Int64Array = np.arange(total, dtype=np.int64)
    for index, stored in enumerate(source.images(everything)):
        content = stored.content
        picture = decode_picture(content, stored.where) if isinstance(content, bytes) else content
        images[index] = fit_picture(picture, image_shape, fit, stored.where)
        if on_progress is not None and (index + 1) % 1000 == 0:
            on_progress(index + 1, total)
    return images


def _cache_file(path: Path, image_shape: tuple[int, int, int], fit: ImageFit | None, cache_dir: Path) -> Path:
    detect_format(path)  # With our words for what is not there.
    channels, height, width = image_shape
    way = "exact" if fit is None else fit.value
    return cache_dir / f"images-v{_CACHE_FORMAT}-{data_digest(path)}-{channels}x{height}x{width}-{way}.npz"


def _write_cache(cached: Path, data: ImageData) -> None:
    cached.parent.mkdir(parents=True, exist_ok=True)
    partial = cached.with_name(f".{cached.name}.{os.getpid()}.part")
    with partial.open("wb") as file:
        np.savez(file, images=data.images)
    partial.replace(cached)
