"""Convolutions as row groups of non-zero columns."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import KernelSpec, Op
from device_agent.native.errors import UnsupportedKernelError
from device_agent.native.input_packing import PackedInput, PackShape, pack_input
from device_agent.native.layout import VECTOR, PhaseTensor, Tensor, phase_of
from device_agent.native.library import Kind, Step
from device_agent.native.memory import aligned_array
from device_agent.native.packing import RowGroups, depthwise_rows, group_rows, group_sizes, groupings
from device_agent.native.placement import Placement
from device_agent.native.steps.common import Emitter, LateWay, Way, Ways, bounded, set_input, set_output
from device_agent.native.strips import StripShape
from device_agent.native.tiling import ConvShape, TileLimit, Tiling, tilings
from device_agent.native.weights import Weights

FloatArray = NDArray[np.float32]

#: Scratch memory of a thread, in elements: enough for what fits a first-level cache.
_SCRATCH_SIZE = 32 * 1024
_SLICE_ENTRIES = 1 << 16
#: More than any step has.
_ALL_TILINGS = 1_000_000


def reads_padding(kernel: KernelSpec) -> bool:
    """Whether the input should have zeros around it, so that the convolution reads it where it is.

    All of stride 1 do. Packing small images without the padding between rows would compute fewer positions, but pays
    only where all that is added or read on the way does without it too: rows of other lengths cost far more to pack.
    """
    return kernel.stride == 1


def emit_conv(
    kernel: KernelSpec,
    weights: Weights,
    bias: FloatArray,
    source: Tensor,
    residual: Tensor | None,
    target: Tensor,
) -> Emitter:
    """A way for each grouping of the output channels that may pay."""

    def emit(placement: Placement) -> Ways:
        common = bounded(
            Step(
                kind=Kind.CONV,
                channels=kernel.in_channels,
                stride=kernel.stride,
                kernel_h=kernel.kernel_h,
                kernel_w=kernel.kernel_w,
                padding=kernel.padding,
                bias=placement.constant(bias),
            ),
            kernel.activation,
        )
        set_input(common, placement, source)
        layout = set_output(common, placement, target)
        common.positions = layout.positions
        if layout.row > layout.width:
            common.mask = placement.mask(layout)
        if residual is not None:
            common.second, common.second_plane = placement.address(residual), residual.layout().plane

        def make(row_groups: Callable[[], list[RowGroups]]) -> Way:
            held = list[NDArray[Any]]()
            tunables = tuple(
                TunableConv(kernel, source, target, _step(common, groups, placement, held), groups, placement)
                for groups in row_groups()
            )
            return Way(steps=tuple(t.step for t in tunables), held=tuple(held), tunables=tunables)

        if kernel.op is Op.DEPTHWISE_CONV2D:
            return (make(lambda: [depthwise_rows(weights.all())]),)
        filters = kernel.pruning.block_filters
        return tuple(
            LateWay(
                signature=tuple((Kind.CONV, size, 0) for size in group_sizes(weights.num_rows, filters, largest)),
                make=functools.partial(make, functools.partial(group_rows, weights, filters, largest)),
            )
            for largest in groupings(weights, filters)
        )

    return emit


class TunableConv:
    """A step whose tiling is open, and what is needed to set it."""

    def __init__(
        self,
        kernel: KernelSpec,
        source: Tensor,
        target: Tensor,
        step: Step,
        groups: RowGroups,
        placement: Placement,
    ) -> None:
        self.step = step
        self._kernel = kernel
        self._source = source
        self._groups = groups
        self._placement = placement
        self._mask, self._weights = step.mask, step.weights
        self._arrays: dict[object, tuple[NDArray[Any], int]] = {}
        self._ranked: list[Tiling] | None = None
        is_split = isinstance(source, PhaseTensor)
        self.shape = ConvShape(
            kernel=kernel,
            source=source.layout(),
            target=target.layout(),
            group_size=groups.group_size,
            num_groups=len(groups.channels),
            num_entries=len(groups.columns),
            can_read_directly=is_split or (kernel.stride == 1 and source.padding >= kernel.padding),
            can_pack=not is_split,
        )

    def tilings(self, tile_limit: TileLimit, count: int) -> list[Tiling]:
        """The `count` most promising tilings, the best first."""
        if self._ranked is None:
            self._ranked = tilings(self.shape, tile_limit, _ALL_TILINGS)
        return self._ranked[:count]

    def apply(self, tiling: Tiling) -> tuple[NDArray[Any], ...]:
        """Set the tiling of `step`; returns the constants that it points to from now on."""
        step, channels = self.step, self._kernel.in_channels
        step.vector_length, step.max_vectors = tiling.vector_length, tiling.max_vectors
        step.block_tiles, step.row_vectors = tiling.block_tiles, tiling.row_vectors
        step.chunk_channels = tiling.chunk_channels
        step.num_chunks = -(-channels // tiling.chunk_channels)
        # Vectors that end with their row never reach the padding.
        step.mask = 0 if tiling.row_vectors else self._mask
        step.row_blocks = 0
        if tiling.strips is not None:
            return self._apply_strips(tiling.strips, tiling.chunk_channels)
        step.weights = self._weights
        starts, step.group_starts = self._array(("starts", tiling.chunk_channels), self._starts, tiling.chunk_channels)
        offsets, step.offsets = self._array(("offsets", tiling.pack), self._offsets, tiling.pack, self._placement.keep)
        if tiling.pack is None:
            step.pack_rows = step.pack_row = step.pack_plane = step.pack_parts = step.num_copies = 0
            step.copies = step.pack_mask = step.scratch = step.scratch_size = 0
            return starts, offsets
        packed = self._packed(tiling.pack)
        step.pack_rows, step.pack_row = tiling.pack.rows, tiling.pack.row
        step.pack_plane, step.pack_parts = packed.plane, self._placement.threads
        step.num_copies = len(packed.copies)
        copies, step.copies = self._array(("copies", tiling.pack), lambda _: packed.copies, None)
        mask, step.pack_mask = self._array(("mask", tiling.pack), lambda _: packed.mask, None)
        # Vectors at the end of the last copy read on.
        step.scratch_size = max(_SCRATCH_SIZE, tiling.chunk_channels * packed.plane + 4 * VECTOR)
        step.scratch = self._placement.thread_scratch(step.scratch_size)
        return starts, offsets, copies, mask

    def _apply_strips(self, shape: StripShape, chunk_channels: int) -> tuple[NDArray[Any], ...]:
        step, plane = self.step, shape.plane(self._kernel)
        step.row_blocks, step.pack_rows, step.pack_plane = shape.blocks, shape.rows, plane
        step.mask = step.copies = step.num_copies = step.pack_row = 0
        held = []
        for field, make in (
            ("group_starts", lambda _: self._order(chunk_channels)[0]),
            ("offsets", lambda _: self._strip_offsets(shape, chunk_channels)),
            ("weights", lambda _: self._groups.values[self._order(chunk_channels)[1]]),
            ("pack_mask", lambda _: shape.masks(self._kernel)),
        ):
            array, address = self._array((field, shape, chunk_channels), make, None)
            setattr(step, field, address)
            held.append(array)
        step.pack_parts = self._placement.threads
        step.scratch_size = chunk_channels * plane + step.num_groups * shape.vectors * VECTOR
        step.scratch = self._placement.thread_scratch(step.scratch_size)
        return tuple(held)

    def _order(self, chunk_channels: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The first entry of each group in each chunk, by chunk and then by group; and the entries in that order."""
        groups = self._groups
        num_groups = len(groups.channels)
        starts = self._starts(chunk_channels)
        counts = np.diff(starts).reshape(num_groups, -1).T
        first = starts[:-1].reshape(num_groups, -1).T.reshape(-1)
        by_chunk = np.concatenate(([0], np.cumsum(counts)))
        order = np.arange(by_chunk[-1]) + np.repeat(first - by_chunk[:-1], counts.reshape(-1))
        return by_chunk.astype(np.int32), order

    def _strip_offsets(self, shape: StripShape, chunk_channels: int) -> NDArray[np.int32]:
        channels = np.arange(self._kernel.in_channels) % chunk_channels
        taps = shape.taps(self._kernel).reshape(-1)
        by_column = (channels[:, None] * shape.plane(self._kernel) + taps).astype(np.int32).reshape(-1)
        offsets: NDArray[np.int32] = by_column[self._groups.columns[self._order(chunk_channels)[1]]]
        return offsets

    def _array(
        self, key: object, make: Any, argument: object, hold: Callable[..., int] | None = None
    ) -> tuple[NDArray[Any], int]:
        if key not in self._arrays:
            held = list[NDArray[Any]]()
            address = (hold or self._placement.constant)(make(argument), held)
            self._arrays[key] = held[0], address
        return self._arrays[key]

    def _packed(self, shape: PackShape) -> PackedInput:
        return pack_input(self._kernel, shape, self._source.layout())

    def _starts(self, chunk_channels: int) -> NDArray[np.int32]:
        """The first entry of each chunk of each group, by group; and the number of entries."""
        groups, kernel = self._groups, self._kernel
        chunk_columns = chunk_channels * kernel.kernel_h * kernel.kernel_w
        bounds = np.arange(0, kernel.in_channels * kernel.kernel_h * kernel.kernel_w, chunk_columns, dtype=np.int32)
        # Columns ascend within a group.
        firsts = [
            start + np.searchsorted(groups.columns[start:end], bounds)
            for start, end in itertools.pairwise(groups.starts.tolist())
        ]
        return np.concatenate((*firsts, groups.starts[-1:])).astype(np.int32)

    def _offsets(self, pack: PackShape | None) -> NDArray[np.int32]:
        """Where each entry's input is."""
        if pack is None:
            taps, plane = _tap_offsets(self._kernel, self._source)
        else:
            packed = self._packed(pack)
            taps, plane = packed.taps.reshape(-1), packed.plane
        channels = self._kernel.in_channels
        if channels * plane >= 1 << 31:
            raise UnsupportedKernelError(f"an input of {channels * plane} elements exceeds the reach of 32-bit offsets")
        by_column = (np.arange(channels)[:, None] * plane + taps).astype(np.int32).reshape(-1)
        columns = self._groups.columns
        offsets: NDArray[np.int32] = aligned_array(columns.shape, np.int32)
        # In slices, and without the copy that the default mode makes: numpy wants 64-bit indices.
        for start in range(0, len(columns), _SLICE_ENTRIES):
            part = slice(start, start + _SLICE_ENTRIES)
            by_column.take(columns[part], out=offsets[part], mode="clip")
        return offsets


def _step(common: Step, groups: RowGroups, placement: Placement, held: list[NDArray[Any]]) -> Step:
    step = Step.from_buffer_copy(common)
    step.group_size, step.num_groups = groups.group_size, len(groups.channels)
    step.group_channels = placement.constant(groups.channels, held)
    step.weights = placement.keep(groups.values, held)
    return step


def _tap_offsets(kernel: KernelSpec, source: Tensor) -> tuple[NDArray[np.int64], int]:
    """The offset of each kernel position from the output's position, and of each channel, in elements."""
    layout = source.layout()
    stride = kernel.stride
    y, x = np.meshgrid(
        np.arange(kernel.kernel_h) - kernel.padding, np.arange(kernel.kernel_w) - kernel.padding, indexing="ij"
    )
    taps = (y // stride) * layout.row + x // stride
    planes_per_channel = 1
    if isinstance(source, PhaseTensor):
        taps = taps + source.phase_indices()[phase_of(y, x, stride)] * layout.plane
        planes_per_channel = source.num_phases
    return taps.reshape(-1).astype(np.int64), planes_per_channel * layout.plane
