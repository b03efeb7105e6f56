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
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from device_agent.contracts import ContractError, KernelSpec, NetworkPlan, PruningScheme, decode, encode
from device_agent.formats.packed_tensors import PackedTensors
from device_agent.formats.tensor_file import TensorFile
from device_agent.synthesis import block_extent, block_shape, num_kept_blocks

FloatArray = NDArray[np.float32]

FORMAT_VERSION = 1
#: A network with more weights (1 GiB as float32) is refused, so that a small hostile file cannot fill the memory.
MAX_TOTAL_WEIGHTS = 1 << 28
MAX_OPS = 10_000
_METADATA_KEY = "kerf.packed"
_FLOAT_BYTES = 4
_COUNT_BYTES = 4
#: Columns that 16 bits can name.
_MAX_SHORT_COLUMNS = 1 << 16


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


def weight_bytes(kernel: KernelSpec) -> int:
    """Bytes that the weights and biases of `kernel` take in a packed file, from its shape and pruning alone.

    This is what the scheme guarantees: row groups along its blocks of filters, or dense weights where those are
    smaller. `write_packed` may do with less where zeros happen to fall together beyond their scheme, and where the last
    blocks of a layer are smaller than the others; it never needs more.
    """
    if not kernel.op.has_weights:
        return 0
    bias = _FLOAT_BYTES * kernel.out_channels
    dense = _FLOAT_BYTES * kernel.num_weights
    if kernel.pruning.scheme is PruningScheme.DENSE:
        return bias + dense
    index = 2 if kernel.num_weights // kernel.out_channels <= _MAX_SHORT_COLUMNS else 4
    if kernel.pruning.scheme is PruningScheme.BLOCK:
        # Rows go whole within their block, so that up to one more than the density says may stay.
        kept = math.ceil(kernel.num_weights * kernel.pruning.density) + kernel.pruning.block_channels
        return bias + min(dense, _COUNT_BYTES * kernel.out_channels + kept * (index + _FLOAT_BYTES))
    filters, channels = block_extent(kernel.pruning)
    blocks = block_shape(kernel.pruning, kernel.weight_shape)
    entries = kernel.pruning.pattern_entries or 1
    block_columns = num_kept_blocks(kernel.pruning, math.prod(blocks)) * channels * entries
    rows = min(filters, kernel.out_channels)
    sizes = [size for size in _group_sizes(kernel) if filters % size == 0]
    return bias + min(
        dense,
        *(
            _COUNT_BYTES * -(-kernel.out_channels // size)
            + block_columns * -(-rows // size) * (index + _FLOAT_BYTES * size)
            for size in sizes
        ),
    )


def open_packed(source: bytes | Path) -> tuple[NetworkPlan, PackedTensors]:
    """The plan and its tensors, which are read a part at a time when they are used: a file stays open.

    Raises `ContractError` for anything that is not a sound packed file, `OSError` where it cannot be read.
    """
    file = TensorFile(source)
    plan = _plan_of(file)
    _check_size(plan)
    return plan, PackedTensors(plan, file)


def read_packed(data: bytes) -> tuple[NetworkPlan, dict[str, FloatArray]]:
    """The plan and its dense tensors. Raises `ContractError` for anything that is not a sound packed file."""
    plan, tensors = open_packed(data)
    return plan, {name: np.asarray(tensor) for name, tensor in tensors.items()}


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


def _plan_of(file: TensorFile) -> NetworkPlan:
    try:
        content = json.loads(file.metadata[_METADATA_KEY])
        version, plan = content["format_version"], content["plan"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ContractError(f"not a packed network: {type(error).__name__}: {error}") from None
    if version != FORMAT_VERSION:
        raise ContractError(f"format version {version!r} is not {FORMAT_VERSION}: upgrade this agent or export again")
    return decode(NetworkPlan, plan, "plan")


def _smallest_row_groups(weight: FloatArray, kernel: KernelSpec) -> _RowGroups:
    """The row groups that take least space, whatever scheme the zeros were made by."""
    return min((_row_groups(weight, size) for size in _group_sizes(kernel)), key=lambda packed: packed.num_bytes)


def _group_sizes(kernel: KernelSpec) -> list[int]:
    """The sizes of row groups that the weights of `kernel` may be stored in."""
    return sorted({1, 2, 4, kernel.pruning.block_filters} & set(range(1, kernel.out_channels + 1)))


def _row_groups(weight: FloatArray, group_size: int) -> _RowGroups:
    rows = weight.reshape(weight.shape[0], -1)
    num_groups = -(-rows.shape[0] // group_size)
    padded = np.zeros((num_groups * group_size, rows.shape[1]), dtype=np.float32)
    padded[: rows.shape[0]] = rows
    grouped = padded.reshape(num_groups, group_size, rows.shape[1])
    group, column = np.nonzero((grouped != 0).any(axis=1))
    return _RowGroups(
        counts=np.bincount(group, minlength=num_groups).astype(np.uint32),
        columns=column.astype(np.uint16 if rows.shape[1] <= _MAX_SHORT_COLUMNS else np.uint32),
        values=np.ascontiguousarray(grouped[group, :, column]),
    )
