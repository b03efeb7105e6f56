"""A file to import, read in a process of its own with limits, unless it is small.

50,000 rows of 500 columns take gigabytes for a while, and a Parquet file is read by C++: neither is for the server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from device_agent.contracts import (
    ContractError,
    DeviceProfile,
    KernelSpec,
    MeasuringSetup,
    Provenance,
    Statistics,
    Verdict,
    VerdictReason,
    decode,
    encode,
)
from search.limited_process import BrokenOff, Limits, answer_request, run_limited
from server.latency.exchange.mapping import ImportMapping
from server.latency.exchange.parsing import ImportedLatency, ParsedFile, RowErrors, parse_file
from server.latency.exchange.tables import TableFormat, format_of

LIMITS = Limits(memory_bytes=4 << 30, timeout_s=120)
#: Up to here a file costs less than a process that reads it. Not so Parquet: what it unpacks to is not bounded by this.
SMALL_BYTES = 256 << 10

#: What many rows have in common, sent once.
_SHARED: dict[str, Any] = {
    "kernel": KernelSpec,
    "provenance": Provenance,
    "profile": DeviceProfile,
    "setup": MeasuringSetup,
}


def parse_stored(path: Path, file_name: str, mapping: ImportMapping | None) -> ParsedFile:
    """`parse_file` of a stored file, which goes by `file_name`; in a child process of bounded memory and time, unless
    it is small.

    Raises `ContractError` or `RowErrors` where any of it cannot be used, or reading it broke off.
    """
    if format_of(file_name) is not TableFormat.PARQUET and path.stat().st_size <= SMALL_BYTES:
        return parse_file(path.read_bytes(), file_name, mapping)
    request = {"path": str(path), "file_name": file_name, "mapping": encode(mapping)}
    try:
        answer = run_limited(__name__, request, path, LIMITS)
    except BrokenOff as error:
        raise ContractError(str(error)) from None
    if "bad_rows" in answer:
        raise RowErrors([(place, message) for place, message in answer["bad_rows"]], answer["count"])
    if "error" in answer:
        raise ContractError(answer["error"])
    return _parsed(answer)


def _parse(request: dict[str, Any]) -> dict[str, Any]:
    mapping = None if request["mapping"] is None else decode(ImportMapping, request["mapping"], "mapping")
    try:
        return _told(parse_file(Path(request["path"]).read_bytes(), request["file_name"], mapping))
    except RowErrors as error:
        return {"bad_rows": error.errors, "count": error.count}
    except ContractError as error:
        return {"error": str(error)}


def _told(parsed: ParsedFile) -> dict[str, Any]:
    shared: dict[str, dict[Any, int]] = {name: {} for name in _SHARED}
    rows = [
        [
            *(known.setdefault(value, len(known)) for known, value in zip(shared.values(), _common(item), strict=True)),
            [item.median_ns, item.ci95_low_ns, item.ci95_high_ns],
            encode(item.statistics),
            item.verdict.value,
            encode(item.reasons),
            item.measured_at_s,
        ]
        for item in parsed.latencies
    ]
    return {
        "shared": {name: [encode(value) for value in known] for name, known in shared.items()},
        "rows": rows,
        "missing": parsed.missing,
    }


def _common(item: ImportedLatency) -> tuple[Any, ...]:
    return item.kernel, item.provenance, item.profile, item.setup


def _parsed(answer: dict[str, Any]) -> ParsedFile:
    kernels, provenances, profiles, setups = (
        [None if value is None else decode(cls, value, name) for value in answer["shared"][name]]
        for name, cls in _SHARED.items()
    )
    latencies = tuple(
        ImportedLatency(
            kernel=kernels[kernel],
            provenance=provenances[provenance],
            profile=profiles[profile],
            setup=setups[setup],
            median_ns=median_ns,
            ci95_low_ns=low_ns,
            ci95_high_ns=high_ns,
            statistics=None if statistics is None else decode(Statistics, statistics, "statistics"),
            verdict=Verdict(verdict),
            reasons=tuple(VerdictReason(reason) for reason in reasons),
            measured_at_s=measured_at_s,
        )
        for kernel, provenance, profile, setup, figures, statistics, verdict, reasons, measured_at_s in answer["rows"]
        for median_ns, low_ns, high_ns in [figures]
    )
    return ParsedFile(latencies=latencies, missing=answer["missing"])


if __name__ == "__main__":
    answer_request(_parse)
