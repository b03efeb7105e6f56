"""Data sets as NumPy archives: `images` with `labels`, or with the `targets` of a task of one's own.

Arrays are read by their headers, never by pickle, and a few images at a time.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from search.data.dataset import DataError, Int64Array, Targets, UInt8Array
from search.data.image_zip import BAD_ARCHIVE, check_checksums, open_archive
from search.data.limits import MAX_DECODED_BYTES, MAX_PIXELS
from search.data.source import DataSource, StoredImage, check_class_names, check_count, check_labels, numbered

_ARRAYS = ("images", "labels", "targets", "class_names")
_CHUNK_BYTES = 16 << 20
#: Of one array's header, which for the arrays that are allowed is some 100 bytes.
_MAX_HEADER_BYTES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """The head of one array. `name` is what errors call it."""

    name: str
    entry: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    data_offset: int

    @property
    def row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class _NpzSource:
    path: Path
    archive: zipfile.ZipFile
    pixels: _Header
    class_names: tuple[str, ...]
    has_given_names: bool
    labels: Targets

    def images(self, indices: Int64Array) -> Iterator[StoredImage]:
        """Images as uint8; floats in [0, 1] are rounded to 8 bits."""
        wanted = np.asarray(indices)
        rows = max(1, _CHUNK_BYTES // max(1, self.pixels.row_bytes))
        try:
            with self.archive.open(self.pixels.entry) as file:
                file.read(self.pixels.data_offset)
                for first in range(0, self.pixels.shape[0], rows):
                    count = min(rows, self.pixels.shape[0] - first)
                    chunk = _read_rows(file, self.pixels, count)
                    for index in wanted[(wanted >= first) & (wanted < first + count)]:
                        where = f"{self.path}: images[{index}]"
                        yield StoredImage(where=where, content=_as_bytes(chunk[index - first], where))
        except BAD_ARCHIVE as error:
            raise DataError(f"{self.path}: 'images' is damaged ({error}): make the file again") from None

    def check_stored(self) -> None:
        check_checksums(self.archive, self.path)


@contextmanager
def open_npz(path: Path) -> Iterator[DataSource]:
    """A file of `numpy.savez` with these arrays:

    - `images`: (n, h, w), (n, h, w, 1) or (n, h, w, 3), uint8, or floats in [0, 1];
    - `labels`: (n,) integers from 0 on, and `class_names`: (classes,) texts, which may be left out;
    - or, instead of both, `targets`: (n, ...) finite floats or integers.
    """
    with open_archive(path) as archive:
        headers = _headers(archive, path)
        pixels = headers.get("images")
        if pixels is None or ("labels" in headers) == ("targets" in headers):
            found = ", ".join(sorted(headers)) or "nothing"
            raise DataError(f"{path} must hold images, and either labels or targets; found {found}")
        _check_pixels(pixels, path)
        count = pixels.shape[0]
        if "targets" in headers:
            if "class_names" in headers:
                raise DataError(f"{path}: class_names belong to labels, not to targets: leave them out")
            targets = _targets(archive, headers["targets"], count, path)
            yield _NpzSource(path, archive, pixels, (), False, targets)
            return
        labels = _labels(archive, headers["labels"], count, path)
        given = headers.get("class_names")
        names = numbered(labels) if given is None else _names(archive, given, path)
        check_labels(labels, names, str(path))
        yield _NpzSource(path, archive, pixels, check_class_names(names, str(path)), given is not None, labels)


def _headers(archive: zipfile.ZipFile, path: Path) -> dict[str, _Header]:
    found: dict[str, _Header] = {}
    for entry in archive.infolist():
        name = entry.filename.removesuffix(".npy")
        if name == entry.filename or name not in _ARRAYS or name in found:
            raise DataError(
                f"{path}: unexpected {entry.filename!r}: an .npz data set has the arrays images, labels and "
                "class_names, or images and targets, once each"
            )
        with archive.open(entry) as file:
            found[name] = _header(file, entry, name, path)
    return found


def _header(file: IO[bytes], entry: zipfile.ZipInfo, name: str, path: Path) -> _Header:
    try:
        major, _ = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file, max_header_size=_MAX_HEADER_BYTES)
    except (ValueError, EOFError, SyntaxError, TypeError) as error:
        raise DataError(f"{path}: {name!r} is no NumPy array ({error}): save it with numpy.savez") from None
    if dtype.hasobject:
        raise DataError(
            f"{path}: {name!r} holds Python objects, which could run code when they are read: save numbers or texts "
            "with a plain dtype"
        )
    if dtype.kind not in "biufU":
        raise DataError(f"{path}: {name!r} has the dtype {dtype}: save plain numbers or texts")
    if is_fortran and len(shape) > 1:
        raise DataError(f"{path}: {name!r} is stored by columns: save numpy.ascontiguousarray of it")
    if prod(shape) * dtype.itemsize != entry.file_size - file.tell():
        raise DataError(f"{path}: {name!r} says that it is {shape}, which its size does not fit: make the file again")
    return _Header(name=name, entry=entry, shape=shape, dtype=dtype, data_offset=file.tell())


def _check_pixels(pixels: _Header, path: Path) -> None:
    shape, dtype = pixels.shape, pixels.dtype
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3):
        raise DataError(f"{path}: images {shape} look like (n, channels, h, w): save images.transpose(0, 2, 3, 1)")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)) or 0 in shape[1:]:
        raise DataError(f"{path}: images must be (n, h, w), (n, h, w, 1) or (n, h, w, 3), not {shape}")
    if dtype != np.uint8 and dtype.kind != "f":
        raise DataError(f"{path}: images must be uint8, or floats in [0, 1], not {dtype}: convert them")
    if shape[1] * shape[2] > MAX_PIXELS:
        raise DataError(f"{path}: images have {shape[1]} x {shape[2]} pixels, more than {MAX_PIXELS}: shrink them")
    check_count(shape[0], str(path))


def _labels(archive: zipfile.ZipFile, header: _Header, count: int, path: Path) -> Int64Array:
    if header.shape != (count,) or header.dtype.kind not in "iu":
        raise DataError(
            f"{path}: {count} images need labels ({count},) of integers, not {header.shape} of {header.dtype}; what is "
            "no class is called targets"
        )
    labels = _whole(archive, header, path)
    if labels.dtype.kind == "u" and labels.max(initial=0) > np.iinfo(np.int64).max:
        raise DataError(f"{path}: the label {labels.max()} is out of range: labels run from 0 on")
    if labels.min(initial=0) < 0:
        at = int(labels.argmin())
        raise DataError(f"{path}: the label of image {at} is {labels[at]}: labels run from 0 on")
    # Before the classes are counted, which takes memory for each.
    if labels.max(initial=0) >= count:
        at = int(labels.argmax())
        raise DataError(
            f"{path}: the label of image {at} is {labels[at]}, but {count} images are of {count} classes at most: "
            "number the classes from 0 on without gaps"
        )
    return labels.astype(np.int64)


def _names(archive: zipfile.ZipFile, header: _Header, path: Path) -> tuple[str, ...]:
    if len(header.shape) != 1 or header.dtype.kind != "U":
        raise DataError(
            f"{path}: class_names must be (classes,) texts, not {header.shape} of {header.dtype}: save numpy.array of "
            "a list of str"
        )
    return tuple(str(name) for name in _whole(archive, header, path))


def _targets(archive: zipfile.ZipFile, header: _Header, count: int, path: Path) -> Targets:
    if not header.shape or header.shape[0] != count or header.dtype.kind not in "biuf" or 0 in header.shape:
        raise DataError(
            f"{path}: {count} images need targets ({count}, ...) of numbers, not {header.shape} of {header.dtype}"
        )
    targets = _whole(archive, header, path)
    if targets.dtype.kind != "f":
        return targets.astype(np.int64)
    bad = np.flatnonzero(~np.isfinite(targets.reshape(count, -1)).all(axis=1))
    if len(bad):
        raise DataError(f"{path}: targets[{bad[0]}] has values that are not finite: correct it, or leave the image out")
    return targets.astype(np.float32)


def _whole(archive: zipfile.ZipFile, header: _Header, path: Path) -> NDArray[Any]:
    if header.entry.file_size > MAX_DECODED_BYTES:
        raise DataError(f"{path}: {header.name!r} has {header.entry.file_size} bytes, more than {MAX_DECODED_BYTES}")
    try:
        with archive.open(header.entry) as file:
            file.read(header.data_offset)
            return _read_rows(file, header, header.shape[0])
    except BAD_ARCHIVE as error:
        raise DataError(f"{path}: {header.name!r} is damaged ({error}): make the file again") from None


def _read_rows(file: IO[bytes], header: _Header, count: int) -> NDArray[Any]:
    data = file.read(count * header.row_bytes)
    if len(data) != count * header.row_bytes:
        raise EOFError("it ends early")
    rows: NDArray[Any] = np.frombuffer(data, dtype=header.dtype).reshape(count, *header.shape[1:])
    return rows


def _as_bytes(image: NDArray[Any], where: str) -> UInt8Array:
    if image.dtype == np.uint8:
        return image
    # NaN fails both comparisons.
    if not (image.min() >= 0 and image.max() <= 1):
        raise DataError(f"{where} has values that are not in [0, 1]: scale floats to [0, 1], or save uint8")
    return np.rint(image.astype(np.float32) * 255).astype(np.uint8)
