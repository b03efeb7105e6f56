"""Buffers and constants at fixed addresses, for steps to point to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.native.layout import FLOAT_BYTES, VECTOR, Layout, Tensor, position_mask

FloatArray = NDArray[np.float32]

_ALIGNMENT = 64


@dataclass(slots=True)
class Placement:
    """Places tensors into buffers. A released buffer serves later tensors of the same layout only."""

    #: Scratch memory is for this many threads.
    threads: int = 1
    held: list[NDArray[Any]] = field(default_factory=list)
    _shared_scratch: FloatArray = field(default_factory=lambda: _aligned(0, np.dtype(np.float32)))
    _buffers: dict[Tensor, FloatArray] = field(default_factory=dict)
    _free: dict[Layout, list[FloatArray]] = field(default_factory=dict)
    _masks: dict[tuple[int, int, int], int] = field(default_factory=dict)

    def allocate(self, tensor: Tensor) -> None:
        if tensor in self._buffers:
            return
        layout = tensor.layout()
        reusable = self._free.get(layout)
        self._buffers[tensor] = reusable.pop() if reusable else self._new(layout.size)

    def release(self, tensor: Tensor) -> None:
        self._free.setdefault(tensor.layout(), []).append(self._buffers[tensor])

    def address(self, tensor: Tensor) -> int:
        """Where element (0, 0, 0) of `tensor` is."""
        return self._buffers[tensor].ctypes.data + FLOAT_BYTES * tensor.layout().lead

    def elements(self, tensor: Tensor) -> FloatArray:
        """A COMPACT or VECTOR tensor as an array (c, h, w) over its buffer."""
        shape = (tensor.channels, tensor.height, tensor.width)
        lead = tensor.layout().lead
        return self._buffers[tensor][lead : lead + math.prod(shape)].reshape(shape)

    def mask(self, layout: Layout) -> int:
        key = (layout.row, layout.height, layout.width)
        if key not in self._masks:
            self._masks[key] = self.constant(position_mask(layout))
        return self._masks[key]

    def constant(self, values: NDArray[Any], held: list[NDArray[Any]] | None = None) -> int:
        """The address of an aligned copy of `values`, which lives as long as the program, or as `held` if given.

        No step may write to it: see `scratch`.
        """
        copy = _aligned(values.size, values.dtype)
        copy[: values.size] = values.reshape(-1)
        copy.flags.writeable = False
        (self.held if held is None else held).append(copy)
        return copy.ctypes.data

    def scratch(self, size: int, held: list[NDArray[Any]] | None = None) -> int:
        """The address of `size` float32 zeros that steps may write to."""
        buffer = _aligned(size, np.dtype(np.float32))
        (self.held if held is None else held).append(buffer)
        return buffer.ctypes.data

    def shared_scratch(self, size: int, held: list[NDArray[Any]]) -> int:
        """The address of `size` float32 that steps may write to and share: what one leaves there, others destroy.

        The buffer is appended to `held`. Steps emitted later share it, unless they need a larger one.
        """
        if self._shared_scratch.size < size:
            self._shared_scratch = _aligned(size, np.dtype(np.float32))
        held.append(self._shared_scratch)
        return self._shared_scratch.ctypes.data

    def _new(self, size: int) -> FloatArray:
        buffer = _aligned(size, np.dtype(np.float32))
        self.held.append(buffer)
        return buffer


def _aligned(size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Zeros, aligned to a cache line, with a vector to spare on both sides: kernels read a little past the borders."""
    num_bytes = (size + VECTOR) * dtype.itemsize
    front = VECTOR * dtype.itemsize
    raw = np.zeros(front + num_bytes + _ALIGNMENT, dtype=np.uint8)
    start = front + -(raw.ctypes.data + front) % _ALIGNMENT
    return raw[start : start + num_bytes].view(dtype)
