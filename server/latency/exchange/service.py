"""Importing a file: one transaction, all of it or nothing, and nothing new the second time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from device_agent.contracts import (
    ContractError,
    DeviceProfile,
    MeasuringSetup,
    Provenance,
    ReportStatus,
    RuntimeInfo,
    Verdict,
    content_id,
    encode,
    kernel_id,
    profile_id,
)
from server.artifacts.store import ArtifactStore, check_digest
from server.artifacts.visibility import is_visible
from server.columns import now_s
from server.database import Database
from server.errors import Conflict, NotFound, PayloadTooLarge, Unprocessable
from server.ids import new_id, uuid7
from server.latency.exchange.mapping import ImportMapping
from server.latency.exchange.parse_process import parse_stored
from server.latency.exchange.parsing import ImportedLatency, ParsedFile, RowErrors
from server.latency.exchange.tables import MAX_FILE_BYTES, TableFormat, format_of
from server.latency.repository import (
    Latest,
    count_measurements,
    ensure_kernels,
    ensure_profile,
    provenance_values,
    roll_up,
)
from server.latency.series import SeriesKey, ensure_series, series_id, series_key
from server.models import DeviceRow, ImportRow, MeasurementRow, SetupRow
from server.upsert import insert_missing

#: Why no task goes to the runtimes of such a device.
_NO_AGENT = "imported figures: no agent runs it"
#: Identities in one IN list: below SQLite's limit of parameters.
_BATCH = 5000
MAX_NAME_CHARS = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyImport:
    """A file to import, uploaded as an artifact before. The end of `file_name` tells its form: .csv, .json, .parquet
    or .npy. `mapping` is None for a file that GET /v1/latency:export wrote.
    """

    device: str
    file_name: str
    file_sha256: str
    mapping: ImportMapping | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.device.strip()) <= MAX_NAME_CHARS:
            raise ContractError(f"device: {len(self.device)} characters are not 1 to {MAX_NAME_CHARS}")
        if not 1 <= len(self.file_name) <= 200:
            raise ContractError(f"file_name: {len(self.file_name)} characters are not 1 to 200")
        if self.mapping is None and format_of(self.file_name) is TableFormat.NPY:
            raise ContractError("mapping: an array tells nothing of its axes, so that it needs a mapping")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportAnswer:
    """What an import did. `added` is 0 where all was there before; `missing` rows say that nothing was measured."""

    import_id: str
    device_id: str
    rows: int
    added: int
    already_there: int
    missing: int
    series_ids: tuple[str, ...]


def import_file(
    database: Database, store: ArtifactStore, request: LatencyImport, *, created_by: str, owner: str | None
) -> ImportAnswer:
    """Read the uploaded file and store its figures on an imported device, which is made where it is not there.

    `owner` reads only the files that he may see: what is wrong with a row tells what is in it.

    Raises `NotFound` without the file, `Conflict` where the device has an agent, `PayloadTooLarge`, and
    `Unprocessable`, which names every bad row.
    """
    check_digest(request.file_sha256)
    with database.read() as session:
        is_known = is_visible(session, request.file_sha256, owner)
    path = store.path(request.file_sha256) if is_known else None
    if path is None or not path.is_file():
        raise NotFound(f"no file {request.file_sha256} is stored: upload it to /v1/artifacts/sha256/… first")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise PayloadTooLarge(f"the file has {path.stat().st_size} bytes, more than {MAX_FILE_BYTES}: split it")
    try:
        parsed = parse_stored(path, request.file_name, request.mapping)
    except RowErrors as error:
        fields = [{"field": place, "message": message} for place, message in error.errors]
        raise Unprocessable(str(error), code="bad_rows", errors=fields) from None
    except ContractError as error:
        raise Unprocessable(f"{request.file_name}: {error}") from None
    if not parsed.latencies:
        raise Unprocessable(f"{request.file_name}: all {parsed.missing} rows say that nothing was measured")
    with database.write() as session:
        return store_import(session, request, parsed, created_by=created_by)


def store_import(session: Session, request: LatencyImport, parsed: ParsedFile, *, created_by: str) -> ImportAnswer:
    """Write the figures that are not there yet, in the caller's transaction."""
    items = parsed.latencies
    device_id = _device(session, request.device.strip(), items)
    keys = _Keys(device_id)
    setups = {keys.of(item)[0].setup_id: encode(_setup(item)) for item in items}
    insert_missing(session, SetupRow, [{"id": identity, "setup": setup} for identity, setup in setups.items()])
    kernels = {item.kernel: kernel_id(item.kernel) for item in items}
    ensure_kernels(session, kernels)
    ensure_series(session, {keys.of(item)[1]: keys.of(item)[0] for item in items}.values())
    import_id = content_id(
        "import", {"device": device_id, "file": request.file_sha256, "mapping": encode(request.mapping)}
    )
    record = {
        "id": import_id,
        "device_id": device_id,
        "file_name": request.file_name,
        "file_sha256": request.file_sha256,
        "mapping": encode(request.mapping),
        "num_rows": len(items),
        "created_by": created_by,
    }
    insert_missing(session, ImportRow, [record])
    fresh: dict[str, _Figure] = {}
    for item in items:
        key, series = keys.of(item)
        figure = _Figure(item=item, key=key, series_id=series, kernel_id=kernels[item.kernel])
        fresh.setdefault(_import_key(figure, measured_at_s=item.measured_at_s), figure)
    # A file of ours says when a figure came in where the first file did not tell when it was measured.
    untimed = {key: _import_key(figure, measured_at_s=None) for key, figure in fresh.items()}
    known = _known(session, [*fresh, *untimed.values()])
    fresh = {key: figure for key, figure in fresh.items() if known.isdisjoint({key, untimed[key]})}
    _insert(session, fresh, import_id)
    return ImportAnswer(
        import_id=import_id,
        device_id=device_id,
        rows=len(items) + parsed.missing,
        added=len(fresh),
        already_there=len(items) - len(fresh),
        missing=parsed.missing,
        series_ids=tuple(sorted({keys.of(item)[1] for item in items})),
    )


