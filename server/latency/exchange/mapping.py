"""What the columns of a table, or the axes of an array, mean: the mapping file of an import.

The same closed list of field names is used for columns, constants and axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from device_agent.contracts import ContractError, DeviceProfile

#: Fields of the kernel (`KernelSpec`, and its `WeightPruning` flat beside it).
KERNEL_FIELDS = (
    "op",
    "in_channels",
    "out_channels",
    "input_h",
    "input_w",
    "kernel_h",
    "kernel_w",
    "stride",
    "padding",
    "residual",
    "activation",
    "dtype",
    "pad_channels_before",
    "groups",
    "seed",
)
PRUNING_FIELDS = ("scheme", "density", "block_filters", "block_channels", "pattern_entries")
#: What ran the kernel: the part of `Provenance` that a file can tell.
PROVENANCE_FIELDS = (
    "runtime",
    "runtime_version",
    "runtime_sha256",
    "isa",
    "threads",
    "affinity",
    "governor",
    "mode",
    "agent_version",
)
#: What is known of a figure beside itself.
RESULT_FIELDS = ("verdict", "reasons", "measured_at")
#: Written by an export and checked or restored by an import; not for mapping files.
EXPORT_FIELDS = ("profile", "setup", "statistics", "kernel_id", "source", "device_id")

FIELDS = (*KERNEL_FIELDS, *PRUNING_FIELDS, *PROVENANCE_FIELDS, *RESULT_FIELDS)
_REQUIRED = ("op", "in_channels", "out_channels", "runtime", "runtime_version", "threads")


class Unit(StrEnum):
    """The unit of a file's latencies."""

    NS = "ns"
    US = "us"
    MS = "ms"
    S = "s"

    @property
    def in_ns(self) -> float:
        return {Unit.NS: 1.0, Unit.US: 1e3, Unit.MS: 1e6, Unit.S: 1e9}[self]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of an array: what its index means. Exactly one of `records`, `field` and `scale` is given.

    Attributes:
        name: By which errors and `only` name it.
        records: For each index the fields that it stands for.
        field: The field that `values` are of, one value for each index.
        scale: The field that is the record's value times `values`; None leaves the index out.
        values: See `field` and `scale`.
    """

    name: str
    records: tuple[Mapping[str, Any], ...] = ()
    field: str | None = None
    scale: str | None = None
    values: tuple[str | float | int | None, ...] = ()

    def __post_init__(self) -> None:
        if sum((bool(self.records), self.field is not None, self.scale is not None)) != 1:
            raise ContractError(f"axis {self.name!r} needs exactly one of records, field and scale")
        if bool(self.values) is bool(self.records):
            raise ContractError(f"axis {self.name!r}: `values` go with `field` or `scale`, and are not empty there")
        for record in self.records:
            _check_fields((name for name in record if name != "only"), f"axis {self.name!r}")
        _check_fields((name for name in (self.field, self.scale) if name is not None), f"axis {self.name!r}")

    def __len__(self) -> int:
        return len(self.records or self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedDevice:
    """What is known of the device that the figures are of. What is not known stays empty."""

    cpu_model: str
    machine: str = ""
    system: str = ""
    os_build: str = ""
    isa_features: tuple[str, ...] = ()
    memory_bytes: int = 0

    def profile(self) -> DeviceProfile:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return DeviceProfile(**values, clusters=(), imported=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportMapping:
    """How to read one file.

    Attributes:
        unit: Of the latencies and their intervals.
        device: The device that they are of.
        latency: The column with the latency; not for arrays, whose cells are latencies.
        ci95_low: The column with the lower end of the 95 % confidence interval of the median.
        ci95_high: The same of the upper end.
        columns: For each field the column that has it.
        constants: For each field the value that it has everywhere.
        axes: The axes of an array, in its order.
        missing: Latencies that stand for "not measured", such as 0. So does an empty cell.
        note: Where the file comes from, for readers.
    """

    unit: Unit
    device: ImportedDevice
    latency: str | None = None
    ci95_low: str | None = None
    ci95_high: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    axes: tuple[Axis, ...] = ()
    missing: tuple[float, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if (self.latency is None) is (not self.axes):
            raise ContractError("a mapping has either `latency`, the column of a table, or `axes`, those of an array")
        if self.axes and (self.columns or self.ci95_low or self.ci95_high):
            raise ContractError("an array has no columns: leave columns, ci95_low and ci95_high out")
        if (self.ci95_low is None) is not (self.ci95_high is None):
            raise ContractError("an interval has two ends: give both ci95_low and ci95_high, or neither")
        _check_fields(self.columns, "columns")
        _check_fields(self.constants, "constants")
        both = sorted(set(self.columns) & set(self.constants))
        if both:
            raise ContractError(f"{both[0]!r} is a column and a constant: leave one out")
        given = {*self.columns, *self.constants}
        for axis in self.axes:
            given |= {name for record in axis.records for name in record}
            given |= {name for name in (axis.field, axis.scale) if name is not None}
        missing = [name for name in _REQUIRED if name not in given]
        if missing:
            raise ContractError(
                f"nothing says {missing[0]!r}: name its column, or give it as a constant ({', '.join(_REQUIRED)} are "
                "needed)"
            )
        if len({axis.name for axis in self.axes}) < len(self.axes):
            raise ContractError("two axes have one name")


def _check_fields(names: Any, where: str) -> None:
    for name in names:
        if name not in FIELDS:
            raise ContractError(f"{where}: there is no field {name!r}; known are {', '.join(FIELDS)}")
