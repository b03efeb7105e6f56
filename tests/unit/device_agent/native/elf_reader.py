"""Reads of a shared library what a dynamic linker would: enough to see that it needs nothing."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_TLS, PT_GNU_RELRO = 1, 2, 3, 7, 0x6474E552
DT_NEEDED, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_INIT, DT_FINI = 1, 4, 5, 6, 12, 13
DT_TEXTREL, DT_INIT_ARRAY, DT_FINI_ARRAY = 22, 25, 26
EM_X86_64, EM_ARM, EM_AARCH64 = 62, 40, 183
_WRITABLE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One program header."""

    type: int
    flags: int
    offset: int
    address: int
    file_bytes: int
    memory_bytes: int
    alignment: int

    @property
    def end(self) -> int:
        return self.address + self.memory_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Elf:
    """A little-endian shared library."""

    machine: int
    segments: tuple[Segment, ...]
    dynamic: tuple[tuple[int, int], ...]
    defined: tuple[str, ...]
    undefined: tuple[str, ...]

    def has(self, *tags: int) -> bool:
        return any(tag in tags for tag, _ in self.dynamic)

    def of_type(self, segment_type: int) -> list[Segment]:
        return [segment for segment in self.segments if segment.type == segment_type]

    def writable_bytes(self) -> int:
        """Bytes that stay writable once the linker is done: the library's global variables."""
        sealed = self.of_type(PT_GNU_RELRO)
        return sum(
            max(0, segment.end - max([segment.address, *(relro.end for relro in sealed)]))
            for segment in self.of_type(PT_LOAD)
            if segment.flags & _WRITABLE
        )


def read_elf(path: Path) -> Elf:
    """Parse a 32-bit or 64-bit file. Symbols are counted by the DT_HASH table, which has to be there."""
    data = path.read_bytes()
    assert data[:4] == b"\x7fELF", f"{path} is no ELF file"
    wide = data[4] == 2
    machine = struct.unpack_from("<H", data, 18)[0]
    header_at = struct.unpack_from("<Q" if wide else "<I", data, 32 if wide else 28)[0]
    size, count = struct.unpack_from("<HH", data, 54 if wide else 42)
    segments = tuple(_segment(data, header_at + i * size, wide) for i in range(count))

    def file_offset(address: int) -> int:
        for segment in segments:
            if segment.type == PT_LOAD and segment.address <= address < segment.address + segment.file_bytes:
                return address - segment.address + segment.offset
        raise AssertionError(f"no segment of {path} holds address {address:#x}")

    table = next(segment for segment in segments if segment.type == PT_DYNAMIC)
    entry = "<QQ" if wide else "<II"
    dynamic = []
    for at in range(table.offset, table.offset + table.file_bytes, struct.calcsize(entry)):
        tag, value = struct.unpack_from(entry, data, at)
        if tag == 0:
            break
        dynamic.append((tag, value))
    by_tag = dict(dynamic)
    num_symbols = struct.unpack_from("<I", data, file_offset(by_tag[DT_HASH]) + 4)[0]
    symbols_at, names_at = file_offset(by_tag[DT_SYMTAB]), file_offset(by_tag[DT_STRTAB])
    defined, undefined = [], []
    for i in range(1, num_symbols):
        name_at, section = _symbol(data, symbols_at, i, wide)
        name = data[names_at + name_at : data.index(b"\0", names_at + name_at)].decode()
        (defined if section else undefined).append(name)
    return Elf(
        machine=machine,
        segments=segments,
        dynamic=tuple(dynamic),
        defined=tuple(defined),
        undefined=tuple(undefined),
    )


def _segment(data: bytes, at: int, wide: bool) -> Segment:
    if wide:
        kind, flags, offset, address, _, in_file, in_memory, alignment = struct.unpack_from("<IIQQQQQQ", data, at)
    else:
        kind, offset, address, _, in_file, in_memory, flags, alignment = struct.unpack_from("<IIIIIIII", data, at)
    return Segment(
        type=kind,
        flags=flags,
        offset=offset,
        address=address,
        file_bytes=in_file,
        memory_bytes=in_memory,
        alignment=alignment,
    )


def _symbol(data: bytes, table_at: int, index: int, wide: bool) -> tuple[int, int]:
    """Where the name is, and the number of the section: 0 for a symbol that another library has to bring."""
    if wide:
        name, _, _, section = struct.unpack_from("<IBBH", data, table_at + 24 * index)
    else:
        name, _, _, _, _, section = struct.unpack_from("<IIIBBH", data, table_at + 16 * index)
    return name, section
