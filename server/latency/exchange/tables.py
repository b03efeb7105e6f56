"""Files as rows of named values: CSV, JSON, Parquet, and NumPy arrays. Nothing in a file can run code."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath
from typing import Any

import numpy as np

from device_agent.contracts import ContractError
from server.latency.exchange.mapping import Axis, ImportMapping

#: Of the file. A Parquet file may be much smaller than what it unpacks to, so that rows have a limit of their own.
MAX_FILE_BYTES = 64 << 20
#: One transaction: more would keep agents waiting for the write lock.
MAX_ROWS = 50_000
#: Of an array, with the cells that stand for "not measured".
MAX_CELLS = 1_000_000
#: Of a JSON file, 20 for each row: reading millions of them takes seconds in which nobody else is served.
MAX_JSON_CONTAINERS = 1_000_000
_MAX_COLUMNS = 500
_BATCH_ROWS = 1000
_NPY_MAGIC = b"\x93NUMPY"
#: Texts that spreadsheets take for formulas (https://owasp.org/www-community/attacks/CSV_Injection), and what
#: `as_text` makes of them.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


class TableFormat(StrEnum):
    """The form of a file."""

    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"
    NPY = "npy"


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row: where it stands in the file, in words, and its values."""

    position: str
    values: Mapping[str, Any]


def as_text(value: Any) -> Any:
    """A cell of our CSV files: a text that a spreadsheet would calculate has an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def from_text(value: Any) -> Any:
    """What `as_text` was given."""
    return value[1:] if isinstance(value, str) and value.startswith("'") and _FORMULA.match(value) else value


def format_of(file_name: str) -> TableFormat:
    """The form that a file's name tells. Raises `ContractError`."""
    try:
        return TableFormat(PurePath(file_name).suffix.removeprefix(".").lower())
    except ValueError:
        known = ", ".join(f".{item.value}" for item in TableFormat)
        raise ContractError(f"file_name {file_name!r} ends in none of {known}: convert the file") from None


def read_rows(data: bytes, form: TableFormat) -> list[TableRow]:
    """The rows of a table, at most `MAX_ROWS`. Raises `ContractError` where the file is not what it says."""
    readers = {TableFormat.CSV: _csv_rows, TableFormat.JSON: _json_rows, TableFormat.PARQUET: _parquet_rows}
    rows = list(itertools.islice(readers[form](data), MAX_ROWS + 1))
    if len(rows) > MAX_ROWS:
        raise ContractError(f"the file has more than {MAX_ROWS} rows: split it")
    if not rows:
        raise ContractError("the file has no rows")
    return rows


def _csv_rows(data: bytes) -> Iterator[TableRow]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ContractError(f"the file is no UTF-8 text ({error}): save it as UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        _check_columns(header)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise ContractError(
                    f"line {reader.line_num} has {len(cells)} cells, but there are {len(header)} columns"
                )
            yield TableRow(f"line {reader.line_num}", dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise ContractError(f"line {reader.line_num} is no CSV: {error}") from None


def _json_rows(data: bytes) -> Iterator[TableRow]:
    if data.count(b"[") + data.count(b"{") > MAX_JSON_CONTAINERS:
        raise ContractError(f"the file has more than {MAX_JSON_CONTAINERS} lists and objects: split it")
    try:
        items = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ContractError(f"the file is no JSON: {error}") from None
    if not isinstance(items, list):
        raise ContractError("the file is no JSON list of objects")
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict):
            raise ContractError(f"row {number} is no JSON object")
        yield TableRow(f"row {number}", item)


def _parquet_rows(data: bytes) -> Iterator[TableRow]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise ContractError(
            "this server does not read Parquet: install kerf[parquet] there, or save the table as CSV"
        ) from None
    number = 0
    try:
        file = parquet.ParquetFile(pa.BufferReader(data))
        names = list(file.schema_arrow.names)
        _check_columns(names)
        if file.metadata.num_rows > MAX_ROWS:
            raise ContractError(f"the file has {file.metadata.num_rows} rows, more than {MAX_ROWS}: split it")
        # Row groups are unpacked one after the other, a few rows at a time.
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
            for values in batch.to_pylist():
                number += 1
                yield TableRow(f"row {number}", values)
    except ContractError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        # Names that are no UTF-8 and times beyond the calendar are Python's errors.
        raise ContractError(f"the file is no Parquet that can be read: {error}") from None


def _check_columns(names: list[str]) -> None:
    if len(names) > _MAX_COLUMNS:
        raise ContractError(f"the file has {len(names)} columns, more than {_MAX_COLUMNS}")
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ContractError(f"two columns are called {twice!r}")


def read_array(data: bytes) -> np.ndarray:
    """A numeric array from an NPY file. Its header is checked against the file's size before anything is allocated.

    Raises `ContractError`; objects, which would be pickles, are refused.
    """
    if not data.startswith(_NPY_MAGIC):
        raise ContractError("the file is no NumPy array (.npy)")
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ContractError(f"NPY version {version} is not 1.0 or 2.0: save the array anew")
        shape, _, dtype = read_header(stream)
    except ContractError:
        raise
    except Exception as error:
        # NumPy parses the header as Python literals, and hands on whatever the tokenizer raises.
        raise ContractError(f"the file's NPY header cannot be read: {error}") from None
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        raise ContractError(f"the array holds {dtype}, but latencies are floats or integers of up to 64 bits")
    cells = math.prod(shape)
    if cells > MAX_CELLS:
        raise ContractError(f"the array has {cells} cells, more than {MAX_CELLS}")
    if len(data) - stream.tell() != cells * dtype.itemsize:
        raise ContractError(f"the file does not hold the {cells} cells that its header tells: it was cut or changed")
    stream.seek(0)
    array: np.ndarray = np.load(stream, allow_pickle=False)
    return array


def array_rows(array: np.ndarray, mapping: ImportMapping, latency_name: str) -> list[TableRow]:
    """The cells of an array as rows, with the latency as `latency_name`; cells that the axes leave out are no rows.

    Raises `ContractError` where the axes do not fit the array.
    """
    if array.shape != tuple(len(axis) for axis in mapping.axes):
        told = " x ".join(f"{axis.name} ({len(axis)})" for axis in mapping.axes)
        raise ContractError(f"the array's shape is {array.shape}, but the mapping's axes are {told}")
    rows = []
    for index in np.ndindex(*array.shape):
        values = _cell_fields(mapping.axes, index)
        if values is not None:
            rows.append(TableRow(f"cell {list(index)}", {**values, latency_name: float(array[index])}))
    return rows


def _cell_fields(axes: tuple[Axis, ...], index: tuple[int, ...]) -> dict[str, Any] | None:
    """The fields that a cell's index stands for; None where it stands for nothing."""
    values: dict[str, Any] = {}
    only: dict[str, Any] = {}
    for axis, i in zip(axes, index, strict=True):
        if axis.records:
            values |= axis.records[i]
            only |= values.pop("only", {})
    for axis, i in zip(axes, index, strict=True):
        if axis.records:
            continue
        name = axis.field or axis.scale
        assert name is not None
        if axis.name in only:
            # The record has one index on this axis, and its own value stands there.
            if i != only[axis.name]:
                return None
            continue
        value = axis.values[i]
        if value is None:
            return None
        values[name] = values.get(name, math.nan) * value if axis.scale else value
    return values
