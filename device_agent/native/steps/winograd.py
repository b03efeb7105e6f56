"""Dense 3x3 convolutions of stride 1 by Winograd's algorithm (Lavin and Gray 2015, arXiv 1509.09308)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import KernelSpec, Op
from device_agent.native.layout import FLOAT_BYTES, VECTOR, Tensor, round_up
from device_agent.native.library import Kind, Step
from device_agent.native.memory import aligned_array
from device_agent.native.placement import Placement
from device_agent.native.steps.common import Emitter, LateWay, Way, Ways, bounded, set_input, set_output
from device_agent.native.weights import Weights

FloatArray = NDArray[np.float32]

#: Outputs of a tile in one dimension.
SIZES = (4, 2)

#: Below this part of non-zero weights, skipping them is faster than fewer multiplications of all.
_LEAST_DENSITY = 0.3
#: With fewer channels, the transforms cost more than the products save.
_LEAST_CHANNELS = 8
#: Transformed weights take four times (tiles of 4) the memory: too much where an image has so few tiles to use them.
_LEAST_TILES = {4: 5, 2: 1}
#: Weights up to this size stay in a second-level cache.
_CACHE_BYTES = 1 << 20
#: A byte of weights is read in the time of so many arithmetic operations, inside and outside of that cache. Rough, as
#: offering a way that does not pay costs tuning only.
_OPERATIONS_PER_BYTE = (3, 10)
#: A block of tiles takes about this much scratch memory, so that it stays in a second-level cache.
_BLOCK_BYTES = 1_300_000
#: (output channels, whether they are in lanes) of the products that backends may have, the most promising first.
_PRODUCTS = ((32, True), (8, False), (64, True), (16, False), (16, True), (4, False))
#: `GROUP_ELEMENTS` of src/winograd_block.h.
_GROUP_ELEMENTS = 256

_POINT = np.sqrt(0.5)
#: The transforms G of weights that fit the transforms of inputs and outputs in src/winograd_transform.h. The rows of
#: the points +-p are (1, p, p^2) over the product of p's distances to the other points; the last row is infinity's,
#: with the scale that the output transform leaves to it.
_WEIGHT_TRANSFORMS = {
    2: np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
    4: np.array(
        [
            [1, 0, 0],
            *([-2 / 3, -2 / 3 * p, -2 / 3 * p * p] for p in (_POINT, -_POINT)),
            *([1 / 6, 1 / 6 * p, 1 / 6 * p * p] for p in (2 * _POINT, -2 * _POINT)),
            [0, 0, 2 / _POINT],
        ]
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WinogradTile:
    """How a Winograd step walks its tiles: rows of them in a block, and the shape of a product."""

    rows: int
    outputs_in_lanes: bool
    outputs: int
    tiles: int

    def set(self, step: Step) -> None:
        step.winograd_rows, step.winograd_tiles = self.rows, self.tiles
        step.winograd_outputs, step.winograd_outputs_in_lanes = self.outputs, int(self.outputs_in_lanes)


def is_for_winograd(kernel: KernelSpec, weights: Weights) -> bool:
    """Whether Winograd's algorithm computes `kernel`, and may be the fastest way to."""
    return (
        kernel.op is Op.CONV2D
        and (kernel.kernel_h, kernel.kernel_w, kernel.stride) == (3, 3, 1)
        and kernel.padding <= 1
        and min(kernel.in_channels, kernel.out_channels) >= _LEAST_CHANNELS
        and weights.count_nonzero() >= _LEAST_DENSITY * weights.num_rows * weights.num_columns
    )


def emit_winograd(
    kernel: KernelSpec, weights: Weights, bias: FloatArray, source: Tensor, residual: Tensor | None, target: Tensor
) -> Emitter:
    """A way for each size of tiles that may pay. `weights` are (outputs, inputs, 3, 3)."""

    def emit(placement: Placement) -> Ways:
        common = bounded(
            Step(
                kind=Kind.WINOGRAD,
                channels=kernel.in_channels,
                outputs=kernel.out_channels,
                padding=kernel.padding,
                bias=placement.constant(bias),
                winograd_parts=placement.threads,
            ),
            kernel.activation,
        )
        set_input(common, placement, source)
        set_output(common, placement, target)
        if residual is not None:
            common.second, common.second_plane = placement.address(residual), residual.layout().plane
        sizes = [size for size in SIZES if _may_pay(kernel, size)]
        for size in sizes:
            common.scratch_size = max(common.scratch_size, _most_scratch(common, size))

        def make(size: int) -> Way:
            held = list[NDArray[Any]]()
            step = Step.from_buffer_copy(common)
            step.winograd_size = size
            # All sizes share their scratch memory, so there is enough for the largest.
            step.scratch = placement.shared_scratch(step.scratch_size * placement.threads, held)
            step.scratch_size = _most_scratch(common, size)
            step.weights = placement.keep(transform_weights(weights, size), held)
            return Way(steps=(step,), held=tuple(held))

        return tuple(
            LateWay(signature=((Kind.WINOGRAD, 0, size),), make=functools.partial(make, size)) for size in sizes
        )

    return emit


