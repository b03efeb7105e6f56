"""Data sets as zip files with one folder of images for each class."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from search.data.dataset import DataError, ImageData, UInt8Array

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})

#: Far above any data set that fits into memory here; a bomb of nested zeros stops at once.
MAX_IMAGES = 2_000_000
MAX_IMAGE_FILE_BYTES = 64 << 20
MAX_PIXELS = 64 << 20
MAX_DECODED_BYTES = 16 << 30

#: Part of the cache's key: raise it when decoding changes.
_CACHE_FORMAT = 1


def load_image_zip(
    path: Path,
    *,
    image_shape: tuple[int, int, int],
    class_names: Sequence[str] | None = None,
    cache_dir: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ImageData:
    """Decode a zip of class folders, `<class>/<image>`, possibly below one common folder.

    Args:
        path: The zip file.
        image_shape: (channels, h, w) of the network's input, with 1 (grey) or 3 (RGB) channels. Images of another size
            are resized bilinearly.
        class_names: The expected classes in the order of their labels, from the training set for a test set. By default
            the folders' names in alphabetical order.
        cache_dir: Where the decoded images are kept, by the zip's SHA-256, so that the next start reads them at once.
        on_progress: Called with (decoded, all) every thousand images.

    Raises:
        DataError: The zip is damaged, unsafe or too large, a class is empty or unexpected, or an image is undecodable.
    """
    if image_shape[0] not in (1, 3):
        raise DataError(f"images have 1 or 3 channels, but the network's input has {image_shape[0]}")
    try:
        with zipfile.ZipFile(path) as archive:
            files = list_image_files(archive, path)
            names = read_class_names(files, class_names, path)
            cached = _cache_file(path, image_shape, cache_dir)
            if cached is not None and cached.exists():
                return _read_cache(cached, names)
            data = _decode(archive, files, names, image_shape, path, on_progress)
    except FileNotFoundError:
        raise DataError(f"there is no data set {path}: check the path") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path} is no readable zip file ({error}): make it again") from None
    if cached is not None:
        _write_cache(cached, data)
    return data


def list_image_files(archive: zipfile.ZipFile, path: Path) -> dict[str, list[zipfile.ZipInfo]]:
    """The image files of each class folder, sorted by name. Every class folder has at least one."""
    folders: dict[PurePosixPath, list[zipfile.ZipInfo]] = {}
    for entry in archive.infolist():
        name = _checked_name(entry, path)
        if _is_hidden(name):
            continue
        if entry.is_dir():
            folders.setdefault(name, [])
        elif name.suffix.lower() in IMAGE_SUFFIXES:
            folders.setdefault(name.parent, []).append(entry)
        else:
            raise DataError(
                f"{path}: {entry.filename!r} is no image: a data set holds only folders of "
                f"{', '.join(sorted(IMAGE_SUFFIXES))} files"
            )
    # A folder that only holds other folders is not a class: the common folder above the classes, for example.
    parents = {parent for folder in folders for parent in folder.parents}
    classes = {folder: entries for folder, entries in folders.items() if entries or folder not in parents}
    roots = {folder.parent for folder in classes}
    if not classes or PurePosixPath(".") in classes or len(roots) != 1:
        found = ", ".join(sorted(str(f) for f in classes)[:4]) or "no images"
        raise DataError(f"{path} must hold one folder of images for each class, side by side; found {found}")
    for folder, entries in sorted(classes.items()):
        if not entries:
            raise DataError(f"{path}: the class folder {folder.name!r} has no images: add some, or remove the folder")
    total = sum(len(entries) for entries in classes.values())
    if total > MAX_IMAGES:
        raise DataError(f"{path} has {total} images, more than {MAX_IMAGES}: use a part of them")
    return {
        folder.name: sorted(entries, key=lambda entry: entry.filename) for folder, entries in sorted(classes.items())
    }


def _checked_name(entry: zipfile.ZipInfo, path: Path) -> PurePosixPath:
    name = PurePosixPath(entry.filename)
    if name.is_absolute() or ".." in name.parts or "\\" in entry.filename or ":" in entry.filename.partition("/")[0]:
        raise DataError(f"{path}: the name {entry.filename!r} leads out of the archive: make the zip again")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise DataError(f"{path}: {entry.filename!r} is a symbolic link: store the file itself")
    if entry.file_size > MAX_IMAGE_FILE_BYTES:
        raise DataError(
            f"{path}: {entry.filename!r} unpacks to {entry.file_size} bytes, more than {MAX_IMAGE_FILE_BYTES}"
        )
    return name


def _is_hidden(name: PurePosixPath) -> bool:
    """What operating systems add by themselves: .DS_Store, __MACOSX/."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.parts)