def _device(session: Session, name: str, items: Sequence[ImportedLatency]) -> str:
    """The imported device of this name, made or brought up to date. Its row is locked: imports to it queue up."""
    for profile in {item.profile: None for item in items}:
        ensure_profile(session, profile)
    row = session.scalars(select(DeviceRow).where(DeviceRow.name == name).with_for_update()).one_or_none()
    newest: DeviceProfile = items[-1].profile
    runtimes = {data["name"]: data for data in (row.runtimes if row else [])}
    for told in {item.provenance: None for item in items}:
        info = RuntimeInfo(
            name=told.runtime,
            version=told.runtime_version,
            binary_sha256=told.runtime_sha256,
            isa=told.isa,
            unavailable=_NO_AGENT,
        )
        runtimes[told.runtime] = encode(info)
    values: dict[str, Any] = {
        "profile_id": profile_id(newest),
        "profile": encode(newest),
        "runtimes": list(runtimes.values()),
        "last_seen_at": now_s(),
    }
    if row is None:
        device_id = new_id("device")
        session.execute(insert(DeviceRow).values(id=device_id, name=name, agent_version="", **values))
        return device_id
    if row.agent_key_hash is not None:
        raise Conflict(
            f"device {name!r} has an agent, and imported figures never join measured ones: choose another name"
        )
    session.execute(
        update(DeviceRow).where(DeviceRow.id == row.id).values(values).execution_options(synchronize_session=False)
    )
    return row.id


def _setup(item: ImportedLatency) -> MeasuringSetup | dict[str, Any]:
    """How the figure was measured; where the file does not tell, that it does not, which equals no setup of ours."""
    if item.setup is not None:
        return item.setup
    return {"imported": True, "runtime": item.provenance.runtime, "threads": item.provenance.threads}


class _Keys:
    """Series of the rows of one import. A file has few, and thousands of rows of each."""

    def __init__(self, device_id: str) -> None:
        self._device_id = device_id
        self._known: dict[tuple[DeviceProfile, MeasuringSetup | None, Provenance], tuple[SeriesKey, str]] = {}

    def of(self, item: ImportedLatency) -> tuple[SeriesKey, str]:
        """The key and its identity."""
        facts = (item.profile, item.setup, item.provenance)
        if facts not in self._known:
            key = series_key(
                device_id=self._device_id,
                profile_id=profile_id(item.profile),
                setup_id=content_id("m", _setup(item)),
                provenance=item.provenance,
            )
            self._known[facts] = (key, series_id(key))
        return self._known[facts]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figure:
    """A row with its identities."""

    item: ImportedLatency
    key: SeriesKey
    series_id: str
    kernel_id: str


def _import_key(figure: _Figure, *, measured_at_s: float | None) -> str:
    """The identity of a figure: all that the file tells of it, and that it was measured then (None: untold)."""
    item = figure.item
    return content_id(
        "i",
        {
            "series": figure.series_id,
            "kernel": figure.kernel_id,
            "mode": item.provenance.mode,
            "figures": [item.median_ns, item.ci95_low_ns, item.ci95_high_ns],
            "verdict": [item.verdict.value, *encode(item.reasons)],
            "measured_at_s": measured_at_s,
        },
    )


def _known(session: Session, keys: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for start in range(0, len(keys), _BATCH):
        part = keys[start : start + _BATCH]
        found.update(session.scalars(select(MeasurementRow.import_key).where(MeasurementRow.import_key.in_(part))))
    return found


def _insert(session: Session, fresh: dict[str, _Figure], import_id: str) -> None:
    rows = []
    counts: Counter[str] = Counter()
    latest: dict[tuple[str, str, str], Latest] = {}
    for import_key, figure in fresh.items():
        result_key = str(uuid7())
        item, series, kernel, mode = figure.item, figure.series_id, figure.kernel_id, figure.item.provenance.mode
        counts[series] += 1
        rows.append(
            {
                "result_key": result_key,
                "series_id": series,
                "import_id": import_id,
                "import_key": import_key,
                "status": ReportStatus.ACCEPTED,
                **provenance_values(figure.key, mode),
                "kernel_id": kernel,
                "verdict": item.verdict,
                "reasons": encode(item.reasons),
                "median_ns": item.median_ns,
                "ci95_low_ns": item.ci95_low_ns,
                "ci95_high_ns": item.ci95_high_ns,
                "statistics": None if item.statistics is None else encode(item.statistics),
                "before": {},
                "after": {},
                "duration_s": 0.0,
            }
            | ({} if item.measured_at_s is None else {"created_at": item.measured_at_s})
        )
        if item.verdict is not Verdict.REJECTED:
            entry = Latest(
                result_key=result_key,
                verdict=item.verdict,
                median_ns=item.median_ns,
                ci95_low_ns=item.ci95_low_ns,
                ci95_high_ns=item.ci95_high_ns,
            )
            place = (series, kernel, mode)
            latest[place] = latest[place].followed_by(entry) if place in latest else entry
    for group in ([r for r in rows if "created_at" in r], [r for r in rows if "created_at" not in r]):
        if group:
            session.execute(insert(MeasurementRow.__table__), group)  # type: ignore[arg-type]
    count_measurements(session, counts)
    roll_up(session, latest)