def _most_scratch(common: Step, size: int) -> int:
    """The scratch memory, in elements, that is enough for all tiles of this size."""
    step = Step.from_buffer_copy(common)
    step.winograd_size = size
    most_outputs = max(outputs for outputs, _ in _products(step))
    return max(_scratch_size(step, rows, most_outputs) for rows in _rows_of_blocks(step))


def _may_pay(kernel: KernelSpec, size: int) -> bool:
    """Whether tiles of this size take less time than the direct path, by a rough model of arithmetic and reading."""
    tiles = -(-kernel.output_h // size) * -(-kernel.output_w // size)
    if tiles < _LEAST_TILES[size]:
        return False
    matrix = kernel.in_channels * kernel.out_channels
    return _cost(matrix * (size + 2) ** 2, tiles) < _cost(matrix * 9, kernel.output_h * kernel.output_w)


def _cost(weights: int, uses: int) -> int:
    """Of `weights` that are multiplied `uses` times each, in arithmetic operations."""
    num_bytes = FLOAT_BYTES * weights
    return max(2 * weights * uses, num_bytes * _OPERATIONS_PER_BYTE[num_bytes > _CACHE_BYTES])


def winograd_tiles(step: Step, max_tiles: Callable[[int, bool], int]) -> list[WinogradTile]:
    """The tiles worth timing. `max_tiles` is `Library.max_winograd_tiles` of the backend."""
    return [
        WinogradTile(rows=rows, outputs_in_lanes=in_lanes, outputs=outputs, tiles=max_tiles(outputs, in_lanes))
        for rows in _rows_of_blocks(step)
        for outputs, in_lanes in _products(step)
        if max_tiles(outputs, in_lanes) > 0
    ]


def _products(step: Step) -> list[tuple[int, bool]]:
    """Those that divide the step's output channels, in whole blocks of 16."""
    return [product for product in _PRODUCTS if round_up(step.outputs) % max(product[0], VECTOR) == 0]


def _rows_of_blocks(step: Step) -> list[int]:
    """Rows of tiles in a block: the most that `_BLOCK_BYTES` have room for, a half and a quarter of that."""
    tile_rows = -(-step.output_h // step.winograd_size)
    num_blocks = 1
    while num_blocks < tile_rows and _block_bytes(step, -(-tile_rows // num_blocks)) > _BLOCK_BYTES:
        num_blocks += 1
    return sorted({-(-tile_rows // min(n * num_blocks, tile_rows)) for n in (1, 2, 4)}, reverse=True)


def _block_bytes(step: Step, rows: int) -> int:
    return FLOAT_BYTES * _scratch_size(step, rows, VECTOR)


def transform_weights(weights: Weights, size: int) -> FloatArray:
    """`weights` (outputs, inputs, 3, 3) as (blocks of outputs, points^2, inputs, 16), transformed in float64 and
    aligned for kernels.
    """
    transform = _WEIGHT_TRANSFORMS[size]
    inputs, points = weights.num_columns // 9, size + 2
    shape = (-(-weights.num_rows // VECTOR), points, points, inputs, VECTOR)
    blocks: FloatArray = aligned_array(shape, np.float32)
    # One block at a time: float64 of all would be several times the result.
    for index, block in enumerate(blocks):
        rows = weights.rows(index * VECTOR, (index + 1) * VECTOR)
        part = rows.reshape(-1, inputs, 3, 3).transpose(2, 3, 1, 0).astype(np.float64, order="C")
        for values, result in zip(_combine(transform, part), block, strict=True):
            for value, point in zip(_combine(transform, values), result, strict=True):
                point[:, : len(rows)] = value
    return blocks.reshape(shape[0], points * points, inputs, VECTOR)


def _combine(transform: NDArray[np.float64], values: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """The rows of `transform` (n, 3) times `values` (3, ...). A matrix product would have bits of the machine's own."""
    for row in transform:
        terms = [value if factor == 1 else factor * value for factor, value in zip(row, values, strict=True) if factor]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        yield total


def _scratch_size(step: Step, rows: int, outputs: int) -> int:
    """The most of `WinogradBlock::scratch_size` of blocks of `rows`, and products of `outputs` output channels, in
    elements.
    """
    size: int = step.winograd_size
    points = (size + 2) ** 2
    tiles_x = -(-step.output_w // size)
    row = round_up(tiles_x, _longest_vector(tiles_x))
    pitch = round_up((rows - 1) * tiles_x + row)
    group_channels = next((count for count in (16, 8, 4, 2) if count * pitch <= _GROUP_ELEMENTS), 1)
    inputs: int = -(-step.channels // group_channels) * points * (round_up(group_channels * pitch, 32) + VECTOR)
    products: int = points * (round_up(max(outputs, VECTOR) * pitch, 32) + VECTOR)
    return inputs + products + 8 * ((size + 1) * row + 2 * VECTOR)


def _longest_vector(tiles_x: int) -> int:
    """The longest vector in which a backend transforms a row of tiles."""
    return 4 if tiles_x <= 4 else 8 if tiles_x <= 8 else 16
