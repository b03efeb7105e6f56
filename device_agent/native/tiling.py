"""The tilings of a convolution that are worth timing, by a model of what each costs.

The model counts cycles of a core with two vector units of multiply-adds and two loads a cycle. It only has to put the
best tiling among the first few; the tuner times those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from device_agent.contracts import KernelSpec
from device_agent.native.input_packing import PackShape, packed_plane
from device_agent.native.layout import FLOAT_BYTES, VECTOR, Layout
from device_agent.native.library import VECTOR_LENGTHS
from device_agent.native.strips import StripShape, has_strips, strip_chunks, strip_cycles, strip_shapes

#: What a chunk of the input may take of the first-level cache, in bytes: beside it, weights and sums pass through.
_CHUNK_BYTES = (20_000, 36_000, 56_000, 88_000)
_CACHE_BYTES = 40_000
#: How much longer loads take that miss the first-level cache.
_MISS_CYCLES = 0.6
#: Cycles to write a vector of a copy.
_PACK_CYCLES = {1: 3.0, 2: 5.5}
#: Cycles to start a tile, and to leave its loop.
_TILE_CYCLES = 24.0
#: Runs of so many positions stream through the second-level cache, while their input still fits the first.
_BLOCK_POSITIONS = 448
#: Outputs larger than this pass through the caches. Written a tile of each channel at a time, they take up to twice as
#: long as in runs, and differ from run to run so much that the tuner could choose wrong.
_STREAMED_BYTES = 1 << 20
#: With this many entries in a row group, products take long enough to hide the writes behind them.
_STREAMED_ENTRIES = 24
#: Row groups of one filter find tiles with 4 vectors in a row too, and all groups those with 1 and 2.
_ROW_VECTORS = {1: (1, 2, 4), 2: (1, 2), 4: (1, 2)}

#: The best strips, so that others have their turn where the model errs.
_MOST_STRIPS = 4

TileLimit = Callable[[int, int], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How one convolution step walks its input and output: see the fields of the same names in src/kerf_native.h."""

    vector_length: int
    max_vectors: int
    block_tiles: int
    row_vectors: int
    chunk_channels: int
    pack: PackShape | None
    #: Instead of packing: tiles of strips.
    strips: StripShape | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvShape:
    """What tilings are chosen by. `can_read_directly` tells whether the input has the padding that the kernel needs."""

    kernel: KernelSpec
    source: Layout
    target: Layout
    group_size: int
    num_groups: int
    num_entries: int
    can_read_directly: bool
    can_pack: bool

    @property
    def can_be_strips(self) -> bool:
        return self.group_size == 1 and self.can_pack and has_strips(self.kernel)


def tilings(shape: ConvShape, tile_limit: TileLimit, count: int) -> list[Tiling]:
    """The `count` most promising tilings, the best first.

    `tile_limit` gives the widest tile for a vector length and a group size, 0 where there is none.
    """
    longest = next(length for length in VECTOR_LENGTHS if tile_limit(length, shape.group_size))
    found: dict[Tiling, float] = {}
    for length in VECTOR_LENGTHS:
        limit = tile_limit(length, shape.group_size)
        # Shorter vectors are for what is left of few positions.
        if limit == 0 or (length < longest and shape.kernel.output_h * shape.kernel.output_w > 16 * longest):
            continue
        for pack, row_vectors in _walks(shape, length, limit, is_longest=length == longest):
            for chunk in _chunks(shape, pack, length * limit):
                for width in _widths(shape, pack, row_vectors, length, limit):
                    for block in _blocks(shape, pack, row_vectors, length, width):
                        tiling = Tiling(
                            vector_length=length,
                            max_vectors=width,
                            block_tiles=block,
                            row_vectors=row_vectors,
                            chunk_channels=chunk,
                            pack=pack,
                        )
                        found[tiling] = cycles(shape, tiling)
    in_strips: dict[Tiling, float] = {}
    if longest == VECTOR and shape.can_be_strips:
        for strips in strip_shapes(shape.kernel):
            for chunk in strip_chunks(shape.kernel, strips):
                tiling = Tiling(
                    vector_length=VECTOR,
                    max_vectors=strips.vectors,
                    block_tiles=1,
                    row_vectors=strips.strips,
                    chunk_channels=chunk,
                    pack=None,
                    strips=strips,
                )
                in_strips[tiling] = cycles(shape, tiling)
    found |= {tiling: in_strips[tiling] for tiling in sorted(in_strips, key=in_strips.__getitem__)[:_MOST_STRIPS]}
    return sorted(found, key=found.__getitem__)[:count]


