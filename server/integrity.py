"""What can be wrong with a database and the files that it names: `kerf db check`. Looks only."""

from __future__ import annotations

from collections.abc import Iterator

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, func, select
from sqlalchemy.orm import Session

from server.artifacts.store import open_store
from server.columns import Base
from server.database import Database, migration_engine
from server.models import ArtifactRow, MeasurementFailureRow, MeasurementRow, ReportRow
from server.schema import newest_schema, schema_of, schema_status
from server.settings import Settings

#: Problems of one kind that are named; more are counted.
_SHOWN = 5


def problems(settings: Settings) -> Iterator[str]:
    """Each thing that is wrong, in words with the remedy; nothing where all is well."""
    if (status := schema_status(settings)).schema is None:
        yield f"there is no database at {status.url}: see KERF_DATA_DIR and KERF_DATABASE_URL"
        return
    engine = migration_engine(settings.url)
    try:
        with engine.connect() as connection:
            found = schema_of(connection)
            if found != newest_schema():
                yield f"the schema is {found or 'none'}, the newest is {newest_schema()}: run `kerf db upgrade`"
                return
            yield from _structure(connection)
    finally:
        engine.dispose()
    if not settings.token_key and not settings.key_file.is_file():
        yield f"{settings.key_file} is missing: no token is valid. Restore it, or make new tokens"
    database = Database.from_settings(settings)
    try:
        with database.snapshot() as session:
            yield from _reports(session)
            yield from _artifacts(session, settings)
    finally:
        database.dispose()


def _structure(connection: Connection) -> Iterator[str]:
    if connection.dialect.name == "sqlite":
        said = [row[0] for row in connection.exec_driver_sql(f"PRAGMA integrity_check({_SHOWN})")]
        if said != ["ok"]:
            yield f"the file is damaged ({'; '.join(said)}): restore a backup"
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
        if broken:
            tables = ", ".join(sorted({str(row[0]) for row in broken})[:_SHOWN])
            yield f"{len(broken)} rows of {tables} refer to rows that are not there: restore a backup"
    different = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    if different:
        yield f"tables differ from what this Kerf makes ({different[0]!r}): undo changes by hand, or restore a backup"


def _reports(session: Session) -> Iterator[str]:
    """Every report that was taken has its measurement or its failure."""
    num_reports = session.scalar(select(func.count()).select_from(ReportRow)) or 0
    measured = (
        select(func.count())
        .select_from(ReportRow)
        .join(MeasurementRow, MeasurementRow.result_key == ReportRow.result_key)
    )
    num_measured = session.scalar(measured) or 0
    # Failures have keys of their own, and some were no report: an expired lease is one.
    num_failed = session.scalar(select(func.count()).select_from(MeasurementFailureRow)) or 0
    if num_reports - num_measured > num_failed:
        yield f"{num_reports - num_measured - num_failed} reports have neither measurement nor failure: report this"


def _artifacts(session: Session, settings: Settings) -> Iterator[str]:
    store = open_store(settings)
    missing: list[str] = []
    num_missing = 0
    for sha256 in session.scalars(select(ArtifactRow.sha256).execution_options(yield_per=1000)):
        if not store.has(sha256):
            num_missing += 1
            missing += [sha256] * (len(missing) < _SHOWN)
    if num_missing:
        yield f"{num_missing} artifacts are not in the store, such as {', '.join(missing)}: upload or restore them"
