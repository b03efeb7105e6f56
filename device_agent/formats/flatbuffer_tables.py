"""Tables, vectors and offsets of a flatbuffer by slot number: what a file format is written with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import flatbuffers


@dataclass(frozen=True, slots=True)
class OffsetField:
    """A field that points to something written before its table."""

    slot: int
    target: int


def write_table(builder: flatbuffers.Builder, num_slots: int, *fields: Callable[[], None] | OffsetField) -> int:
    """A table of the given fields; returns its offset. A callable writes its field into the open table."""
    builder.StartObject(num_slots)
    for write in fields:
        if isinstance(write, OffsetField):
            builder.PrependUOffsetTRelativeSlot(write.slot, write.target, 0)
        else:
            write()
    return int(builder.EndObject())


def offset_vector(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    """A vector of tables or strings that were written before; returns its offset."""
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def int_vector(builder: flatbuffers.Builder, values: Sequence[int]) -> int:
    """A vector of 32-bit integers; returns its offset."""
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependInt32(value)
    return int(builder.EndVector())
