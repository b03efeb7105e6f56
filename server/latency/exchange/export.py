"""Every kernel measurement as a row of a file, with all of its provenance. Written a page at a time."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from device_agent.contracts import KernelSpec, ReportStatus, canonical_json, decode, encode
from server.database import Database
from server.errors import Unprocessable
from server.latency.exchange.mapping import FIELDS, KERNEL_FIELDS, PRUNING_FIELDS
from server.latency.exchange.parsing import CI95_HIGH, CI95_LOW, LATENCY
from server.latency.exchange.tables import TableFormat, as_text
from server.latency.listing import LatencyFilter
from server.models import DeviceRow, KernelRow, MeasurementRow, ProfileRow, SeriesRow, SetupRow
from server.wire import iso

#: Rows read in one transaction.
PAGE_ROWS = 1000

#: Columns of an export, in order. Lists are texts with spaces in between; the last three are JSON.
COLUMNS = (
    *KERNEL_FIELDS,
    *PRUNING_FIELDS,
    LATENCY,
    CI95_LOW,
    CI95_HIGH,
    *FIELDS[len(KERNEL_FIELDS) + len(PRUNING_FIELDS) :],
    "source",
    "device_name",
    "device_id",
    "profile_id",
    "setup_id",
    "series_id",
    "kernel_id",
    "result_key",
    "output_sha256",
    "memory_bytes",
    "profile",
    "setup",
    "statistics",
)
_FLOATS = frozenset({LATENCY, CI95_LOW, CI95_HIGH, "density"})
_INTEGERS = frozenset({*KERNEL_FIELDS, *PRUNING_FIELDS, "threads", "memory_bytes"}) - {
    "op",
    "activation",
    "dtype",
    "scheme",
    "residual",
    "density",
}

MEDIA_TYPES = {
    TableFormat.CSV: "text/csv; charset=utf-8",
    TableFormat.JSON: "application/json",
    TableFormat.PARQUET: "application/vnd.apache.parquet",
}


def exported(
    database: Database, wanted: LatencyFilter, form: TableFormat, page_rows: int = PAGE_ROWS
) -> Iterator[bytes]:
    """The file's bytes. What is measured after the export began is not in it.

    Raises `Unprocessable` for a form that cannot be written here.
    """
    if form is TableFormat.CSV:
        return _as_csv(_pages(database, wanted, page_rows))
    if form is TableFormat.JSON:
        return _as_json(_pages(database, wanted, page_rows))
    if form is TableFormat.PARQUET:
        with suppress(ImportError):
            import pyarrow.parquet  # noqa: F401

            return _as_parquet(_pages(database, wanted, page_rows))
        raise Unprocessable("this server does not write Parquet: install kerf[parquet] there, or export CSV")
    raise Unprocessable(f"format: {form.value} is no form of an export: csv, json and parquet are")


def _pages(database: Database, wanted: LatencyFilter, page_rows: int) -> Iterator[list[dict[str, Any]]]:
    """Rows in the order of measuring, in short transactions, up to the newest one at the beginning."""
    after: str | None = None
    with database.read() as session:
        last = session.scalars(
            select(MeasurementRow.result_key).order_by(MeasurementRow.result_key.desc()).limit(1)
        ).first()
    while last is not None:
        with database.read() as session:
            rows = _page(session, wanted, after, last, page_rows)
        if not rows:
            return
        after = rows[-1]["result_key"]
        yield rows


def _page(
    session: Session, wanted: LatencyFilter, after: str | None, last: str, page_rows: int
) -> list[dict[str, Any]]:
    query = (
        select(MeasurementRow, KernelRow.spec, DeviceRow.name, ProfileRow.profile, SetupRow.setup)
        .join(SeriesRow, SeriesRow.id == MeasurementRow.series_id)
        .join(KernelRow, KernelRow.id == MeasurementRow.kernel_id)
        .join(DeviceRow, DeviceRow.id == MeasurementRow.device_id)
        .join(ProfileRow, ProfileRow.id == MeasurementRow.profile_id)
        .join(SetupRow, SetupRow.id == MeasurementRow.setup_id)
        .where(*wanted.conditions(), MeasurementRow.status == ReportStatus.ACCEPTED, MeasurementRow.result_key <= last)
        .order_by(MeasurementRow.result_key)
        .limit(page_rows)
    )
    if wanted.verdict is not None:
        query = query.where(MeasurementRow.verdict == wanted.verdict)
    if after is not None:
        query = query.where(MeasurementRow.result_key > after)
    return [_row(*row) for row in session.execute(query)]


def _row(row: MeasurementRow, spec: Mapping[str, Any], device_name: str, profile: Any, setup: Any) -> dict[str, Any]:
    kernel = encode(decode(KernelSpec, spec))
    values = {**kernel, **kernel["pruning"]}
    for name in COLUMNS:
        if hasattr(row, name):
            values[name] = getattr(row, name)
    values |= {
        "affinity": " ".join(str(core) for core in row.affinity),
        "reasons": " ".join(row.reasons),
        "measured_at": iso(row.created_at),
        "device_name": device_name,
        "profile": canonical_json(profile),
        "setup": canonical_json(setup),
        "statistics": None if row.statistics is None else canonical_json(row.statistics),
    }
    return {name: encode(values[name]) for name in COLUMNS}


def _as_csv(pages: Iterator[Sequence[Mapping[str, Any]]]) -> Iterator[bytes]:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for rows in pages:
        # repr of a float, which csv uses, gives the same float back.
        writer.writerows([as_text(row[name]) for name in COLUMNS] for row in rows)
        yield buffer.getvalue().encode()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue().encode()


def _as_json(pages: Iterator[Sequence[Mapping[str, Any]]]) -> Iterator[bytes]:
    start = "[\n"
    for rows in pages:
        yield (start + ",\n".join(json.dumps(row) for row in rows)).encode()
        start = ",\n"
    yield b"[]\n" if start == "[\n" else b"\n]\n"


def _as_parquet(pages: Iterator[Sequence[Mapping[str, Any]]]) -> Iterator[bytes]:
    """Each page is a row group; what is written of it is sent before the next one is read."""
    import pyarrow as pa
    from pyarrow import parquet

    def kind(name: str) -> Any:
        if name in _FLOATS:
            return pa.float64()
        if name == "residual":
            return pa.bool_()
        return pa.int64() if name in _INTEGERS else pa.string()

    schema = pa.schema([(name, kind(name)) for name in COLUMNS])
    # Writing a Parquet file never goes back, so that what is in the buffer can be sent and forgotten.
    sink = _Sequential()
    with parquet.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression="zstd") as writer:
        for rows in pages:
            writer.write_table(pa.Table.from_pylist(list(rows), schema=schema))
            yield sink.taken()
    yield sink.taken()


class _Sequential(io.RawIOBase):
    """A file that is only ever written on; `taken` hands over what came since the last time."""

    def __init__(self) -> None:
        super().__init__()
        self._buffer = io.BytesIO()
        self._sent = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._buffer.write(data)

    def tell(self) -> int:
        return self._sent + self._buffer.tell()

    def flush(self) -> None:
        """Nothing is held back."""

    def taken(self) -> bytes:
        data = self._buffer.getvalue()
        self._sent += len(data)
        self._buffer.seek(0)
        self._buffer.truncate()
        return data
