"""Kerf's packed network: a plan and its weights in one safetensors file, zeros left out.

Layout, version 1. The metadata has the single key `kerf.packed`: the canonical JSON of the format version and the plan.
`<op>.bias` is float32 (out_channels,). Weights are either `<op>.weight`, float32 of `KernelSpec.weight_shape`, or,
where that is smaller, row groups: g consecutive output channels share one list of columns, a column being a position
in the flattened (in_channels, kernel_h, kernel_w).

    <op>.weight.counts    uint32 (groups,)     columns of each group
    <op>.weight.columns   uint16 or uint32 (n,) ascending within a group
    <op>.weight.values    float32 (n, g)       one row per column; a last, smaller group is filled up with zeros

The same plan and tensors give the same bytes, so a file can be named by its hash. A file is data only: reading it runs
no code, and everything is checked against the plan before it is used.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from device_agent.contracts import ContractError, KernelSpec, NetworkPlan, decode, encode

FloatArray = NDArray[np.float32]

FORMAT_VERSION = 1
#: A network with more weights (1 GiB as float32) is refused, so that a small hostile file cannot fill the memory.
MAX_TOTAL_WEIGHTS = 1 << 28
MAX_OPS = 10_000
_METADATA_KEY = "kerf.packed"
_MAX_HEADER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _RowGroups:
    counts: NDArray[np.uint32]
    columns: NDArray[np.unsignedinteger[Any]]
    values: FloatArray

    @property
    def num_bytes(self) -> int:
        return self.counts.nbytes + self.columns.nbytes + self.values.nbytes


def write_packed(plan: NetworkPlan, tensors: Mapping[str, NDArray[np.floating[Any]]]) -> bytes:
    """The packed file of `plan` with `tensors` (`<op>.weight` and `<op>.bias` of each operator that has weights).

    Raises `ContractError` where a tensor is missing, unknown, not finite or of another shape than the plan says.
    """
    checked = check_tensors(plan, tensors)
    stored: dict[str, NDArray[Any]] = {}
    for op in plan.ops:
        if not op.kernel.op.has_weights:
            continue
        stored[f"{op.name}.bias"] = checked[f"{op.name}.bias"]
        weight = checked[f"{op.name}.weight"]
        packed = _smallest_row_groups(weight, op.kernel)
        if packed.num_bytes < weight.nbytes:
            stored[f"{op.name}.weight.counts"] = packed.counts
            stored[f"{op.name}.weight.columns"] = packed.columns
            stored[f"{op.name}.weight.values"] = packed.values
        else:
            stored[f"{op.name}.weight"] = weight
    header = json.dumps({"format_version": FORMAT_VERSION, "plan": encode(plan)}, sort_keys=True, separators=(",", ":"))
    return save(stored, metadata={_METADATA_KEY: header})


def read_packed(data: bytes) -> tuple[NetworkPlan, dict[str, FloatArray]]:
    """The plan and its dense tensors. Raises `ContractError` for anything that is not a sound packed file."""
    plan = _read_plan(data)
    _check_size(plan)
    try:
        stored = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ContractError(f"not a sound safetensors file: {error}") from None
    tensors: dict[str, FloatArray] = {}
    for op in plan.ops:
        if not op.kernel.op.has_weights:
            continue
        for part in ("weight", "bias"):
            plain = stored.pop(f"{op.name}.{part}", None)
            if plain is not None:
                tensors[f"{op.name}.{part}"] = plain
        if f"{op.name}.weight.counts" in stored:
            if f"{op.name}.weight" in tensors:
                raise ContractError(f"{op.name}.weight is stored twice, plain and packed")
            tensors[f"{op.name}.weight"] = _unpack(op.name, op.kernel, stored)
    if stored:
        raise ContractError(f"the tensor {min(stored)!r} belongs to no operator of the plan")
    return plan, check_tensors(plan, tensors)


def check_tensors(plan: NetworkPlan, tensors: Mapping[str, NDArray[np.floating[Any]]]) -> dict[str, FloatArray]:
    """`tensors` as contiguous float32, after checking names, shapes and that every value is finite.

    Raises `ContractError` naming the first tensor that does not fit.
    """
    _check_size(plan)
    checked: dict[str, FloatArray] = {}
    for op in plan.ops:
        if not op.kernel.op.has_weights:
            continue
        shapes = {"weight": op.kernel.weight_shape, "bias": (op.kernel.out_channels,)}
        for part, shape in shapes.items():
            name = f"{op.name}.{part}"
            if name not in tensors:
                raise ContractError(f"the tensor {name!r} of shape {shape} is missing")
            tensor = np.asarray(tensors[name])
            if tensor.dtype.kind != "f":
                raise ContractError(f"{name} has type {tensor.dtype}: weights are float32")
            if tensor.shape != shape:
                raise ContractError(f"{name} has shape {tensor.shape}, but the plan says {shape}")
            with np.errstate(over="ignore"):
                checked[name] = np.ascontiguousarray(tensor, dtype=np.float32)
            if not np.isfinite(checked[name]).all():
                raise ContractError(f"{name} holds values that are not finite")
    unknown = sorted(set(tensors) - set(checked))
    if unknown:
        raise ContractError(f"the tensor {unknown[0]!r} belongs to no operator of the plan")
    return checked


def _check_size(plan: NetworkPlan) -> None:
    if len(plan.ops) > MAX_OPS:
        raise ContractError(f"{len(plan.ops)} operators exceed the limit of {MAX_OPS}")
    total = sum(kernel.num_weights for kernel in plan.kernels)
    if total > MAX_TOTAL_WEIGHTS:
        raise ContractError(f"{total} weights exceed the limit of {MAX_TOTAL_WEIGHTS} for a whole network")


def _read_plan(data: bytes) -> NetworkPlan:
    if len(data) < 8:
        raise ContractError(f"{len(data)} bytes are no packed network")
    (header_bytes,) = struct.unpack_from("<Q", data)
    if not 0 < header_bytes <= min(len(data) - 8, _MAX_HEADER_BYTES):
        raise ContractError(f"a header of {header_bytes} bytes does not fit a file of {len(data)} bytes")
    try:
        header = json.loads(data[8 : 8 + header_bytes])
        content = json.loads(header["__metadata__"][_METADATA_KEY])
        version, plan = content["format_version"], content["plan"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ContractError(f"not a packed network: {type(error).__name__}: {error}") from None
    if version != FORMAT_VERSION:
        raise ContractError(f"format version {version!r} is not {FORMAT_VERSION}: upgrade this agent or export again")
    return decode(NetworkPlan, plan, "plan")


def _smallest_row_groups(weight: FloatArray, kernel: KernelSpec) -> _RowGroups:
    """The row groups that take least space, whatever scheme the zeros were made by."""
    sizes = sorted({1, 2, 4, kernel.pruning.block_filters} & set(range(1, weight.shape[0] + 1)))
    return min((_row_groups(weight, size) for size in sizes), key=lambda packed: packed.num_bytes)


def _row_groups(weight: FloatArray, group_size: int) -> _RowGroups:
    rows = weight.reshape(weight.shape[0], -1)
    num_groups = -(-rows.shape[0] // group_size)
    padded = np.zeros((num_groups * group_size, rows.shape[1]), dtype=np.float32)
    padded[: rows.shape[0]] = rows
    grouped = padded.reshape(num_groups, group_size, rows.shape[1])
    group, column = np.nonzero((grouped != 0).any(axis=1))
    return _RowGroups(
        counts=np.bincount(group, minlength=num_groups).astype(np.uint32),
        columns=column.astype(np.uint16 if rows.shape[1] <= 1 << 16 else np.uint32),
        values=np.ascontiguousarray(grouped[group, :, column]),
    )


def _unpack(name: str, kernel: KernelSpec, stored: dict[str, NDArray[Any]]) -> FloatArray:
    parts = {}
    for part, kind, ndim in (("counts", "u", 1), ("columns", "u", 1), ("values", "f", 2)):
        array = stored.pop(f"{name}.weight.{part}", None)
        if array is None:
            raise ContractError(f"{name}.weight.{part} is missing")
        if array.dtype.kind != kind or array.ndim != ndim:
            raise ContractError(f"{name}.weight.{part} has type {array.dtype} and {array.ndim} dimensions")
        parts[part] = array
    counts, columns = parts["counts"].astype(np.int64), parts["columns"].astype(np.int64)
    values = parts["values"]
    num_rows = kernel.weight_shape[0]
    num_columns = kernel.num_weights // num_rows
    group_size = values.shape[1]
    if not 1 <= group_size <= num_rows or len(counts) != -(-num_rows // group_size):
        raise ContractError(f"{name}: {len(counts)} groups of {group_size} rows do not make {num_rows} rows")
    if (counts > num_columns).any() or counts.sum() != len(columns) or len(columns) != len(values):
        raise ContractError(f"{name}: counts, columns and values disagree")
    if len(columns) and columns.max() >= num_columns:
        raise ContractError(f"{name}: column {columns.max()} is not below {num_columns}")
    group = np.repeat(np.arange(len(counts)), counts)
    if (np.diff(group * num_columns + columns) <= 0).any():
        raise ContractError(f"{name}: the columns of a group are not in ascending order")
    rows = np.zeros((len(counts), group_size, num_columns), dtype=np.float32)
    rows[group, :, columns] = values
    dense = rows.reshape(-1, num_columns)
    if dense[num_rows:].any():
        raise ContractError(f"{name}: the rows that fill up the last group are not zero")
    return np.ascontiguousarray(dense[:num_rows]).reshape(kernel.weight_shape)
