"""Weights as the kernels read them: row groups of non-zero columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.native.library import GROUP_SIZES
from device_agent.native.memory import aligned_array
from device_agent.native.weights import Weights

FloatArray = NDArray[np.float32]

#: Cost of an entry of a group, in units of one weight at full speed. Groups of one are bound by loads instead of
#: arithmetic, so an entry of four weights costs far less than four entries of one.
_ENTRY_COST = {1: 1.6, 2: 2.3, 4: 4.0}
#: Groupings within this factor of the cheapest are left to the tuner.
_WORTH_TRYING = 1.35
#: A grouping that stores this little more than the non-zeros fits their structure.
_EXACT = 1.03


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroups:
    """Output channels in groups of `group_size` that share a list of columns.

    `channels` holds the first output channel of each group, `starts` the first entry of each (and the total at the
    end), `columns` the column and `values` the group's weights of each entry, (entries, group_size), aligned for
    kernels. Columns ascend within a group: this order is the order of summation.
    """

    group_size: int
    channels: NDArray[np.int32]
    starts: NDArray[np.int32]
    columns: NDArray[np.integer[Any]]
    values: FloatArray


def groupings(weights: Weights, block_filters: int) -> list[int]:
    """The largest groups (1, 2 or 4) that are worth timing for `weights`, the most promising first."""
    num_weights = weights.count_nonzero()
    costs: dict[int, float] = {}
    for largest in GROUP_SIZES:
        counts = entry_counts(weights, block_filters, largest)
        costs[largest] = sum(_ENTRY_COST[size] * (int(n.sum()) + 1) for size, n in counts.items())
        if sum(size * int(n.sum()) for size, n in counts.items()) <= num_weights * _EXACT:
            # The zeros have this structure: smaller groups would store no less.
            break
    limit = min(costs.values()) * _WORTH_TRYING
    return sorted((size for size, cost in costs.items() if cost <= limit), key=costs.__getitem__)


def group_sizes(num_rows: int, block_filters: int, largest: int) -> tuple[int, ...]:
    """The sizes of the groups that `group_rows` makes, in its order."""
    return tuple(_partition(num_rows, max(block_filters, largest), largest))


def entry_counts(weights: Weights, block_filters: int, largest: int) -> dict[int, NDArray[np.int64]]:
    """The entries of each group that `group_rows` would make, by the size of the groups."""
    partition = _partition(weights.num_rows, max(block_filters, largest), largest)
    return {
        size: np.concatenate([_mask(part).sum(axis=1) for part in _group_slices(weights, size, channels)])
        for size, channels in partition.items()
    }


def group_rows(weights: Weights, block_filters: int, largest: int) -> list[RowGroups]:
    """Group the rows of `weights` by at most `largest` (1, 2 or 4), without crossing a border between blocks of
    `block_filters`: one result for each size, as output channels that do not fill the largest group go to smaller ones.

    Blocks smaller than `largest` are put together. Columns that are zero in a whole group are left out.
    """
    counts = entry_counts(weights, block_filters, largest)
    result = []
    for size, channels in _partition(weights.num_rows, max(block_filters, largest), largest).items():
        num_entries = int(counts[size].sum())
        columns = aligned_array((num_entries,), np.uint16 if weights.num_columns <= 1 << 16 else np.int32)
        values = aligned_array((num_entries, size), np.float32)
        end = 0
        for part in _group_slices(weights, size, channels):
            found = np.flatnonzero(_mask(part))
            start, end = end, end + len(found)
            np.remainder(found, weights.num_columns, out=columns[start:end], casting="unsafe")
            entries = part.transpose(0, 2, 1).reshape(-1, size)
            values[start:end] = entries if len(found) == len(entries) else entries.take(found, axis=0)
        result.append(
            RowGroups(
                group_size=size,
                channels=channels.astype(np.int32),
                starts=np.concatenate(([0], np.cumsum(counts[size]))).astype(np.int32),
                columns=columns,
                values=values,
            )
        )
    return result


def depthwise_rows(taps: FloatArray) -> RowGroups:
    """`taps` (channels, kernel positions) where row c reads only its own channel: column c * positions + tap."""
    channel, tap = np.nonzero(taps)
    counts = np.bincount(channel, minlength=len(taps))
    values = aligned_array((len(channel), 1), np.float32)
    values[:, 0] = taps[channel, tap]
    return RowGroups(
        group_size=1,
        channels=np.arange(len(taps), dtype=np.int32),
        starts=np.concatenate(([0], np.cumsum(counts))).astype(np.int32),
        columns=(channel * taps.shape[1] + tap).astype(np.int32),
        values=values,
    )


def dense_blocks(weights: Weights, width: int) -> FloatArray:
    """`weights` (outputs, inputs) as (blocks, inputs, width), aligned for kernels: `width` outputs side by side, filled
    up with zeros.
    """
    blocks: FloatArray = aligned_array((-(-weights.num_rows // width), weights.num_columns, width), np.float32)
    for index, block in enumerate(blocks):
        rows = weights.rows(index * width, (index + 1) * width)
        block[:, : len(rows)] = rows.T
    return blocks


def _group_slices(weights: Weights, size: int, channels: NDArray[np.int64]) -> Iterator[FloatArray]:
    """The groups of `size` rows that begin at `channels`, some at a time: (groups, size, columns)."""
    for first, last in weights.windows(size):
        firsts = channels[np.searchsorted(channels, first) : np.searchsorted(channels, last)]
        if not len(firsts):
            continue
        rows = weights.rows(int(firsts[0]), int(firsts[-1]) + size)
        if len(rows) == len(firsts) * size:
            yield rows.reshape(len(firsts), size, -1)
        else:
            yield rows[(firsts - firsts[0])[:, None] + np.arange(size)]


def _mask(part: FloatArray) -> NDArray[np.bool_]:
    """Which columns of each group (groups, size, columns) have a weight."""
    mask: NDArray[np.bool_] = (part != 0).any(axis=1)
    return mask


def _partition(num_rows: int, block: int, largest: int) -> dict[int, NDArray[np.int64]]:
    """First rows of the groups of each size, when every block is cut into the largest groups that fit."""
    starts: dict[int, list[NDArray[np.int64]]] = {}
    for length, firsts in _blocks(num_rows, block):
        offset = 0
        for size in (s for s in GROUP_SIZES if s <= largest):
            count = (length - offset) // size
            if count:
                inside = offset + size * np.arange(count)
                starts.setdefault(size, []).append((firsts[:, None] + inside).reshape(-1))
            offset += count * size
    return {size: np.sort(np.concatenate(parts)) for size, parts in starts.items()}


def _blocks(num_rows: int, block: int) -> list[tuple[int, NDArray[np.int64]]]:
    """(length, first rows) of the whole blocks, and of the smaller last one."""
    whole = num_rows // block
    blocks = [(block, block * np.arange(whole))] if whole else []
    if num_rows % block:
        blocks.append((num_rows % block, np.array([whole * block])))
    return blocks
