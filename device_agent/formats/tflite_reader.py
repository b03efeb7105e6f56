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
    if len(model) < 8 or model[4:8] != FILE_IDENTIFIER:
        raise ContractError("this is no TFLite file: the identifier TFL3 is missing at byte 4")
    try:
        root = flatbuffers.encode.Get(flatbuffers.packer.uoffset, model, 0)
        table = flatbuffers.table.Table(model, root)
        for entry in _read_tables(table, 6):
            if _read_bytes(entry, 0) == name.encode():
                index_at = entry.Offset(6)
                index = entry.Get(flatbuffers.number_types.Uint32Flags, entry.Pos + index_at) if index_at else 0
                return _read_bytes(_read_tables(table, 4)[index], 0)
    except (IndexError, ValueError, TypeError, OverflowError, struct.error) as error:
        raise ContractError(f"the TFLite file is damaged: {error}") from None
    return None


def _read_tables(table: flatbuffers.table.Table, slot: int) -> list[flatbuffers.table.Table]:
    offset = table.Offset(4 + 2 * slot)
    if not offset:
        return []
    start = table.Vector(offset)
    length = table.VectorLen(offset)
    if length * 4 > len(table.Bytes):
        raise ValueError(f"a vector claims {length} entries")
    return [flatbuffers.table.Table(table.Bytes, table.Indirect(start + 4 * i)) for i in range(length)]


def _read_bytes(table: flatbuffers.table.Table, slot: int) -> bytes:
    offset = table.Offset(4 + 2 * slot)
    if not offset:
        return b""
    start = table.Vector(offset)
    return bytes(table.Bytes[start : start + table.VectorLen(offset)])
