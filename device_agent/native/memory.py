"""Arrays at aligned addresses, whose memory is the system's again when they are freed."""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from device_agent.native.arena import ALIGNMENT
from device_agent.native.layout import VECTOR

#: Larger arrays have pages of their own. The C library keeps what is freed of its heap for later, so the constants of
#: ways that are not chosen would stay resident.
_OWN_PAGES_BYTES = 256 * 1024


def aligned_zeros(size: int, dtype: DTypeLike) -> NDArray[Any]:
    """At least `size` zeros (a few more), aligned to a cache line, with a vector to spare on both sides: kernels read
    a little past the borders. Raises `MemoryError`.
    """
    item_bytes = np.dtype(dtype).itemsize
    num_bytes = (size + VECTOR) * item_bytes
    front = VECTOR * item_bytes
    total = front + num_bytes + ALIGNMENT
    raw: NDArray[np.uint8]
    if total >= _OWN_PAGES_BYTES:
        try:
            raw = np.frombuffer(mmap.mmap(-1, total), dtype=np.uint8)
        except OSError as error:
            raise MemoryError(f"{total} bytes: {error}") from None
    else:
        raw = np.zeros(total, dtype=np.uint8)
    start = front + -(raw.ctypes.data + front) % ALIGNMENT
    return raw[start : start + num_bytes].view(dtype)


def aligned_array(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Zeros in this shape, at the beginning of `aligned_zeros`."""
    return aligned_zeros(math.prod(shape), dtype)[: math.prod(shape)].reshape(shape)


def with_spare(values: NDArray[Any]) -> NDArray[Any]:
    """The flat array of `aligned_zeros` that `values`, from `aligned_array`, is the beginning of."""
    raw = values.base
    assert raw is not None
    assert raw.dtype == np.uint8
    start = values.ctypes.data - raw.ctypes.data
    return raw[start : start + (values.size + VECTOR) * values.itemsize].view(values.dtype)
