"""Series: which measurements may stand beside each other in one table, one model or one comparison.

The key of a series is everything that decides about a figure and stays the same over many of them. Two measurements
that differ in any part of it are of different series, and nothing joins those silently. A kernel's `mode` (whether its
zeros are exploited) is told with each figure of a series: it follows from the kernel and the runtime.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from sqlalchemy import select
from sqlalchemy.orm import Session

from device_agent.contracts import Provenance, Source, content_id
from server.errors import NotFound
from server.models import SeriesRow
from server.upsert import insert_missing


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesKey:
    """What a series is known by."""

    device_id: str
    profile_id: str
    setup_id: str
    runtime: str
    runtime_version: str
    runtime_sha256: str
    isa: str
    threads: int
    affinity: tuple[int, ...]
    governor: str | None
    agent_version: str
    source: Source


#: How parts of the key are called where two series are compared.
_PART_WORDS = {
    "device_id": "device",
    "profile_id": "device profile",
    "setup_id": "measuring setup",
    "runtime": "runtime",
    "runtime_version": "runtime version",
    "runtime_sha256": "runtime binary",
    "isa": "instruction set",
    "threads": "threads",
    "affinity": "affinity",
    "governor": "governor",
    "agent_version": "agent version",
    "source": "source",
}


def series_key(*, device_id: str, profile_id: str, setup_id: str, provenance: Provenance) -> SeriesKey:
    """The key of a measurement."""
    return SeriesKey(
        device_id=device_id,
        profile_id=profile_id,
        setup_id=setup_id,
        runtime=provenance.runtime,
        runtime_version=provenance.runtime_version,
        runtime_sha256=provenance.runtime_sha256,
        isa=provenance.isa,
        threads=provenance.threads,
        affinity=provenance.affinity,
        governor=provenance.governor,
        agent_version=provenance.agent_version,
        source=provenance.source,
    )


def series_id(key: SeriesKey) -> str:
    """The identity of a series: the hash of its key."""
    return content_id("s", key)


def key_of(row: SeriesRow) -> SeriesKey:
    """The key of a stored series."""
    values = {field.name: getattr(row, field.name) for field in fields(SeriesKey)}
    return SeriesKey(**{**values, "affinity": tuple(row.affinity)})


def differing_parts(a: SeriesKey, b: SeriesKey) -> tuple[str, ...]:
    """The parts of the key in which two series differ, in words."""
    return tuple(words for name, words in _PART_WORDS.items() if getattr(a, name) != getattr(b, name))


def ensure_series(session: Session, keys: Iterable[SeriesKey]) -> None:
    """Store the series that are not there yet. Their profiles and setups must be."""
    rows = {
        series_id(key): {
            "id": series_id(key),
            **{field.name: getattr(key, field.name) for field in fields(SeriesKey)},
            "affinity": list(key.affinity),
            "num_measurements": 0,
        }
        for key in keys
    }
    insert_missing(session, SeriesRow, list(rows.values()))


def get_series(session: Session, identity: str) -> SeriesRow:
    """Raises `NotFound`."""
    row = session.get(SeriesRow, identity)
    if row is None:
        raise NotFound(f"there is no series {identity!r}: GET /v1/latency-series lists them")
    return row


def why_mixed(session: Session, identities: Iterable[str]) -> str | None:
    """In which parts of the key these series differ, in words; None for one series."""
    distinct = sorted(set(identities))
    if len(distinct) < 2:
        return None
    first, *others = (key_of(get_series(session, identity)) for identity in distinct)
    parts = sorted({part for other in others for part in differing_parts(first, other)})
    return f"{len(distinct)} series, which differ in {', '.join(parts)}"


def list_series(
    session: Session, *, device_id: str | None, runtime: str | None = None, after: str | None = None, limit: int
) -> list[SeriesRow]:
    """Series in the order of their identity."""
    query = select(SeriesRow).order_by(SeriesRow.id).limit(limit)
    if device_id is not None:
        query = query.where(SeriesRow.device_id == device_id)
    if runtime is not None:
        query = query.where(SeriesRow.runtime == runtime)
    if after is not None:
        query = query.where(SeriesRow.id > after)
    return list(session.scalars(query))


def series_of_device(session: Session, device_id: str, limit: int) -> list[SeriesRow]:
    """The series of one device, those that were measured in last first."""
    query = select(SeriesRow).where(SeriesRow.device_id == device_id)
    return list(session.scalars(query.order_by(SeriesRow.last_at.desc(), SeriesRow.id).limit(limit)))


def latest_series(
    session: Session,
    *,
    device_id: str,
    setup_id: str,
    profile_id: str,
    source: Source,
    runtime_version: str | None = None,
) -> SeriesRow | None:
    """The series of a device, as it is now, that has the latest measurement made with this setup."""
    query = select(SeriesRow).where(
        SeriesRow.device_id == device_id,
        SeriesRow.setup_id == setup_id,
        SeriesRow.profile_id == profile_id,
        SeriesRow.source == source,
    )
    if runtime_version is not None:
        query = query.where(SeriesRow.runtime_version == runtime_version)
    return session.scalars(query.order_by(SeriesRow.last_at.desc(), SeriesRow.id).limit(1)).first()
