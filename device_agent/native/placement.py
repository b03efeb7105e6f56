"""Buffers and constants at fixed addresses, for steps to point to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.native.arena import Span, pack_spans
from device_agent.native.layout import FLOAT_BYTES, ChannelView, Layout, Tensor, position_mask
from device_agent.native.memory import aligned_array, aligned_zeros, with_spare

FloatArray = NDArray[np.float32]


@dataclass(slots=True)
class Placement:
    """Places tensors and constants."""

    #: Scratch memory is for this many threads.
    threads: int = 1
    held: list[NDArray[Any]] = field(default_factory=list)
    _shared_scratch: FloatArray = field(default_factory=lambda: aligned_zeros(0, np.float32))
    _buffers: dict[Tensor, FloatArray] = field(default_factory=dict)
    _masks: dict[tuple[int, int, int], int] = field(default_factory=dict)
    _thread_scratch: FloatArray | None = None

    def place(self, tensor: Tensor) -> None:
        """Give `tensor` memory of its own."""
        self._buffers[tensor] = self._new(tensor.layout().size)

    def place_all(self, lifetimes: Mapping[Tensor, tuple[int, int]]) -> None:
        """Give all tensors memory that they share as their lifetimes (first and last step that uses them) allow.

        Tensors without padding share freely. Those with padding share only where their planes lie alike, since the
        zeros between rows must stay zeros; one with fewer channels takes the first planes.
        """
        free: dict[Layout, list[tuple[int, list[Tensor]]]] = {}
        shared = []
        for tensor, (first, last) in sorted(lifetimes.items(), key=lambda item: item[1]):
            layout = tensor.layout()
            if tensor.padding == 0 and layout.row == layout.width:
                shared.append(tensor)
                continue
            slots = free.setdefault(replace(layout, channels=0, size=0), [])
            reusable = [index for index, (end, _) in enumerate(slots) if end < first]
            # The one that was left last: it is the nearest in the caches.
            members = slots.pop(max(reusable, key=lambda index: slots[index][0]))[1] if reusable else []
            members.append(tensor)
            slots.append((last, members))
        for slots in free.values():
            for _, members in slots:
                buffer = self._new(max(tensor.layout().size for tensor in members))
                self._buffers.update(dict.fromkeys(members, buffer))
        spans = [
            Span(num_bytes=FLOAT_BYTES * tensor.layout().size, first=lifetimes[tensor][0], last=lifetimes[tensor][1])
            for tensor in shared
        ]
        offsets, num_bytes = pack_spans(spans)
        arena = self._new(-(-num_bytes // FLOAT_BYTES))
        for tensor, offset, span in zip(shared, offsets, spans, strict=True):
            self._buffers[tensor] = arena[offset // FLOAT_BYTES : (offset + span.num_bytes) // FLOAT_BYTES]

    def address(self, tensor: Tensor) -> int:
        """Where element (0, 0, 0) of `tensor` is."""
        if isinstance(tensor, ChannelView):
            return self.address(tensor.whole) + FLOAT_BYTES * tensor.first * tensor.layout().plane
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

    def thread_scratch(self, size: int) -> int:
        """The address of `size` elements for each thread, which all steps share: in use only while a step runs."""
        if self._thread_scratch is None or self._thread_scratch.size < size * self.threads:
            self._thread_scratch = self._new(size * self.threads)
            # Its pages come now, and not in the first run of the tiling that happens to be timed first.
            self._thread_scratch.fill(0)
        return self._thread_scratch.ctypes.data

    def constant(self, values: NDArray[Any], held: list[NDArray[Any]] | None = None) -> int:
        """The address of an aligned copy of `values`, which lives as long as the program, or as `held` if given.

        No step may write to it: see `scratch`.
        """
        copy = aligned_array(values.shape, values.dtype)
        copy[...] = values
        return self.keep(copy, held)

    def keep(self, values: NDArray[Any], held: list[NDArray[Any]] | None = None) -> int:
        """The address of `values` themselves, which are from `aligned_array`: else as `constant`."""
        whole = with_spare(values)
        whole.flags.writeable = False
        (self.held if held is None else held).append(whole)
        return whole.ctypes.data

    def scratch(self, size: int, held: list[NDArray[Any]] | None = None) -> int:
        """The address of `size` float32 zeros that steps may write to."""
        buffer = aligned_zeros(size, np.float32)
        (self.held if held is None else held).append(buffer)
        return buffer.ctypes.data

    def shared_scratch(self, size: int, held: list[NDArray[Any]]) -> int:
        """The address of `size` float32 that steps may write to and share: what one leaves there, others destroy.

        The buffer is appended to `held`. Steps emitted later share it, unless they need a larger one.
        """
        if self._shared_scratch.size < size:
            self._shared_scratch = aligned_zeros(size, np.float32)
        held.append(self._shared_scratch)
        return self._shared_scratch.ctypes.data

    def _new(self, size: int) -> FloatArray:
        buffer = aligned_zeros(size, np.float32)
        self.held.append(buffer)
        return buffer
