"""Rows of a file to kernels, provenance and figures. Everything that does not fit is named with its place."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from device_agent.contracts import (
    ContractError,
    DeviceProfile,
    KernelSpec,
    MeasuringSetup,
    Provenance,
    Source,
    Statistics,
    Verdict,
    VerdictReason,
    decode,
    kernel_id,
)
from server.latency.exchange.mapping import FIELDS, KERNEL_FIELDS, PRUNING_FIELDS, ImportMapping
from server.latency.exchange.tables import (
    MAX_ROWS,
    TableFormat,
    TableRow,
    array_rows,
    format_of,
    from_text,
    read_array,
    read_rows,
)

#: As many bad cells are named; more of them say nothing new.
MAX_ERRORS = 50

#: The names under which rows carry the figure and its interval.
LATENCY = "median_ns"
CI95_LOW = "ci95_low_ns"
CI95_HIGH = "ci95_high_ns"

_INTEGERS = frozenset(
    {
        "in_channels",
        "out_channels",
        "input_h",
        "input_w",
        "kernel_h",
        "kernel_w",
        "stride",
        "padding",
        "pad_channels_before",
        "groups",
        "seed",
        "block_filters",
        "block_channels",
        "pattern_entries",
        "threads",
    }
)
#: What stands in a cell for "unknown" or "default".
_EMPTY = (None, "")
_MAX_TEXT = 64


class RowErrors(Exception):
    """Cells that cannot be used: (place, what is wrong) of the first `MAX_ERRORS`, and how many there are."""

    def __init__(self, errors: Sequence[tuple[str, str]], count: int) -> None:
        first = "; ".join(f"{place}: {message}" for place, message in errors[:3])
        super().__init__(f"{count} rows cannot be used, and nothing was imported. {first}")
        self.errors = tuple(errors)
        self.count = count


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedLatency:
    """One figure of a file. `setup` is None where nothing tells how it was measured."""

    kernel: KernelSpec
    provenance: Provenance
    profile: DeviceProfile
    setup: MeasuringSetup | None
    median_ns: float
    ci95_low_ns: float | None
    ci95_high_ns: float | None
    statistics: Statistics | None
    verdict: Verdict
    reasons: tuple[VerdictReason, ...]
    measured_at_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedFile:
    """`missing` counts the rows that say "not measured"."""

    latencies: tuple[ImportedLatency, ...]
    missing: int


def parse_file(data: bytes, file_name: str, mapping: ImportMapping | None) -> ParsedFile:
    """The figures of a file. Raises `ContractError` or `RowErrors` where any of it cannot be used."""
    form = format_of(file_name)
    if form is TableFormat.NPY:
        if mapping is None or not mapping.axes:
            raise ContractError("mapping.axes: an array needs axes, which tell what its cells are")
        rows = array_rows(read_array(data), mapping, LATENCY)
    elif mapping is not None and mapping.axes:
        raise ContractError(f"mapping.axes: a {form.value} file is a table: name its columns instead")
    else:
        rows = read_rows(data, form)
        if mapping is None and form is TableFormat.CSV:
            rows = [TableRow(row.position, {k: from_text(v) for k, v in row.values.items()}) for row in rows]
    if len(rows) > MAX_ROWS:
        raise ContractError(f"{len(rows)} cells stand for kernels, more than {MAX_ROWS}: split the array")
    return parse_rows(rows, mapping)


def parse_rows(rows: Sequence[TableRow], mapping: ImportMapping | None) -> ParsedFile:
    """All rows, by `mapping`, or as an export wrote them where it is None.

    Raises `RowErrors` where any cannot be used: a file is imported as a whole or not at all.
    """
    names = frozenset(rows[0].values) if rows else frozenset()
    if mapping is None:
        _require_columns(names, {LATENCY, "op", "runtime", "profile"}, "give a mapping file for what is no export")
    elif mapping.latency is not None:
        wanted = {*mapping.columns.values(), mapping.latency, mapping.ci95_low, mapping.ci95_high} - {None}
        _require_columns(names, {str(name) for name in wanted}, "correct the mapping")
    latencies: list[ImportedLatency] = []
    errors: list[tuple[str, str]] = []
    missing = num_errors = 0
    for row in rows:
        try:
            values = dict(row.values) if mapping is None else _mapped(row.values, mapping)
            if _is_missing(values[LATENCY], mapping):
                missing += 1
            else:
                latencies.append(_latency(values, mapping))
        except ContractError as error:
            num_errors += 1
            if len(errors) < MAX_ERRORS:
                errors.append((row.position, str(error)))
    if errors:
        raise RowErrors(errors, num_errors)
    if mapping is None:
        _require_one_device(rows)
    return ParsedFile(latencies=tuple(latencies), missing=missing)


def _require_columns(names: frozenset[str], wanted: set[str], remedy: str) -> None:
    absent = sorted(wanted - names)
    if absent:
        raise ContractError(f"the file has no column {absent[0]!r}; it has {', '.join(sorted(names)[:30])}: {remedy}")


def _require_one_device(rows: Sequence[TableRow]) -> None:
    """Figures of several devices would become those of one."""
    devices = sorted({str(row.values.get("device_id")) for row in rows})
    if len(devices) > 1:
        raise ContractError(
            f"the file has rows of {len(devices)} devices ({', '.join(devices[:3])}): export each device on its own"
        )


def _mapped(values: Mapping[str, Any], mapping: ImportMapping) -> dict[str, Any]:
    """The row under the names of fields, latencies in ns."""
    if mapping.axes:
        found = {**mapping.constants, **values}
    else:
        found = {**mapping.constants, **{name: values[column] for name, column in mapping.columns.items()}}
        ends = ((LATENCY, mapping.latency), (CI95_LOW, mapping.ci95_low), (CI95_HIGH, mapping.ci95_high))
        found |= {name: values[column] for name, column in ends if column is not None}
    for name in (LATENCY, CI95_LOW, CI95_HIGH):
        number = _number(found, name)
        found[name] = None if number is None else number * mapping.unit.in_ns
    return found


def _is_missing(latency_ns: Any, mapping: ImportMapping | None) -> bool:
    if latency_ns in _EMPTY:
        return True
    return mapping is not None and latency_ns in {value * mapping.unit.in_ns for value in mapping.missing}


def _latency(values: Mapping[str, Any], mapping: ImportMapping | None) -> ImportedLatency:
    median_ns = _number(values, LATENCY)
    if median_ns is None or not median_ns > 0:
        raise ContractError(f"the latency {values[LATENCY]!r} is not positive: list it in `missing` if it means none")
    low, high = _number(values, CI95_LOW), _number(values, CI95_HIGH)
    if (low is None) is not (high is None) or (low is not None and high is not None and not low <= median_ns <= high):
        raise ContractError(f"the interval {low!r} to {high!r} ns does not enclose the latency {median_ns!r} ns")
    fields = {name: converted(name, values[name]) for name in FIELDS if values.get(name) not in _EMPTY}
    kernel = _kernel(fields)
    told = values.get("kernel_id")
    if told not in _EMPTY and told != kernel_id(kernel):
        raise ContractError(
            f"kernel_id: {told} is not that of the row's kernel, {kernel_id(kernel)}: a cell was changed"
        )
    provenance = decode(Provenance, _provenance(fields), "provenance")
    verdict, reasons = fields.get("verdict", Verdict.NOISY.value), fields.get("reasons")
    if reasons is None:
        reasons = [] if "verdict" in fields else [VerdictReason.NOT_VERIFIED.value]
    return ImportedLatency(
        kernel=kernel,
        provenance=provenance,
        profile=_profile(values) if mapping is None else mapping.device.profile(),
        setup=_setup(values),
        median_ns=median_ns,
        ci95_low_ns=low,
        ci95_high_ns=high,
        statistics=None if not values.get("statistics") else decode(Statistics, _json(values, "statistics")),
        verdict=decode(Verdict, verdict, "verdict"),
        reasons=decode(tuple[VerdictReason, ...], reasons, "reasons"),
        measured_at_s=_time(fields.get("measured_at")),
    )


def _kernel(fields: Mapping[str, Any]) -> KernelSpec:
    kernel = {name: fields[name] for name in KERNEL_FIELDS if name in fields}
    pruning = {name: fields[name] for name in PRUNING_FIELDS if name in fields}
    return decode(KernelSpec, {**kernel, "pruning": pruning}, "kernel")


def _provenance(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "source": Source.IMPORTED.value,
        "runtime": fields["runtime"],
        "runtime_version": fields.get("runtime_version", ""),
        "runtime_sha256": fields.get("runtime_sha256", ""),
        "isa": fields.get("isa", ""),
        "threads": fields.get("threads", 1),
        "agent_version": fields.get("agent_version", ""),
        "affinity": fields.get("affinity", []),
        "governor": fields.get("governor"),
        "mode": fields.get("mode", "dense"),
    }


def _profile(values: Mapping[str, Any]) -> DeviceProfile:
    """The hardware of an exported row, marked as imported. What was never measured must not lose that mark."""
    source = values.get("source")
    if source not in (Source.MEASURED.value, Source.IMPORTED.value):
        raise ContractError(f"source: {source!r} figures are not imported, as they would no longer say what they are")
    profile = _json(values, "profile")
    if not isinstance(profile, dict):
        raise ContractError("profile: expected the device's profile as JSON, as an export writes it")
    return decode(DeviceProfile, {**profile, "imported": True}, "profile")


def _setup(values: Mapping[str, Any]) -> MeasuringSetup | None:
    """The setup of an exported row; what was imported before without one still has none."""
    data = _json(values, "setup")
    return None if data is None or "imported" in data else decode(MeasuringSetup, data, "setup")


def converted(name: str, value: Any) -> Any:
    """The value of field `name` as its contract type has it: from text, or from a number of another type.

    Raises `ContractError` naming the field.
    """
    if name in _INTEGERS:
        return _integer(name, value)
    if name == "density":
        return _float(name, value)
    if name == "residual":
        known = {"true": True, "1": True, "false": False, "0": False}
        text = str(value).lower()
        if text not in known:
            raise ContractError(f"{name}: {value!r} is neither true nor false")
        return known[text]
    if name in ("affinity", "reasons"):
        # A list, or a text with spaces in between, as an export writes it.
        items = value.split() if isinstance(value, str) else [value] if isinstance(value, int) else list(value)
        return [_integer(name, item) for item in items] if name == "affinity" else items
    text = str(value)
    if len(text) > _MAX_TEXT or "\0" in text:
        raise ContractError(f"{name}: the text has {len(text)} characters, more than {_MAX_TEXT}, or a NUL in it")
    return text


def _integer(name: str, value: Any) -> int:
    number = _float(name, value)
    # A scale such as 3/8 times 64 channels is exact in binary; others may miss by rounding.
    if abs(number - round(number)) > 1e-9 * max(1.0, abs(number)):
        raise ContractError(f"{name}: {value!r} is no whole number")
    return round(number)


def _float(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ContractError(f"{name}: {value!r} is no number")
    return number


def _number(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    return None if value in _EMPTY else _float(name, value)


def _json(values: Mapping[str, Any], name: str) -> Any:
    """A cell of JSON text, or JSON data where the file has such."""
    value = values.get(name)
    if value in _EMPTY or not isinstance(value, str):
        return value or None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ContractError(f"{name}: {value[:60]!r} is no JSON") from None


def _time(value: Any) -> float | None:
    """Seconds since 1970 of an RFC 3339 time."""
    if value is None:
        return None
    try:
        time = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    except ValueError:
        raise ContractError(f"measured_at: {value!r} is no time such as 2026-01-31T12:00:00Z") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
