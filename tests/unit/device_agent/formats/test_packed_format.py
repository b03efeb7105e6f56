"""The packed network: round trips, size, sameness of bytes, and files that mean harm."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from device_agent.contracts import (
    ContractError,
    KernelSpec,
    NetworkPlan,
    Op,
    PlanOp,
    PruningScheme,
    WeightPruning,
    encode,
)
from device_agent.formats.packed import read_packed, weight_bytes, write_packed
from device_agent.synthesis import kernel_plan, kernel_plan_tensors

GROUP = WeightPruning(scheme=PruningScheme.GROUP, density=0.25, block_filters=4)


def conv(pruning: WeightPruning, out_channels: int = 18, in_channels: int = 9) -> KernelSpec:
    return KernelSpec(
        op=Op.CONV2D,
        in_channels=in_channels,
        out_channels=out_channels,
        input_h=4,
        input_w=4,
        kernel_h=3,
        kernel_w=3,
        padding=1,
        pruning=pruning,
        seed=3,
    )


def packed(kernel: KernelSpec) -> bytes:
    return write_packed(kernel_plan(kernel), kernel_plan_tensors(kernel))


@settings(max_examples=80, deadline=None)
@given(
    density=st.floats(0.01, 1.0),
    scheme=st.sampled_from((PruningScheme.UNSTRUCTURED, PruningScheme.GROUP, PruningScheme.BLOCK_PUNCHED)),
    filters=st.integers(1, 9),
    channels=st.integers(1, 9),
    out_channels=st.integers(1, 20),
)
def test_what_is_read_is_what_was_written(
    density: float, scheme: PruningScheme, filters: int, channels: int, out_channels: int
) -> None:
    pruning = WeightPruning(
        scheme=scheme,
        density=density,
        block_filters=1 if scheme is PruningScheme.UNSTRUCTURED else filters,
        block_channels=channels if scheme is PruningScheme.BLOCK_PUNCHED else 1,
    )
    kernel = conv(pruning, out_channels)
    tensors = kernel_plan_tensors(kernel)
    data = write_packed(kernel_plan(kernel), tensors)
    plan, read = read_packed(data)
    assert plan == kernel_plan(kernel)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == np.float32
        np.testing.assert_array_equal(read[name], tensor)
    assert write_packed(plan, read) == data


def tensor_bytes(kernel: KernelSpec) -> int:
    return sum(tensor.nbytes for tensor in load(packed(kernel)).values())


@pytest.mark.parametrize(
    "pruning",
    [
        WeightPruning(),
        *(WeightPruning(scheme=PruningScheme.GROUP, density=d, block_filters=4) for d in (0.1, 0.35, 0.7, 0.95)),
        *(WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=d) for d in (0.1, 0.5, 0.9)),
        *(
            WeightPruning(scheme=PruningScheme.BLOCK_PUNCHED, density=d, block_filters=8, block_channels=4)
            for d in (0.2, 0.6)
        ),
        *(
            WeightPruning(scheme=PruningScheme.PATTERN, density=d, block_filters=f, pattern_entries=4)
            for d in (0.2, 4 / 9)
            for f in (1, 4)
        ),
    ],
    ids=lambda p: f"{p.scheme}-{p.block_filters}x{p.block_channels}-{p.density:.2f}",
)
def test_bytes_are_known_from_shape_and_pruning(pruning: WeightPruning) -> None:
    kernel = conv(pruning, 32, 16)
    assert weight_bytes(kernel) == tensor_bytes(kernel)


@settings(max_examples=80, deadline=None)
@given(
    density=st.floats(0.01, 1.0),
    filters=st.integers(1, 9),
    channels=st.integers(1, 9),
    out_channels=st.integers(1, 20),
)
def test_a_file_never_takes_more_bytes_than_foretold(
    density: float, filters: int, channels: int, out_channels: int
) -> None:
    pruning = WeightPruning(
        scheme=PruningScheme.BLOCK_PUNCHED, density=density, block_filters=filters, block_channels=channels
    )
    kernel = conv(pruning, out_channels)
    assert tensor_bytes(kernel) <= weight_bytes(kernel)
    linear = KernelSpec(
        op=Op.FULLY_CONNECTED,
        in_channels=40,
        out_channels=out_channels,
        pruning=replace(pruning, scheme=PruningScheme.BLOCK),
    )
    assert tensor_bytes(linear) <= weight_bytes(linear)


def test_size_falls_with_density() -> None:
    sizes = [
        len(packed(conv(WeightPruning(scheme=PruningScheme.GROUP, density=d, block_filters=4), 64, 64)))
        for d in (1.0, 0.5, 0.2, 0.1)
    ]
    dense = 4 * 64 * 64 * 9
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] < dense + 4096
    assert sizes[3] < 0.13 * dense + 4096


def test_weights_that_break_their_scheme_survive() -> None:
    """The file holds what the weights are, not what the plan says of their zeros."""
    kernel = conv(GROUP)
    tensors = kernel_plan_tensors(kernel)
    tensors["kernel.weight"] = np.ones(kernel.weight_shape, np.float32)
    _, read = read_packed(write_packed(kernel_plan(kernel), tensors))
    np.testing.assert_array_equal(read["kernel.weight"], tensors["kernel.weight"])


def test_an_operator_without_weights_stores_none() -> None:
    kernel = KernelSpec(op=Op.GLOBAL_AVG_POOL, in_channels=3, out_channels=3, input_h=4, input_w=4)
    plan, tensors = read_packed(write_packed(kernel_plan(kernel), {}))
    assert plan == kernel_plan(kernel)
    assert tensors == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("kernel.bias"), "'kernel.bias'.*missing"),
        (lambda t: t.update({"kernel.bias": np.zeros(3, np.float32)}), r"shape \(3,\)"),
        (lambda t: t.update({"kernel.bias": np.zeros(18, np.int32)}), "type int32"),
        (lambda t: t.update({"kernel.bias": np.full(18, np.nan, np.float32)}), "not finite"),
        (lambda t: t.update({"kernel.bias": np.full(18, 1e60)}), "not finite"),
        (lambda t: t.update({"other.bias": np.zeros(18, np.float32)}), "'other.bias' belongs to no operator"),
    ],
)
def test_tensors_that_do_not_fit_are_not_written(change: Callable[[dict[str, Any]], object], message: str) -> None:
    kernel = conv(GROUP)
    tensors: dict[str, Any] = dict(kernel_plan_tensors(kernel))
    change(tensors)
    with pytest.raises(ContractError, match=message):
        write_packed(kernel_plan(kernel), tensors)


# --- hostile files --------------------------------------------------------------------------------------------------


def parts_of(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    (size,) = struct.unpack_from("<Q", data)
    return load(data), json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["kerf.packed"])


def rebuild(tensors: dict[str, np.ndarray], content: object) -> bytes:
    return save(tensors, metadata={"kerf.packed": json.dumps(content)})


def _set(name: str, index: int, value: int) -> Callable[[dict[str, np.ndarray]], object]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"kernel.weight.{name}"][index] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("columns", 0, 60_000), "column 60000 is not below 81"),
        (_set("columns", 1, 0), "ascending"),
        (_set("counts", 0, 80), "disagree"),
        (_set("counts", 0, 2**32 - 1), "disagree"),
        (lambda t: t.pop("kernel.weight.values"), "values is missing"),
        (lambda t: t.update({"kernel.weight.counts": t["kernel.weight.counts"][:-1]}), "do not make 18 rows"),
        (lambda t: t.update({"kernel.weight.columns": t["kernel.weight.columns"][:-1]}), "disagree"),
        (lambda t: t.update({"kernel.weight.columns": t["kernel.weight.columns"].astype(np.int16)}), "type int16"),
        (lambda t: t.update({"kernel.weight.values": t["kernel.weight.values"].reshape(-1)}), "1 dimensions"),
        (lambda t: t["kernel.weight.values"].__setitem__((0, 0), np.inf), "not finite"),
        (lambda t: t.update({"kernel.weight": np.zeros((18, 9, 3, 3), np.float32)}), "stored twice"),
        (lambda t: t.update({"stray": np.zeros(1, np.float32)}), "'stray' belongs to no operator"),
    ],
)
def test_inconsistent_tensors_are_refused(change: Callable[[dict[str, np.ndarray]], object], message: str) -> None:
    tensors, content = parts_of(packed(conv(GROUP)))
    change(tensors)
    with pytest.raises(ContractError, match=message):
        read_packed(rebuild(tensors, content))


def test_rows_that_only_fill_up_the_last_group_must_be_zero() -> None:
    tensors, content = parts_of(packed(conv(GROUP, out_channels=19)))
    assert tensors["kernel.weight.values"].shape[1] == 4
    tensors["kernel.weight.values"][-1, 3] = 1.0
    with pytest.raises(ContractError, match="fill up the last group"):
        read_packed(rebuild(tensors, content))


def test_another_version_is_refused_with_a_remedy() -> None:
    tensors, content = parts_of(packed(conv(GROUP)))
    content["format_version"] = 2
    with pytest.raises(ContractError, match=r"format version 2.*upgrade"):
        read_packed(rebuild(tensors, content))


def test_an_unknown_plan_field_is_refused() -> None:
    tensors, content = parts_of(packed(conv(GROUP)))
    content["plan"]["color"] = "red"
    with pytest.raises(ContractError, match="color"):
        read_packed(rebuild(tensors, content))


@pytest.mark.parametrize("data", [b"", b"1234567", struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", 2) + b"{}"])
def test_what_is_no_packed_file_is_refused(data: bytes) -> None:
    with pytest.raises(ContractError):
        read_packed(data)


def test_metadata_of_the_wrong_kind_is_refused() -> None:
    for content in (None, [], "text", {"format_version": 1}, {"format_version": 1, "plan": 3}):
        with pytest.raises(ContractError):
            read_packed(rebuild({}, content))


def test_a_small_file_cannot_claim_a_huge_network() -> None:
    """Packed weights can be empty, so the plan alone could ask for terabytes."""
    kernel = KernelSpec(op=Op.FULLY_CONNECTED, in_channels=16384, out_channels=16384)
    ops = tuple(PlanOp(name=f"op{i}", kernel=kernel, inputs=(f"op{i - 1}" if i else "input",)) for i in range(3))
    plan = NetworkPlan(name="huge", input_shape=(16384, 1, 1), ops=ops)
    with pytest.raises(ContractError, match="limit of 268435456 for a whole network"):
        read_packed(rebuild({}, {"format_version": 1, "plan": encode(plan)}))


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 4000), value=st.integers(0, 255), length=st.integers(0, 4000))
def test_damaged_files_never_do_more_than_raise(position: int, value: int, length: int) -> None:
    data = bytearray(packed(conv(GROUP)))
    data[position % len(data)] = value
    for damaged in (bytes(data), bytes(data[:length])):
        try:
            read_packed(damaged)
        except ContractError:
            continue
