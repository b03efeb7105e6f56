"""Strips: how convolutions of single filters lay out their input so that every load is aligned.

The image is cut into `blocks` blocks of rows, and each block into columns; a vector holds some columns of row y of all
blocks. So a kernel's rows are whole vectors apart. For each column of the kernel there is a copy, shifted. See
src/conv_strips.h.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import KernelSpec, Op
from device_agent.native.layout import FLOAT_BYTES, VECTOR

#: `KERF_MAX_STRIP_VECTORS` of src/kerf_native.h: sums of a tile, in registers.
_MAX_VECTORS = 16
_BLOCKS = (1, 2, 4)
#: `KERF_MAX_STRIP_KERNEL_W` of src/kerf_native.h.
_MAX_KERNEL_W = 8
#: What the copies of a chunk of channels may take of the first-level cache, in bytes.
_CHUNK_BYTES = (26_000, 34_000, 41_000)
#: Vectors that are loaded and multiplied in a cycle; measured, all in the first-level cache.
_LOADS_PER_CYCLE = 1.67
#: Cycles to start a tile and to leave its loop.
_TILE_CYCLES = 14.0
#: Cycles to write a vector of a copy, by blocks, and a vector of the output.
_PACK_CYCLES = {1: 3.0, 2: 2.8, 4: 4.5}
_STORE_CYCLES = {1: 2.0, 2: 3.0, 4: 5.0}
#: What both take longer where input and output are larger than about half of a second-level cache.
_FAR_CYCLES = 3.0
_FAR_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StripShape:
    """A tile is `rows` rows of `strips` strips, whose vectors hold `blocks` blocks of rows."""

    blocks: int
    rows: int
    strips: int

    @property
    def columns(self) -> int:
        return VECTOR // self.blocks

    @property
    def vectors(self) -> int:
        """Of a tile."""
        return self.rows * self.strips

    def block_height(self, kernel: KernelSpec) -> int:
        return -(-kernel.output_h // self.blocks)

    def num_strips(self, kernel: KernelSpec) -> int:
        """Of the image."""
        return -(-kernel.output_w // self.columns)

    def strip_size(self, kernel: KernelSpec) -> int:
        """Elements of a strip in a copy of a tile."""
        return (self.rows + kernel.kernel_h - 1) * VECTOR

    def plane(self, kernel: KernelSpec) -> int:
        """Elements of a channel: its copies, one for each column of the kernel."""
        return kernel.kernel_w * self.strips * self.strip_size(kernel)

    def taps(self, kernel: KernelSpec) -> NDArray[np.int64]:
        """The offset of each kernel position (y, x) in the elements of a channel."""
        y, x = np.meshgrid(np.arange(kernel.kernel_h), np.arange(kernel.kernel_w), indexing="ij")
        return x * self.strips * self.strip_size(kernel) + y * VECTOR

    def masks(self, kernel: KernelSpec) -> NDArray[np.uint32]:
        """(columns of the kernel, strips of the image, lanes): all ones where a lane's column is inside the image."""
        lane = np.arange(VECTOR) % self.columns
        column = np.arange(self.num_strips(kernel))[:, None] * self.columns + lane
        x = column + np.arange(kernel.kernel_w)[:, None, None] - kernel.padding
        inside = (column < kernel.output_w) & (x >= 0) & (x < kernel.input_w)
        return np.where(inside, np.uint32(0xFFFFFFFF), np.uint32(0))


def has_strips(kernel: KernelSpec) -> bool:
    """Whether strips can compute `kernel`, and may be faster than other tiles: a kernel of 1x1 needs no copies."""
    has_window = kernel.kernel_h * kernel.kernel_w > 1 and kernel.kernel_w <= _MAX_KERNEL_W
    return kernel.op is Op.CONV2D and kernel.stride == 1 and has_window


def strip_shapes(kernel: KernelSpec) -> Iterator[StripShape]:
    """The shapes worth a model's look, for an image of `kernel`."""
    for blocks in _BLOCKS:
        whole = StripShape(blocks=blocks, rows=1, strips=1)
        height = whole.block_height(kernel)
        for strips in (1, 2):
            if strips > whole.num_strips(kernel):
                continue
            fewest = -(-height * strips // _MAX_VECTORS)
            for rows in {-(-height // count) for count in range(fewest, fewest + 2)}:
                yield StripShape(blocks=blocks, rows=rows, strips=strips)


def strip_chunks(kernel: KernelSpec, shape: StripShape) -> list[int]:
    """Numbers of input channels in a chunk, all chunks alike."""
    per_channel = FLOAT_BYTES * shape.plane(kernel)
    sizes = {min(kernel.in_channels, max(1, budget // per_channel)) for budget in _CHUNK_BYTES}
    return sorted({-(-kernel.in_channels // -(-kernel.in_channels // size)) for size in sizes})


def strip_cycles(kernel: KernelSpec, filters: int, num_entries: int, shape: StripShape, chunk_channels: int) -> float:
    """The modelled cost in cycles of `filters` with `num_entries` in all, comparable with that of other tilings."""
    rows_of_tiles = -(-shape.block_height(kernel) // shape.rows)
    num_vectors = shape.block_height(kernel) * shape.num_strips(kernel)
    num_tiles = rows_of_tiles * -(-shape.num_strips(kernel) // shape.strips)
    width = num_vectors / num_tiles
    num_chunks = -(-kernel.in_channels // chunk_channels)
    entry = (width + 2) / _LOADS_PER_CYCLE
    visits = num_tiles * filters * num_chunks
    packed = kernel.in_channels * kernel.kernel_w * num_vectors * (1 + (kernel.kernel_h - 1) / shape.rows)
    image_bytes = FLOAT_BYTES * (kernel.in_channels + filters) * num_vectors * VECTOR
    far = _FAR_CYCLES if image_bytes > _FAR_BYTES else 0.0
    return (
        num_tiles * num_entries * entry
        + visits * (_TILE_CYCLES + 1.5 * width)
        + packed * (_PACK_CYCLES[shape.blocks] + far)
        + filters * num_vectors * (_STORE_CYCLES[shape.blocks] + far)
    )
