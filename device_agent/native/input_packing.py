"""How a convolution packs its input: which copies it makes, and where each kernel position finds its elements.

A copy holds the rows of one phase of the stride, as one column of the kernel sees them: column x of the copy is column
x * stride + kernel_x - padding of the image, zero outside of it. Rows keep one distance in all copies, so a kernel
position is one offset for all output positions of a block. See src/conv_pack.h.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import KernelSpec
from device_agent.native.layout import VECTOR, Layout, round_up


@dataclass(frozen=True, slots=True, kw_only=True)
class PackShape:
    """`rows` of the output at a time, `row` elements apart, for tiles `by_rows` or of contiguous positions.

    With `by_tap` every kernel position has a copy of its own, so that all of them are aligned alike; else positions in
    one column of the kernel share their rows.
    """

    rows: int
    row: int
    by_rows: bool = False
    by_tap: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedInput:
    """`copies` (n, 6) is an array of `KerfCopy`. `taps` holds the offset of each kernel position (y, x) in the `plane`
    elements of a channel, `mask` the masks of all copies: of a row, or of all rows where these lie alike in the input.
    """

    copies: NDArray[np.int32]
    taps: NDArray[np.int64]
    plane: int
    mask: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class _Copy:
    phase_y: int
    kernel_x: int
    first_row: int
    extra_rows: int
    offset: int


def pack_input(kernel: KernelSpec, shape: PackShape, source: Layout) -> PackedInput:
    """The copies of an input in the layout `source`."""
    copies, plane = _copies(kernel, shape)
    taps = np.zeros((kernel.kernel_h, kernel.kernel_w), dtype=np.int64)
    for y in range(kernel.kernel_h):
        row, phase = divmod(y - kernel.padding, kernel.stride)
        for x in range(kernel.kernel_w):
            copy = next(
                c
                for c in copies
                if (c.phase_y, c.kernel_x) == (phase, x) and c.first_row <= row <= c.first_row + c.extra_rows
            )
            taps[y, x] = copy.offset + (row - copy.first_row) * shape.row
    is_flat = kernel.stride == 1 and not shape.by_rows and source.row == shape.row
    masks, mask_starts = [], []
    num_masked = 0
    for copy in copies:
        mask = _mask(kernel, shape, copy, is_flat)
        masks.append(mask)
        mask_starts.append(num_masked)
        num_masked += len(mask)
    return PackedInput(
        copies=np.array(
            [
                (c.offset, c.phase_y, c.first_row, c.kernel_x - kernel.padding, c.extra_rows, start)
                for c, start in zip(copies, mask_starts, strict=True)
            ],
            dtype=np.int32,
        ),
        taps=taps,
        plane=plane,
        mask=np.concatenate(masks),
    )


@functools.lru_cache(maxsize=1024)
def packed_plane(kernel: KernelSpec, shape: PackShape) -> int:
    """The elements of scratch memory that a channel takes."""
    return _copies(kernel, shape)[1]


def _copies(kernel: KernelSpec, shape: PackShape) -> tuple[list[_Copy], int]:
    """The copies, and the elements of a channel."""
    rows_of_phase: dict[int, list[int]] = {}
    for y in range(kernel.kernel_h):
        row, phase = divmod(y - kernel.padding, kernel.stride)
        rows_of_phase.setdefault(phase, []).append(row)
    copies: list[_Copy] = []
    offset = 0
    for phase, rows in sorted(rows_of_phase.items()):
        spans = [(row, 0) for row in rows] if shape.by_tap else [(rows[0], rows[-1] - rows[0])]
        for first_row, extra_rows in spans:
            for x in range(kernel.kernel_w):
                copies.append(_Copy(phase, x, first_row, extra_rows, offset))
                # Rows are written in whole vectors.
                offset += round_up((shape.rows + extra_rows - 1) * shape.row + round_up(shape.row))
    return copies, offset


def _mask(kernel: KernelSpec, shape: PackShape, copy: _Copy, is_flat: bool) -> NDArray[np.uint32]:
    column = np.arange(shape.row)
    x = column * kernel.stride + copy.kernel_x - kernel.padding
    inside = (column < kernel.output_w) & (x >= 0) & (x < kernel.input_w)
    if is_flat:
        y = np.arange(kernel.output_h + copy.extra_rows) + copy.first_row
        inside = (((y >= 0) & (y < kernel.input_h))[:, None] & inside).reshape(-1)
    # Vectors of a mask end where the next one begins, and the last one reads on.
    mask = np.zeros(round_up(len(inside)) + VECTOR, dtype=np.uint32)
    mask[: len(inside)] = np.where(inside, np.uint32(0xFFFFFFFF), np.uint32(0))
    return mask