def cycles(shape: ConvShape, tiling: Tiling) -> float:
    """The modelled cost of a tiling in cycles; only the order among tilings matters."""
    kernel, group = shape.kernel, shape.group_size
    if tiling.strips is not None:
        return strip_cycles(kernel, shape.num_groups, shape.num_entries, tiling.strips, tiling.chunk_channels)
    rows = kernel.output_h if tiling.pack is None else tiling.pack.rows
    num_spans = -(-kernel.output_h // rows)
    units, rest = _vectors(shape, tiling.pack, tiling.row_vectors, tiling.vector_length, rows)
    num_tiles = -(-units // tiling.max_vectors)
    width = units / num_tiles
    num_chunks = -(-kernel.in_channels // tiling.chunk_channels)

    input_bytes = _chunk_bytes(shape, tiling)
    is_aligned = tiling.pack is not None and (tiling.pack.row % tiling.vector_length == 0 or tiling.pack.by_tap)
    crossings = 0.0 if is_aligned else min(1.0, tiling.vector_length / 16)
    loads = width * (1 + crossings) + group + 1.0
    entry = max(width * group / 2, loads / 2, 2.0)
    misses = max(0.0, 1 - _CACHE_BYTES / max(input_bytes, 1))
    entry += misses * _MISS_CYCLES * width * tiling.vector_length / 16
    if tiling.vector_length == 4 or width * group < 8:
        # Too few sums to hide the latency of a multiply-add.
        entry = max(entry, 4.0)
    visits = num_spans * num_tiles * shape.num_groups * num_chunks
    cost = num_spans * num_tiles * shape.num_entries * entry + visits * (_TILE_CYCLES + 1.5 * group * width)
    if rest:
        cost += num_spans * shape.num_entries * (0.5 if rest == 1 else 1.0 if rest <= 4 else 1.5)
    if tiling.pack is not None:
        vectors = num_spans * kernel.in_channels * packed_plane(kernel, tiling.pack) / tiling.vector_length
        cost += vectors * _PACK_CYCLES.get(kernel.stride, 20.0)
    return cost


def _walks(shape: ConvShape, length: int, limit: int, *, is_longest: bool) -> Iterator[tuple[PackShape | None, int]]:
    """Ways to pack, or not to, with the vectors in each row of tiles of rows, or 0."""
    kernel = shape.kernel
    row_vectors = -(-kernel.output_w // length)
    has_row_tiles = is_longest and row_vectors in _ROW_VECTORS[shape.group_size]
    if shape.can_read_directly:
        if shape.source.row == shape.target.row:
            yield None, 0
        is_flat = shape.source.row == shape.target.row
        if not is_flat or ((has_row_tiles or kernel.output_w % length == 0) and not _is_streamed(shape)):
            yield None, row_vectors
    if not shape.can_pack or (shape.can_read_directly and kernel.kernel_h == kernel.kernel_w == 1):
        return
    heights = _block_rows(kernel.output_h, kernel.output_w, length)
    for rows in heights:
        yield PackShape(rows=rows, row=shape.target.row), 0
    if has_row_tiles and (kernel.output_w < row_vectors * length or shape.target.row > kernel.output_w):
        # One tile, or two of them.
        most = max(1, limit // row_vectors)
        for rows in {_even(kernel.output_h, most), _even(kernel.output_h, 2 * most)}:
            yield PackShape(rows=rows, row=row_vectors * length, by_rows=True), row_vectors
    if kernel.output_h * shape.target.row <= 6 * length and kernel.kernel_h > 1:
        yield PackShape(rows=kernel.output_h, row=shape.target.row, by_tap=True), 0


def _block_rows(height: int, width: int, length: int) -> list[int]:
    """Numbers of output rows to pack at a time: those that fill whole vectors, and all."""
    whole = [rows for rows in range(1, height) if rows * width % length == 0 and 2 * length <= rows * width]
    sizes = {height}
    for target in (6, 7, 12, 14):
        near = [rows for rows in whole if rows * width <= target * length]
        if near:
            sizes.add(near[-1])
    if len(sizes) == 1:
        sizes.add(max(1, min(height, 8 * length // width)))
    return [rows for rows in sizes if rows * width <= 64 * length or rows == min(sizes)]


def _even(count: int, most: int) -> int:
    """`count` in equal parts of at most `most`."""
    return -(-count // -(-count // most))


def _chunks(shape: ConvShape, pack: PackShape | None, tile_positions: int) -> list[int]:
    channels = shape.kernel.in_channels
    per_channel = FLOAT_BYTES * (
        packed_plane(shape.kernel, pack) if pack is not None else _direct_elements(shape, tile_positions)
    )
    sizes = {min(channels, max(1, budget // per_channel)) for budget in _CHUNK_BYTES}
    if pack is None:
        sizes.add(channels)
    # Equal chunks.
    return sorted({-(-channels // -(-channels // size)) for size in sizes})


def _direct_elements(shape: ConvShape, positions: int) -> int:
    """What a tile reads of each channel."""
    rows = shape.kernel.kernel_h - 1
    return min(shape.source.plane, positions + rows * shape.source.row + shape.kernel.kernel_w)


def _chunk_bytes(shape: ConvShape, tiling: Tiling) -> int:
    if tiling.pack is not None:
        return FLOAT_BYTES * tiling.chunk_channels * packed_plane(shape.kernel, tiling.pack)
    positions = tiling.vector_length * tiling.max_vectors * tiling.block_tiles or shape.source.plane
    return FLOAT_BYTES * tiling.chunk_channels * _direct_elements(shape, positions)


def _blocks(shape: ConvShape, pack: PackShape | None, row_vectors: int, length: int, width: int) -> list[int]:
    """How many tiles a row group may walk through before the next one does: one, all (0), or some."""
    rows = shape.kernel.output_h if pack is None else pack.rows
    units, _ = _vectors(shape, pack, row_vectors, length, rows)
    # Rows that no tile holds as a whole are walked through one by one.
    num_tiles = -(-(units if row_vectors in (0, *_ROW_VECTORS[shape.group_size]) else row_vectors) // width)
    if num_tiles == 1:
        return [1]
    some = max(2, _BLOCK_POSITIONS // (width * length))
    if pack is not None or num_tiles < 2 * some:
        return [1, 0]
    return [some, 0] if _is_streamed(shape) else [1, some, 0]


def _is_streamed(shape: ConvShape) -> bool:
    """Whether to write the output in long runs: it is larger than caches, and products do not hide the writes."""
    is_large = FLOAT_BYTES * shape.kernel.out_channels * shape.target.plane > _STREAMED_BYTES
    return is_large and shape.num_entries < _STREAMED_ENTRIES * shape.num_groups


def _vectors(shape: ConvShape, pack: PackShape | None, row_vectors: int, length: int, rows: int) -> tuple[int, int]:
    """Vectors of a span of `rows`, and positions that a tile of fours computes beside them."""
    if row_vectors:
        return rows * row_vectors, 0
    row = shape.target.row if pack is None else pack.row
    positions = (rows - 1) * row + shape.kernel.output_w
    rest = positions % length
    if row > shape.kernel.output_w < rest:
        rest = 0
    if shape.group_size == 4 and positions >= length and (rest == 1 or (1 < rest <= 8 and length == 16)):
        return positions // length, rest
    return -(-positions // length), 0


def _widths(shape: ConvShape, pack: PackShape | None, row_vectors: int, length: int, limit: int) -> list[int]:
    """The widths of tiles that cut a span evenly, for the fewest tiles and some more."""
    rows = shape.kernel.output_h if pack is None else pack.rows
    units, _ = _vectors(shape, pack, row_vectors, length, rows)
    step = row_vectors if row_vectors in _ROW_VECTORS[shape.group_size] else 1
    if row_vectors and step == 1:
        units = row_vectors
    limit = max(1, limit // step)
    units = units // step
    fewest = -(-units // limit)
    return sorted({step * -(-units // count) for count in range(fewest, min(fewest + 3, units + 1))})
