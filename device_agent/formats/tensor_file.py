"""A safetensors file, of which only what is asked for is read.

The format: 8 bytes with the length of a JSON header, the header, and the tensors one after the other without gaps.
Reading runs no code, and every extent is checked against the file before it is used.
"""

from __future__ import annotations

import io
import json
import math
import struct
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import ContractError

_MAX_HEADER_BYTES = 64 << 20
_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """Where a tensor lies in the file: `start` in bytes."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int


class TensorFile:
    """The tensors of a safetensors file by name, and its metadata.

    A file that is named by its path stays open, and is read when a tensor is. It is not mapped: one byte of a map can
    make 2 MB of it resident, and whoever cuts the file short would end the process.
    """

    def __init__(self, source: bytes | Path) -> None:
        """Raises `ContractError` for what is not a sound safetensors file, `OSError` where it cannot be read."""
        self._source = source if isinstance(source, bytes) else _opened(self, source)
        num_bytes = len(source) if isinstance(source, bytes) else source.stat().st_size
        if num_bytes < 8:
            raise ContractError(f"{num_bytes} bytes are no packed network")
        (header_bytes,) = struct.unpack("<Q", self._bytes(0, 8))
        if not 0 < header_bytes <= min(num_bytes - 8, _MAX_HEADER_BYTES):
            raise ContractError(f"a header of {header_bytes} bytes does not fit a file of {num_bytes} bytes")
        try:
            header = json.loads(bytes(self._bytes(8, header_bytes)))
            self.metadata: Mapping[str, Any] = header.pop("__metadata__", {})
            entries = {name: _entry(name, value) for name, value in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ContractError(f"not a sound safetensors file: {type(error).__name__}: {error}") from None
        self._first = 8 + header_bytes
        end = 0
        for entry, (start, entry_end) in sorted(entries.values(), key=lambda item: item[1]):
            if start != end or entry_end - start != entry.dtype.itemsize * math.prod(entry.shape):
                raise ContractError(f"not a sound safetensors file: a tensor {entry.shape} at {start} to {entry_end}")
            end = entry_end
        if end != num_bytes - self._first:
            raise ContractError(f"tensors of {end} bytes do not fill a file of {num_bytes} bytes")
        self.entries: Mapping[str, TensorEntry] = {name: entry for name, (entry, _) in entries.items()}

    def read(self, name: str, first: int = 0, last: int | None = None) -> NDArray[Any]:
        """A tensor, or the part of it from `first` to `last` of its first axis; not to be written to.

        Raises `ContractError` where the file is shorter than it was.
        """
        entry = self.entries[name]
        shape = entry.shape
        row_bytes = entry.dtype.itemsize * math.prod(shape[1:])
        if shape:
            shape = (max(0, (shape[0] if last is None else min(last, shape[0])) - first), *shape[1:])
        num_bytes = entry.dtype.itemsize * math.prod(shape)
        if num_bytes == 0:
            return np.zeros(shape, dtype=entry.dtype)
        data = self._bytes(self._first + entry.start + first * row_bytes, num_bytes)
        return np.frombuffer(data, dtype=entry.dtype).reshape(shape)

    def _bytes(self, start: int, count: int) -> bytes | memoryview:
        if isinstance(self._source, bytes):
            return memoryview(self._source)[start : start + count]
        self._source.seek(start)
        data = self._source.read(count)
        if data is None or len(data) < count:
            raise ContractError(f"the file {self._source.name} was cut short: {count} bytes at {start} are missing")
        return data


def _entry(name: str, value: Mapping[str, Any]) -> tuple[TensorEntry, tuple[int, int]]:
    start, end = value["data_offsets"]
    shape = tuple(value["shape"])
    if not all(type(number) is int and number >= 0 for number in (start, end, *shape)):
        raise ValueError(f"{name}: {value}")
    return TensorEntry(dtype=np.dtype(_TYPES[value["dtype"]]), shape=shape, start=start), (start, end)


def _opened(owner: TensorFile, path: Path) -> io.FileIO:
    file = io.FileIO(path)
    weakref.finalize(owner, file.close)
    return file
