"""Data sets as Parquet files: a column `image` of encoded images, and a column `label`.

The columns are those that Hugging Face's `datasets` writes (https://huggingface.co/docs/datasets: `Image` features are
a struct of `bytes` and `path`, names of a `ClassLabel` are in the file's metadata).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from search.data.dataset import DataError, Int64Array
from search.data.limits import MAX_IMAGE_FILE_BYTES, MAX_UNPACKING_RATIO, SMALL_BYTES
from search.data.source import DataSource, StoredImage, check_class_names, check_count, check_labels, numbered

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMN = "label"
#: Few, as each image may be large.
_ROWS_AT_ONCE = 32


class ParquetUnavailable(DataError):
    """pyarrow is not installed."""


@dataclass(frozen=True, slots=True, eq=False)
class _ParquetSource:
    path: Path
    file: Any
    column: str
    class_names: tuple[str, ...]
    has_given_names: bool
    labels: Int64Array

    def images(self, indices: Int64Array) -> Iterator[StoredImage]:
        wanted = np.asarray(indices)
        first = read_bytes = 0
        # Equal images may be stored once, so the sizes that the file states do not bound this.
        most = _max_unpacked(self.path)
        for batch in _batches(self.file, self.column, self.path):
            for index in wanted[(wanted >= first) & (wanted < first + len(batch))]:
                where = f"{self.path}: row {index}"
                content = _content(batch[int(index) - first].as_py(), where)
                read_bytes += len(content)
                if read_bytes > most:
                    raise DataError(f"{self.path} unpacks to more than {most} bytes, as no images do")
                yield StoredImage(where=where, content=content)
            first += len(batch)

    def check_stored(self) -> None:
        """Pages have no checksums as a rule; what cannot be read shows in reading."""


@contextmanager
def open_parquet(path: Path) -> Iterator[DataSource]:
    """A Parquet file with these columns, others being ignored:

    - `image` (or `img`): binary, or a struct with binary `bytes`: JPEG, PNG, BMP or WebP files;
    - `label`: integers from 0 on, or texts, whose alphabetical order is that of the labels.
    """
    pa, parquet = _pyarrow()
    try:
        file = parquet.ParquetFile(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no readable Parquet file ({error}): write it again") from None
    with file:
        schema = file.schema_arrow
        groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
        unpacked, most = sum(group.total_byte_size for group in groups), _max_unpacked(path)
        if unpacked > most:
            raise DataError(f"{path} unpacks to {unpacked} bytes, more than {most}, as no images do")
        check_count(file.metadata.num_rows, str(path))
        column = next((name for name in _IMAGE_COLUMNS if name in schema.names), None)
        if column is None or _LABEL_COLUMN not in schema.names:
            raise DataError(
                f"{path} must have the columns image and label; it has {', '.join(schema.names) or 'none'}: rename them"
            )
        kind = schema.field(column).type
        if pa.types.is_struct(kind):
            inside = [kind.field(i).name for i in range(kind.num_fields)]
            kind = kind.field("bytes").type if "bytes" in inside else kind
            column_path = f"{column}.bytes"
        else:
            column_path = column
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise DataError(f"{path}: the column {column!r} must hold encoded images as binary, not {kind}")
        labels, class_names, given = _labels(pa, file, path)
        check_labels(labels, class_names, str(path))
        names = check_class_names(class_names, str(path))
        yield _ParquetSource(path, file, column_path, names, given, labels)


def _max_unpacked(path: Path) -> int:
    return max(SMALL_BYTES, MAX_UNPACKING_RATIO * path.stat().st_size)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise ParquetUnavailable("Parquet needs pyarrow: pip install 'kerf[parquet]'") from None
    return pa, parquet


def _labels(pa: Any, file: Any, path: Path) -> tuple[Int64Array, tuple[str, ...], bool]:
    """Labels, class names in their order, and whether the file has those."""
    kind = file.schema_arrow.field(_LABEL_COLUMN).type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not is_text and not pa.types.is_integer(kind):
        raise DataError(f"{path}: the column 'label' must hold integers or texts, not {kind}")
    values: list[Any] = []
    for batch in _batches(file, _LABEL_COLUMN, path, rows=1 << 16):
        values += batch.to_pylist()
    if None in values:
        raise DataError(f"{path}: row {values.index(None)} has no label: give it one, or leave the row out")
    if is_text:
        names = tuple(sorted(set(values)))
        place = {name: label for label, name in enumerate(names)}
        return np.array([place[value] for value in values], dtype=np.int64), names, True
    # Before the classes are counted, which takes memory for each; unsigned ones may not fit into int64.
    bad = next((i for i, value in enumerate(values) if not 0 <= value < len(values)), None)
    if bad is not None:
        raise DataError(f"{path}: the label of row {bad} is {values[bad]}: number the classes from 0 on, without gaps")
    labels = np.array(values, dtype=np.int64)
    named = _names_in_metadata(file.schema_arrow.metadata or {})
    return labels, named or numbered(labels), named is not None


def _names_in_metadata(metadata: dict[bytes, bytes]) -> tuple[str, ...] | None:
    """The names of a `ClassLabel`, where there are any."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][_LABEL_COLUMN]["names"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _batches(file: Any, column: str, path: Path, rows: int = _ROWS_AT_ONCE) -> Iterator[Any]:
    """The column, piece by piece."""
    pa, _ = _pyarrow()
    try:
        for batch in file.iter_batches(batch_size=rows, columns=[column]):
            values = batch.column(0)
            yield values.field(0) if pa.types.is_struct(values.type) else values
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read to its end ({error}): write it again") from None


def _content(value: object, where: str) -> bytes:
    if not isinstance(value, bytes):
        raise DataError(f"{where} has no image bytes: store the images themselves, not their paths")
    if len(value) > MAX_IMAGE_FILE_BYTES:
        raise DataError(f"{where} has {len(value)} bytes, more than {MAX_IMAGE_FILE_BYTES}: shrink it")
    return value
