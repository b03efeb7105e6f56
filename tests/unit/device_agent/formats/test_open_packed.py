"""Packed networks that are read a part at a time."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.contracts import DENSE, ContractError, KernelSpec, Op, PruningScheme, WeightPruning
from device_agent.formats.packed import open_packed, read_packed, write_packed
from device_agent.formats.packed_tensors import GroupedTensor, PlainTensor
from device_agent.native.executor import NativeNetwork
from device_agent.native.weights import Weights
from device_agent.synthesis import kernel_inputs, kernel_plan, kernel_plan_tensors


def conv(density: float, channels: int = 18, block_filters: int = 4) -> KernelSpec:
    pruning = WeightPruning(scheme=PruningScheme.GROUP, density=density, block_filters=block_filters)
    return KernelSpec(
        op=Op.CONV2D, in_channels=channels, out_channels=channels, input_h=8, input_w=8, kernel_h=3, kernel_w=3,
        padding=1, pruning=DENSE if density == 1 else pruning,
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    density=st.sampled_from((1.0, 0.6, 0.2, 0.01)),
    channels=st.integers(1, 23),
    block_filters=st.integers(1, 5),
    borders=st.tuples(st.integers(0, 23), st.integers(0, 23)),
)
def test_any_output_channels_are_those_of_the_dense_tensor(
    density: float, channels: int, block_filters: int, borders: tuple[int, int]
) -> None:
    kernel = conv(density, channels, block_filters)
    tensors = kernel_plan_tensors(kernel)
    plan, opened = open_packed(write_packed(kernel_plan(kernel), tensors))
    assert plan == opened.plan
    assert opened.keys() == tensors.keys()
    for name, tensor in tensors.items():
        part = slice(min(borders), max(borders))
        np.testing.assert_array_equal(opened[name][part], tensor[part])
        np.testing.assert_array_equal(np.asarray(opened[name]), tensor)
        assert opened[name].shape == tensor.shape


@pytest.mark.parametrize("density", [1.0, 0.2])
def test_a_file_reads_like_its_bytes(tmp_path: Path, density: float) -> None:
    kernel = conv(density)
    data = write_packed(kernel_plan(kernel), kernel_plan_tensors(kernel))
    path = tmp_path / "network"
    path.write_bytes(data)
    _, tensors = open_packed(path)
    for name, dense in read_packed(data)[1].items():
        np.testing.assert_array_equal(tensors[name][4:12], dense[4:12])
        np.testing.assert_array_equal(np.asarray(tensors[name]), dense)


def test_a_file_that_is_cut_short_meanwhile_is_no_crash(tmp_path: Path) -> None:
    kernel = conv(1.0)
    path = tmp_path / "network"
    path.write_bytes(write_packed(kernel_plan(kernel), kernel_plan_tensors(kernel)))
    _, tensors = open_packed(path)
    os.truncate(path, path.stat().st_size - 1000)
    with pytest.raises(ContractError, match="cut short"):
        np.asarray(tensors["kernel.weight"])


def test_what_is_no_file_of_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nothing"):
        open_packed(tmp_path / "nothing")
    path = tmp_path / "empty"
    path.write_bytes(b"")
    with pytest.raises(ContractError, match="0 bytes"):
        open_packed(path)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',  # fewer bytes than values
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',  # a gap
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',  # bytes of no tensor
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,-8]}}',
        b'{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[true,2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"X","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[99999999999,99999999999],"data_offsets":[0,8]}}',
        b'{"a":3}',
        b'{"__metadata__":3}',
        b"[]",
    ],
)
def test_extents_that_do_not_fit_the_file_are_refused(header: bytes) -> None:
    with pytest.raises(ContractError):
        open_packed(len(header).to_bytes(8, "little") + header + bytes(8))


@pytest.mark.parametrize("density", [1.0, 0.2])
def test_a_network_is_prepared_from_a_few_channels_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, density: float
) -> None:
    """And computes what it does from dense tensors, bit for bit."""
    kernel = conv(density, 240)
    path = tmp_path / "network"
    path.write_bytes(write_packed(kernel_plan(kernel), kernel_plan_tensors(kernel)))
    plan, tensors = open_packed(path)
    sizes: list[int] = []
    for cls in (PlainTensor, GroupedTensor):
        read = cls.__getitem__

        def counted(self: PlainTensor, channels: slice, read=read) -> np.ndarray:  # type: ignore[no-untyped-def]
            values: np.ndarray = read(self, channels)
            sizes.append(values.size)
            return values

        monkeypatch.setattr(cls, "__getitem__", counted)
    opened = NativeNetwork(plan, tensors, tune=False)
    assert sum(sizes) > Weights(tensors["kernel.weight"]).num_rows
    assert max(sizes) <= 1 << 16 < 240 * 240 * 9
    x, _ = kernel_inputs(kernel)
    dense = NativeNetwork(plan, kernel_plan_tensors(kernel), tune=False)
    assert opened.run(x).tobytes() == dense.run(x).tobytes()
