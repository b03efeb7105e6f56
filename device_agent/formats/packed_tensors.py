"""The tensors of a packed network, made dense a few output channels at a time, when they are asked for."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from device_agent.contracts import ContractError, KernelSpec, NetworkPlan
from device_agent.formats.tensor_file import TensorFile

FloatArray = NDArray[np.float32]

#: Elements that are checked at a time.
_SLICE_ELEMENTS = 1 << 18
_GROUP_PARTS = ("counts", "columns", "values")


class PlainTensor:
    """A tensor that is stored as it is."""

    def __init__(self, file: TensorFile, name: str) -> None:
        self._read = functools.partial(file.read, name)
        self.dtype = file.entries[name].dtype
        self.shape = file.entries[name].shape

    def __getitem__(self, channels: slice) -> FloatArray:
        """Some consecutive output channels, float32."""
        first, last, _ = channels.indices(self.shape[0])
        with np.errstate(over="ignore"):
            return self._read(first, max(first, last)).astype(np.float32, copy=False)

    def is_finite(self) -> bool:
        """Whether all values are."""
        step = max(1, _SLICE_ELEMENTS * self.shape[0] // max(1, math.prod(self.shape)))
        return all(np.isfinite(self[first : first + step]).all() for first in range(0, self.shape[0], step))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self[:], dtype=dtype)


class GroupedTensor:
    """Weights that are stored as row groups: see packed.py."""

    dtype = np.dtype(np.float32)

    def __init__(self, file: TensorFile, name: str, kernel: KernelSpec) -> None:
        """Raises `ContractError` where the parts do not make the weights of `kernel`."""
        for part, kind, ndim in zip(_GROUP_PARTS, "uuf", (1, 1, 2), strict=True):
            entry = file.entries.get(f"{name}.{part}")
            if entry is None:
                raise ContractError(f"{name}.{part} is missing")
            if entry.dtype.kind != kind or len(entry.shape) != ndim:
                raise ContractError(f"{name}.{part} has type {entry.dtype} and {len(entry.shape)} dimensions")
        self.shape = kernel.weight_shape
        self._columns = functools.partial(file.read, f"{name}.columns")
        self._values = functools.partial(file.read, f"{name}.values")
        num_entries, self._group_size = file.entries[f"{name}.values"].shape
        num_rows = self.shape[0]
        self._num_columns = kernel.num_weights // num_rows
        counts = file.read(f"{name}.counts").astype(np.int64)
        if not 1 <= self._group_size <= num_rows or len(counts) != -(-num_rows // self._group_size):
            raise ContractError(f"{name}: {len(counts)} groups of {self._group_size} rows do not make {num_rows} rows")
        if (counts > self._num_columns).any() or not (
            counts.sum() == num_entries == file.entries[f"{name}.columns"].shape[0]
        ):
            raise ContractError(f"{name}: counts, columns and values disagree")
        self._starts = np.concatenate(([0], np.cumsum(counts)))
        self._check(name)

    def _check(self, name: str) -> None:
        columns = self._columns()
        if len(columns) and columns.max() >= self._num_columns:
            raise ContractError(f"{name}: column {columns.max()} is not below {self._num_columns}")
        falls = columns[1:] <= columns[:-1]
        falls[self._starts[(self._starts > 0) & (self._starts < len(columns))] - 1] = False
        if falls.any():
            raise ContractError(f"{name}: the columns of a group are not in ascending order")
        filling = len(self._starts[1:]) * self._group_size - self.shape[0]
        if filling and self._values(int(self._starts[-2]))[:, -filling:].any():
            raise ContractError(f"{name}: the rows that fill up the last group are not zero")

    def is_finite(self) -> bool:
        """Whether all values are."""
        with np.errstate(over="ignore"):
            return bool(np.isfinite(self._values().astype(np.float32, copy=False)).all())

    def __getitem__(self, channels: slice) -> FloatArray:
        """Some consecutive output channels, dense."""
        first, last, _ = channels.indices(self.shape[0])
        size, num_columns = self._group_size, self._num_columns
        first_group, end_group = first // size, max(first // size, -(-last // size))
        starts = self._starts[first_group : end_group + 1]
        entries = int(starts[0]), int(starts[-1])
        values = self._values(*entries)
        rows = np.zeros((end_group - first_group) * size * num_columns, dtype=np.float32)
        place = np.repeat(np.arange(len(starts) - 1) * size * num_columns, np.diff(starts)) + self._columns(*entries)
        for member in range(size):
            rows[place + member * num_columns] = values[:, member]
        offset = first_group * size
        return rows.reshape(-1, *self.shape[1:])[first - offset : max(first, last) - offset]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self[:], dtype=dtype)


class PackedTensors(Mapping[str, PlainTensor | GroupedTensor]):
    """`<op>.weight` and `<op>.bias` of the operators of `plan`: what can be sliced by output channels, and is an array
    where numpy is given it. All were checked, and a file is read again each time.
    """

    def __init__(self, plan: NetworkPlan, file: TensorFile) -> None:
        """Raises `ContractError` where the file's tensors are not those of `plan`."""
        self.plan = plan
        self._tensors: dict[str, PlainTensor | GroupedTensor] = {}
        unknown = set(file.entries)
        for op in plan.ops:
            if not op.kernel.op.has_weights:
                continue
            for name, shape in ((f"{op.name}.weight", op.kernel.weight_shape), (f"{op.name}.bias", None)):
                parts = {f"{name}.{part}" for part in _GROUP_PARTS} if shape is not None else set()
                if name in unknown and parts & unknown:
                    raise ContractError(f"{name} is stored twice, plain and packed")
                if parts & unknown:
                    self._tensors[name] = GroupedTensor(file, name, op.kernel)
                elif name in unknown:
                    self._tensors[name] = PlainTensor(file, name)
                unknown -= {name, *parts}
                self._check(name, shape or (op.kernel.out_channels,))
        if unknown:
            raise ContractError(f"the tensor {min(unknown)!r} belongs to no operator of the plan")

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ContractError(f"the tensor {name!r} of shape {shape} is missing")
        if tensor.dtype.kind != "f":
            raise ContractError(f"{name} has type {tensor.dtype}: weights are float32")
        if tensor.shape != shape:
            raise ContractError(f"{name} has shape {tensor.shape}, but the plan says {shape}")
        if not tensor.is_finite():
            raise ContractError(f"{name} holds values that are not finite")

    def __getitem__(self, name: str) -> PlainTensor | GroupedTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
