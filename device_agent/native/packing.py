"""Weights as the kernels read them: row groups of non-zero columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from device_agent.native.library import GROUP_SIZES

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
    end), `columns` the column and `values` the group's weights of each entry, (entries, group_size). Columns ascend
    within a group: this order is the order of summation.
    """

    group_size: int
    channels: NDArray[np.int32]
    starts: NDArray[np.int32]
    columns: NDArray[np.int64]
    values: FloatArray


def groupings(rows: FloatArray, block_filters: int) -> list[list[RowGroups]]:
    """The ways to group `rows` (output channels, columns) that are worth timing, the most promising first.

    Each way is one `RowGroups` for each group size that it uses: output channels that do not fill the largest group
    go to smaller ones.
    """
    num_weights = int(np.count_nonzero(rows))
    ways: list[tuple[float, list[RowGroups]]] = []
    for size in GROUP_SIZES:
        way = group_rows(rows, block_filters, size)
        ways.append((_cost(way), way))
        if sum(groups.values.size for groups in way) <= num_weights * _EXACT:
            # The zeros have this structure: smaller groups would store no less.
            break
    cheapest = min(cost for cost, _ in ways)
    kept = [(cost, way) for cost, way in ways if cost <= cheapest * _WORTH_TRYING]
    return [way for _, way in sorted(kept, key=lambda item: item[0])]


def group_rows(rows: FloatArray, block_filters: int, largest: int) -> list[RowGroups]:
    """Group `rows` by at most `largest` (1, 2 or 4), without crossing a border between blocks of `block_filters`.

    Blocks smaller than `largest` are put together. Columns that are zero in a whole group are left out.
    """
    result = []
    for size, channels in _partition(len(rows), max(block_filters, largest), largest).items():
        grouped = rows[channels[:, None] + np.arange(size)]
        group, column = np.nonzero((grouped != 0).any(axis=1))
        counts = np.bincount(group, minlength=len(channels))
        result.append(
            RowGroups(
                group_size=size,
                channels=channels.astype(np.int32),
                starts=np.concatenate(([0], np.cumsum(counts))).astype(np.int32),
                columns=column.astype(np.int64),
                values=np.ascontiguousarray(grouped[group, :, column]),
            )
        )
    return result


def depthwise_rows(taps: FloatArray) -> list[list[RowGroups]]:
    """`taps` (channels, kernel positions) where row c reads only its own channel: column c * positions + tap."""
    channel, tap = np.nonzero(taps)
    counts = np.bincount(channel, minlength=len(taps))
    groups = RowGroups(
        group_size=1,
        channels=np.arange(len(taps), dtype=np.int32),
        starts=np.concatenate(([0], np.cumsum(counts))).astype(np.int32),
        columns=channel * taps.shape[1] + tap,
        values=np.ascontiguousarray(taps[channel, tap][:, None]),
    )
    return [[groups]]


def dense_blocks(rows: FloatArray, width: int) -> FloatArray:
    """`rows` (outputs, inputs) as (blocks, inputs, width): `width` outputs side by side, filled up with zeros."""
    outputs, inputs = rows.shape
    blocks = -(-outputs // width)
    padded = np.zeros((blocks * width, inputs), dtype=np.float32)
    padded[:outputs] = rows
    return np.ascontiguousarray(padded.reshape(blocks, width, inputs).transpose(0, 2, 1))


def _cost(way: list[RowGroups]) -> float:
    return sum(_ENTRY_COST[groups.group_size] * (len(groups.columns) + 1) for groups in way)


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
