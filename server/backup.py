"""The whole database as one file, and back: `kerf db backup`, `restore` and `check`.

The file is a SQLite database, whatever it was made from and is restored into. So a backup is also the way from SQLite
to PostgreSQL and back, and is read by anything that reads SQLite. It is the database as it was at one moment, while
server and workers go on; artifacts and token.key, which are files, are not in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from alembic.migration import MigrationContext
from sqlalchemy import (
    JSON,
    URL,
    Connection,
    Engine,
    MetaData,
    Table,
    create_engine,
    event,
    func,
    make_url,
    pool,
    select,
)

from server.database import BUSY_TIMEOUT_S, sqlite_module, upgrade
from server.schema import is_known_schema, schema_of
from server.settings import Settings

#: Rows that are moved at once: bounds the memory, which rows with samples would fill.
_BATCH_ROWS = 1000
#: Alembic's own; making the schema writes it.
_VERSION_TABLE = "alembic_version"


class BackupError(Exception):
    """A backup, or restoring one, is not possible. The text names the reason and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was restored: rows over all tables, and the schema of the backup, which was then brought to the newest."""

    num_rows: int
    schema: str


def back_up(settings: Settings, target: Path) -> None:
    """Write the database as it is at one moment into `target`, which appears when it is whole.

    Raises `BackupError` where there is nothing to copy, or `target` is there.
    """
    url = make_url(settings.url)
    if target.exists():
        raise BackupError(f"{target} is there: name another file")
    partial = target.with_name(target.name + ".part")
    partial.unlink(missing_ok=True)
    try:
        # All searches of all users are in it. What fills it takes an empty file for none.
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise BackupError(f"{target} cannot be written: {error.strerror}") from None
    try:
        if url.get_backend_name() == "sqlite":
            _copy_sqlite(Path(url.database or ""), partial)
        else:
            _copy_out(url, partial)
        _flush(partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def restore(settings: Settings, source: Path) -> Restored:
    """Make the database of `settings` from a backup, and bring it to the newest schema.

    All or nothing: into a database that is not there, or has nothing in it. Raises `BackupError` otherwise, and for a
    file that is no backup, is damaged, or was made by a newer Kerf.
    """
    schema = _checked_backup(source)
    url = make_url(settings.url)
    if url.get_backend_name() == "sqlite":
        num_rows = _restore_sqlite(Path(url.database or ""), source)
    else:
        upgrade(settings, schema)
        num_rows = _copy_in(url, source, schema)
    upgrade(settings)
    return Restored(num_rows=num_rows, schema=schema)


def _copy_sqlite(source: Path, target: Path) -> None:
    if not source.is_file():
        raise BackupError(f"there is no database {source}: see KERF_DATA_DIR and KERF_DATABASE_URL")
    connection = sqlite_module().connect(f"file:{quote(str(source))}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)
    try:
        # A read transaction (https://sqlite.org/lang_vacuum.html#vacuuminto): writers go on meanwhile.
        connection.execute("VACUUM INTO ?", (str(target),))
    finally:
        connection.close()


def _copy_out(url: URL, target: Path) -> None:
    """PostgreSQL into a new SQLite file, in one transaction that sees one moment."""
    engine = _raw_engine(url)
    try:
        with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            schema = schema_of(connection)
            if schema is None or not is_known_schema(schema):
                raise BackupError(
                    f"{_shown(url)} has schema {schema or 'none'}, which this Kerf does not know: see `kerf db status`"
                )
            upgrade(Settings(database_url=f"sqlite:///{target}"), schema)
            with _loading(target) as into:
                _copy_rows(connection, into)
    finally:
        engine.dispose()
        target.with_name(target.name + ".lock").unlink(missing_ok=True)


def _restore_sqlite(target: Path, source: Path) -> int:
    if target.exists():
        raise BackupError(f"{target} is there: stop the server and move it away first, with its -wal and -shm")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    partial.unlink(missing_ok=True)
    try:
        _copy_sqlite(source, partial)
        _flush(partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    engine = _raw_engine(make_url(f"sqlite:///{target}"))
    try:
        with engine.connect() as connection:
            return sum(_count(connection, table) for table in _tables(connection))
    finally:
        engine.dispose()


def _copy_in(url: URL, source: Path, schema: str) -> int:
    """A backup into a PostgreSQL database that has its schema, in one transaction."""
    engine, backup = _raw_engine(url), _raw_engine(make_url(f"sqlite:///{source}"))
    try:
        with engine.begin() as into, backup.connect() as connection:
            if (found := schema_of(into)) != schema:
                raise BackupError(
                    f"{_shown(url)} has schema {found}, the backup {schema}: restore into an empty database"
                )
            for table in _tables(into):
                # Nobody writes between the look and the end.
                into.exec_driver_sql(f'LOCK TABLE "{table.name}" IN EXCLUSIVE MODE')
                if _count(into, table):
                    raise BackupError(f"{_shown(url)} has rows in {table.name}: restore into an empty database")
            num_rows = _copy_rows(connection, into)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            # Without it, the planner knows nothing of the new rows until autovacuum comes by.
            connection.exec_driver_sql("ANALYZE")
        return num_rows
    finally:
        engine.dispose()
        backup.dispose()


def _copy_rows(source: Connection, target: Connection) -> int:
    """Every row of every table, those that others refer to first. Values pass as they are stored."""
    columns = {table.name: table for table in _tables(source)}
    num_rows = 0
    for table in _tables(target):
        found = columns.pop(table.name, None)
        if found is None or {c.name for c in found.columns} != {c.name for c in table.columns}:
            raise BackupError(f"table {table.name} differs between source and target of one schema: report this")
        rows = source.execution_options(yield_per=_BATCH_ROWS).execute(select(found)).mappings()
        for part in rows.partitions(_BATCH_ROWS):
            target.execute(table.insert(), [dict(row) for row in part])
            num_rows += len(part)
    if columns:
        raise BackupError(f"the target has no table {', '.join(columns)}: report this")
    return num_rows


def _tables(connection: Connection) -> list[Table]:
    """The tables of a database as they are, in an order in which they can be filled."""
    metadata = MetaData()
    metadata.reflect(connection, only=lambda name, _: name != _VERSION_TABLE)
    for table in metadata.tables.values():
        for column in table.columns:
            if isinstance(column.type, JSON):
                # SQL's NULL stays one, and JSON's null stays one.
                column.type = JSON(none_as_null=True)
    return list(metadata.sorted_tables)


def _count(connection: Connection, table: Table) -> int:
    return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def _as_stored(value: Any) -> Any:
    return bytes(value).decode() if isinstance(value, bytes | bytearray | memoryview) else value


def _raw_engine(url: URL) -> Engine:
    """An engine through which JSON passes as the text that is stored."""
    options: dict[str, Any] = {
        "json_serializer": _as_stored,
        "json_deserializer": _as_stored,
        "poolclass": pool.NullPool,
    }
    if url.get_backend_name() != "sqlite":
        return create_engine(url, **options)
    return create_engine(url, module=sqlite_module(), **options)


@contextmanager
def _loading(target: Path) -> Iterator[Connection]:
    """One transaction into a new SQLite file, checked at its end."""
    engine = _raw_engine(make_url(f"sqlite:///{target}"))

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        # Nothing is lost: the file has another name until it is whole, and is flushed then.
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("PRAGMA synchronous=OFF")

    try:
        with engine.begin() as connection:
            yield connection
        with engine.connect() as connection:
            broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
            if broken:
                raise BackupError(f"{len(broken)} rows refer to none that is there: the source is damaged")
    finally:
        engine.dispose()


def _checked_backup(source: Path) -> str:
    """The schema of a backup."""
    if not source.is_file():
        raise BackupError(f"there is no file {source}")
    address = URL.create("sqlite", database=f"file:{quote(str(source))}", query={"mode": "ro", "uri": "true"})
    engine = _raw_engine(address)
    try:
        with engine.connect() as connection:
            said = connection.exec_driver_sql("PRAGMA integrity_check").scalar_one()
            if said != "ok":
                raise BackupError(f"{source} is damaged ({said}): take another backup")
            schema = MigrationContext.configure(connection).get_current_revision()
    except sqlite_module().DatabaseError as error:
        raise BackupError(f"{source} is no backup of Kerf ({error})") from None
    except Exception as error:
        if isinstance(error, BackupError):
            raise
        raise BackupError(f"{source} is no backup of Kerf ({str(error).splitlines()[0]})") from None
    finally:
        engine.dispose()
    if schema is None:
        raise BackupError(f"{source} is a SQLite file, but no backup of Kerf")
    if not is_known_schema(schema):
        raise BackupError(f"{source} has schema {schema}, made by a newer Kerf: install that, then restore")
    return str(schema)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _shown(url: URL) -> str:
    return url.render_as_string(hide_password=True)
