"""Layouts, phases and row groups on cases that can be checked by hand."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from device_agent.native import weights
from device_agent.native.layout import Form, PhaseTensor, Tensor, phase_of, position_mask
from device_agent.native.packing import dense_blocks, depthwise_rows, group_rows, group_sizes, groupings
from device_agent.native.steps.winograd import transform_weights
from device_agent.native.weights import Weights


def test_rows_share_their_padding_with_their_neighbours() -> None:
    tensor = Tensor(2, 3, 4, Form.PLANES)
    tensor.need_padding(1)
    layout = tensor.layout()
    assert (layout.row, layout.positions) == (5, 14)
    assert layout.plane == 32  # (3 + 1) * 5 = 20, rounded up to whole vectors
    assert layout.lead == 16
    mask = position_mask(layout)
    assert [bool(word) for word in mask] == [True, True, True, True, False] * 2 + [True] * 4 + [False] * 2


def test_joined_tensors_have_one_row_stride() -> None:
    narrow, wide, last = (Tensor(1, 4, width, Form.PLANES) for width in (4, 9, 5))
    wide.need_padding(2)
    narrow.join_rows(last)
    last.join_rows(wide)
    assert {tensor.layout().row for tensor in (narrow, wide, last)} == {11}


def test_compact_tensors_have_no_padding() -> None:
    layout = Tensor(2, 3, 4, Form.COMPACT).layout()
    assert (layout.row, layout.plane, layout.lead) == (4, 12, 16)


def test_phases_are_counted_from_the_image() -> None:
    phases = PhaseTensor(Tensor(3, 7, 8, Form.PLANES), 2)
    assert (phases.height, phases.width) == (4, 4)
    phases.need_phases(1, 1, 0)
    assert (phases.channels, phases.num_phases, phases.padding) == (3, 1, 0)
    assert phases.phase_indices().tolist() == [0, -1, -1, -1]
    phases.need_phases(3, 3, 1)
    assert (phases.channels, phases.num_phases, phases.padding) == (12, 4, 1)
    assert phase_of(-1, 2, 2) == 2


def test_groups_respect_blocks_and_leave_out_zero_columns() -> None:
    rows = np.zeros((7, 5), np.float32)
    rows[0, 1] = rows[3, 4] = 1.0
    rows[5, 0] = 2.0
    rows[6] = 3.0
    by_size = {groups.group_size: groups for groups in group_rows(Weights(rows), 7, 4)}
    assert {size: groups.channels.tolist() for size, groups in by_size.items()} == {4: [0], 2: [4], 1: [6]}
    assert by_size[4].columns.tolist() == [1, 4]
    assert by_size[4].values.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
    assert by_size[2].values.tolist() == [[0, 2]]
    assert by_size[1].starts.tolist() == [0, 5]


@pytest.mark.parametrize(
    ("block_filters", "expected"),
    [(1, {4: [0, 4], 1: [8]}), (3, {4: [0, 4], 1: [8]}), (6, {4: [0], 2: [4, 6], 1: [8]}), (8, {4: [0, 4], 1: [8]})],
)
def test_partition_of_nine_filters(block_filters: int, expected: dict[int, list[int]]) -> None:
    ways = group_rows(Weights(np.ones((9, 2), np.float32)), block_filters, 4)
    assert {groups.group_size: groups.channels.tolist() for groups in ways} == expected


@pytest.mark.parametrize("block_filters", [1, 3, 5, 7, 8])
def test_groups_are_the_same_whatever_is_read_at_once(block_filters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In slices of a few rows or all at once; and every weight is in one group, at its column."""
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((23, 30)) * (rng.random((23, 30)) < 0.4)).astype(np.float32)
    for elements in (1, 100, 1 << 16):
        monkeypatch.setattr(weights, "_SLICE_ELEMENTS", elements)
        for largest in (4, 2, 1):
            found = group_rows(Weights(rows), block_filters, largest)
            assert tuple(groups.group_size for groups in found) == group_sizes(23, block_filters, largest)
            dense = np.zeros_like(rows)
            for groups in found:
                for channel, start, end in zip(groups.channels, groups.starts, groups.starts[1:], strict=False):
                    columns = groups.columns[start:end]
                    assert (np.diff(columns) > 0).all()
                    assert (groups.values[start:end] != 0).any(axis=1).all()
                    dense[channel : channel + groups.group_size, columns] += groups.values[start:end].T
            np.testing.assert_array_equal(dense, rows)


def test_packing_takes_little_memory_beside_its_result() -> None:
    """Constants that are kept have pages of their own, which are not traced."""
    rows = np.ones((512, 1152), np.float32)
    tracemalloc.start()
    try:
        [groups] = group_rows(Weights(rows), 1, 4)
        assert groups.values.nbytes == rows.nbytes
        transform_weights(Weights(rows), 4)
        dense_blocks(Weights(rows), 16)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < rows.nbytes


def test_weights_of_some_channels_are_read_like_all() -> None:
    values = np.arange(5 * 2 * 3, dtype=np.float32).reshape(5, 2, 3)
    part = Weights(values).part(slice(1, 4))
    assert (part.num_rows, part.num_columns) == (3, 6)
    np.testing.assert_array_equal(part.all(), values[1:4].reshape(3, 6))
    np.testing.assert_array_equal(part.rows(2, 9), values[3:4].reshape(1, 6))
    assert part.count_nonzero() == 18


def test_groupings_of_dense_weights_need_no_trial_and_unstructured_ones_do() -> None:
    assert groupings(Weights(np.ones((16, 90), np.float32)), 1) == [4]
    sparse = (np.random.default_rng(0).random((16, 900)) < 0.1).astype(np.float32)
    assert groupings(Weights(sparse), 1)[0] == 1


def test_depthwise_rows_read_their_own_channel() -> None:
    taps = np.array([[1, 0, 2], [0, 0, 0], [0, 3, 0]], np.float32)
    groups = depthwise_rows(taps)
    assert groups.columns.tolist() == [0, 2, 7]
    assert groups.starts.tolist() == [0, 2, 2, 3]
    assert groups.values.reshape(-1).tolist() == [1, 2, 3]


def test_dense_blocks_put_outputs_side_by_side() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    blocks = dense_blocks(Weights(rows), 2)
    assert blocks.tolist() == [[[0, 2], [1, 3]], [[4, 0], [5, 0]]]
