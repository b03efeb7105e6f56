"""The little that Kerf reads back from a TFLite file: named metadata. Any bytes may come; nothing is trusted."""

from __future__ import annotations

import struct

import flatbuffers.encode
import flatbuffers.number_types
import flatbuffers.packer
import flatbuffers.table

from device_agent.contracts.codec import ContractError
from device_agent.formats.tflite_graph import FILE_IDENTIFIER


def read_metadata(model: bytes, name: str) -> bytes | None:
    """The blob that `GraphWriter.metadata` stored under `name`; None when there is none.

    Raises `ContractError` when `model` is no TFLite file.
    """
    table = read_root(model)
    try:
        for entry in read_tables(table, 6):
            if read_bytes(entry, 0) == name.encode():
                index_at = entry.Offset(6)
                index = entry.Get(flatbuffers.number_types.Uint32Flags, entry.Pos + index_at) if index_at else 0
                return read_bytes(read_tables(table, 4)[index], 0)
    except (IndexError, ValueError, TypeError, OverflowError, struct.error) as error:
        raise ContractError(f"the TFLite file is damaged: {error}") from None
    return None


def read_root(model: bytes) -> flatbuffers.table.Table:
    """The model's first table. Raises `ContractError` when `model` is no TFLite file."""
    if len(model) < 8 or model[4:8] != FILE_IDENTIFIER:
        raise ContractError("this is no TFLite file: the identifier TFL3 is missing at byte 4")
    return flatbuffers.table.Table(model, flatbuffers.encode.Get(flatbuffers.packer.uoffset, model, 0))


def read_tables(table: flatbuffers.table.Table, slot: int) -> list[flatbuffers.table.Table]:
    """The tables of a vector. Raises whatever a damaged file makes of it: IndexError, ValueError, struct.error."""
    offset = table.Offset(4 + 2 * slot)
    if not offset:
        return []
    start = table.Vector(offset)
    length = table.VectorLen(offset)
    if length * 4 > len(table.Bytes):
        raise ValueError(f"a vector claims {length} entries")
    return [flatbuffers.table.Table(table.Bytes, table.Indirect(start + 4 * i)) for i in range(length)]


def read_bytes(table: flatbuffers.table.Table, slot: int) -> bytes:
    """A vector of bytes or a string. Raises like `read_tables`."""
    offset = table.Offset(4 + 2 * slot)
    if not offset:
        return b""
    start = table.Vector(offset)
    return bytes(table.Bytes[start : start + table.VectorLen(offset)])
