"""Program images: a prepared network as one flat file that the C API of src/kerf.h runs where it lies.

docs/image.md describes the format. What is written here is checked by src/image.h and src/check.cpp, never trusted.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import ContractError
from device_agent.native.errors import NativeError
from device_agent.native.library import ABI_VERSION, ImageInfo, Library, Step, load_library
from device_agent.native.regions import POINTERS, Regions, by_address

FloatArray = NDArray[np.float32]

FORMAT_VERSION = 1
MAGIC = b"\x8bKERF\r\n\x1a"
ALIGNMENT = 64
_REFERENCE_BITS = 40
#: magic, versions, image bytes, checksum, workspace bytes, counts, input, output, isa, name, reserved
_HEADER = struct.Struct("<8s2I3Q4I Q3i4x Q3i4x 16s 64s 8x")
_CHECKSUM_OFFSET = 24
_REGION = struct.Struct("<2Q")
_TYPES = {ctypes.c_int32: "i", ctypes.c_float: "f", ctypes.c_int64: "q", ctypes.c_void_p: "Q"}
_FIELD_NAMES = tuple(field[0] for field in Step._fields_)
_RECORD = struct.Struct("<" + "".join(_TYPES[field[1]] for field in Step._fields_))


def write_image(
    steps: Sequence[Step],
    held: Sequence[NDArray[Any]],
    source: FloatArray,
    output: FloatArray,
    *,
    isa: str,
    name: str,
) -> bytes:
    """The image of `steps`, whose pointers lie in the arrays `held`.

    `source` and `output` (c, h, w) are views of the arrays that hold the network's input and output. Only arrays that a
    step points into are written; those that are writeable become workspace, which is zero before the first run.
    """
    arrays = by_address(held)
    places = Regions(arrays)
    pointers = (getattr(step, field) for step in steps for field in POINTERS)
    # In the order of their first use: the same network gives the same bytes, and weights are read from front to back.
    used = dict.fromkeys(
        places.find(pointer) for pointer in (source.ctypes.data, *pointers, output.ctypes.data) if pointer
    )
    constants = [start for start in used if not arrays[start].flags.writeable]
    buffers = [start for start in used if arrays[start].flags.writeable]
    tables_end = _HEADER.size + _REGION.size * len(used) + _RECORD.size * len(steps)
    regions, image_bytes = _place([arrays[start] for start in constants], tables_end)
    workspace, workspace_bytes = _place([arrays[start] for start in buffers], 0)
    number = {start: index for index, start in enumerate((*constants, *buffers))}

    def reference(pointer: int | None) -> int:
        if not pointer:
            return 0
        start = places.find(pointer)
        return (number[start] + 1 << _REFERENCE_BITS) + pointer - start

    image = bytearray(image_bytes)
    _HEADER.pack_into(
        image, 0, MAGIC, FORMAT_VERSION, ABI_VERSION, image_bytes, 0, workspace_bytes,
        len(used), len(constants), len(steps), _RECORD.size,
        reference(source.ctypes.data), *source.shape, reference(output.ctypes.data), *output.shape,
        _text(isa, 16), _text(name, 64),
    )  # fmt: skip
    for index, region in enumerate((*regions, *workspace)):
        _REGION.pack_into(image, _HEADER.size + _REGION.size * index, *region)
    records = _HEADER.size + _REGION.size * len(used)
    for index, step in enumerate(steps):
        values = [
            reference(getattr(step, field)) if field in POINTERS else getattr(step, field) for field in _FIELD_NAMES
        ]
        _RECORD.pack_into(image, records + _RECORD.size * index, *values)
    for start, (offset, num_bytes) in zip(constants, regions, strict=True):
        image[offset : offset + num_bytes] = arrays[start].tobytes()
    return with_checksum(image)


def with_checksum(image: bytes | bytearray) -> bytes:
    """`image` with the checksum that its other bytes have."""
    changed = bytearray(image)
    buffer = (ctypes.c_char * len(changed)).from_buffer(changed)
    struct.pack_into("<Q", changed, _CHECKSUM_OFFSET, load_library().image_checksum(buffer, len(changed)))
    return bytes(changed)


def _place(arrays: Sequence[NDArray[Any]], start: int) -> tuple[list[tuple[int, int]], int]:
    """(offset, bytes) of each of `arrays` one after the other from `start` on, and the end of all."""
    regions = []
    for array in arrays:
        start = _aligned(start)
        regions.append((start, array.nbytes))
        start += array.nbytes
    return regions, _aligned(start)


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def _text(value: str, size: int) -> bytes:
    """UTF-8 in `size` bytes, of which the last is zero; cut between characters where it is longer."""
    return value.encode()[: size - 1].decode(errors="ignore").encode()


class ImageNetwork:
    """A network from a program image, on the C API. Not for concurrent use."""

    def __init__(self, image: bytes, *, isa: str | None = None) -> None:
        """Raises `ContractError` for an image that is not sound, `NativeError` for an unknown `isa`."""
        self._library = load_library()
        backend = self._library.backend(isa)
        self._image = _aligned_copy(image)
        self.info = check_image(self._image, self._library)
        self._memory = _aligned_empty(self.info.memory_bytes)
        network = ctypes.c_void_p()
        code = self._library.network_init(
            self._memory.ctypes.data, self._memory.nbytes, self._image.ctypes.data, self._image.nbytes, backend.index,
            ctypes.byref(network),
        )  # fmt: skip
        if code:
            raise ContractError(f"not a sound program image: {self._library.error_message(code)}")
        self._network = network
        self._input = _tensor(self._library.network_input(network), self.info.input)
        self._output = _tensor(self._library.network_output(network), self.info.output)
        self.isa = backend.name

    def run(self, x: NDArray[Any]) -> FloatArray:
        """The network's output for `x`; both float32 (c, h, w)."""
        if x.shape != self._input.shape:
            raise ContractError(f"the input has shape {x.shape}, but the image reads {self._input.shape}")
        np.copyto(self._input, x, casting="same_kind")
        code = self._library.network_run(self._network)
        if code:
            raise NativeError(self._library.error_message(code))
        return self._output.copy()


def check_image(image: bytes | NDArray[np.uint8], library: Library | None = None) -> ImageInfo:
    """What `image` says about itself, after all of it was checked. Raises `ContractError` where it is not sound."""
    library = library or load_library()
    data = _aligned_copy(image) if isinstance(image, bytes) else image
    info = ImageInfo()
    code = library.image_check(data.ctypes.data, data.nbytes, ctypes.byref(info))
    if code:
        where = f"step {info.failed_step}: " if info.failed_step >= 0 else ""
        raise ContractError(f"not a sound program image: {where}{library.error_message(code)}")
    return info


def _aligned_copy(data: bytes) -> NDArray[np.uint8]:
    copy = _aligned_empty(len(data))
    copy[:] = np.frombuffer(data, dtype=np.uint8)
    return copy


def _aligned_empty(num_bytes: int) -> NDArray[np.uint8]:
    try:
        raw = np.empty(num_bytes + ALIGNMENT, dtype=np.uint8)
    except MemoryError:
        raise NativeError(f"the network needs {num_bytes} bytes, which this machine does not have") from None
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + num_bytes]


def _tensor(address: int, shape: Any) -> FloatArray:
    extent = (shape.channels, shape.height, shape.width)
    pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
    return np.ctypeslib.as_array(pointer, extent)