def read_class_names(
    files: dict[str, list[zipfile.ZipInfo]], expected: Sequence[str] | None, path: Path
) -> tuple[str, ...]:
    """The classes in the order of their labels: those expected, or the folders' names. Raises `DataError` on others."""
    names = tuple(files) if expected is None else tuple(expected)
    missing = sorted(set(names) - set(files))
    surplus = sorted(set(files) - set(names))
    if missing or surplus:
        raise DataError(
            f"{path}: the classes differ from those of the training set: missing {missing[:4]}, "
            f"unexpected {surplus[:4]}"
        )
    return names


def _decode(
    archive: zipfile.ZipFile,
    files: dict[str, list[zipfile.ZipInfo]],
    names: tuple[str, ...],
    image_shape: tuple[int, int, int],
    path: Path,
    on_progress: Callable[[int, int], None] | None,
) -> ImageData:
    channels, height, width = image_shape
    total = sum(len(entries) for entries in files.values())
    if total * channels * height * width > MAX_DECODED_BYTES:
        raise DataError(
            f"{path}: {total} images of {image_shape} take more than {MAX_DECODED_BYTES >> 30} GiB: use a part of them"
        )
    images = np.empty((total, height, width, channels), dtype=np.uint8)
    labels = np.empty(total, dtype=np.int64)
    for index, (label, entry) in enumerate(_labelled(files, names)):
        images[index] = _decode_image(archive.read(entry), image_shape, f"{path}: {entry.filename!r}")
        labels[index] = label
        if on_progress is not None and (index + 1) % 1000 == 0:
            on_progress(index + 1, total)
    return ImageData(images=images, labels=labels, class_names=names)


def _labelled(files: dict[str, list[zipfile.ZipInfo]], names: tuple[str, ...]) -> Iterator[tuple[int, zipfile.ZipInfo]]:
    for label, name in enumerate(names):
        for entry in files[name]:
            yield label, entry


def _decode_image(content: bytes, image_shape: tuple[int, int, int], where: str) -> UInt8Array:
    channels, height, width = image_shape
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{where} has {image.width} x {image.height} pixels, more than {MAX_PIXELS}")
            converted = image.convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} cannot be decoded ({error}): replace or remove the file") from None
    if converted.size != (width, height):
        converted = converted.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(converted, dtype=np.uint8).reshape(height, width, channels)


def _cache_file(path: Path, image_shape: tuple[int, int, int], cache_dir: Path | None) -> Path | None:
    if cache_dir is None:
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    channels, height, width = image_shape
    return cache_dir / f"images-v{_CACHE_FORMAT}-{digest}-{channels}x{height}x{width}.npz"


def _read_cache(cached: Path, names: tuple[str, ...]) -> ImageData:
    with np.load(cached, allow_pickle=False) as arrays:
        stored = [str(name) for name in arrays["class_names"]]
        relabel = np.array([names.index(name) for name in stored], dtype=np.int64)
        return ImageData(images=arrays["images"], labels=relabel[arrays["labels"]], class_names=names)


def _write_cache(cached: Path, data: ImageData) -> None:
    cached.parent.mkdir(parents=True, exist_ok=True)
    partial = cached.with_name(f".{cached.name}.{os.getpid()}.part")
    with partial.open("wb") as file:
        np.savez(file, images=data.images, labels=data.labels, class_names=np.array(data.class_names))
    partial.replace(cached)
