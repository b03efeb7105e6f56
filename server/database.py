"""Engines, transactions and migrations. SQLite by default; PostgreSQL is the same code with another URL."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import sqlite3
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, pool, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from device_agent.contracts import ContractError
from server.settings import Settings

log = structlog.get_logger(__name__)

#: Readers on SQLite, and connections on PostgreSQL: one for each of the 40 threads that run `def` endpoints.
READ_POOL_SIZE = 40
#: Pages that a connection of SQLite keeps: one writes, and many read, which share the system's cache besides.
WRITE_CACHE_BYTES, READ_CACHE_BYTES = 64 << 20, 2 << 20
#: Time to wait for a lock that another process holds. A write transaction takes milliseconds.
BUSY_TIMEOUT_S = 10
#: Any constant that is not used for another advisory lock.
_MIGRATION_LOCK = 0x6B657266


#: The disk is full, its quota used up, or a limit on files reached: room can be made again.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_away(error: BaseException) -> bool:
    """Whether an error means that the database does not serve now, and may in a moment: it is locked, restarting,
    without room, or its connection broke. Anything else would only happen again.
    """
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, OperationalError | PoolTimeout)


def is_full(error: BaseException) -> bool:
    """Whether an error means that a file could not be written for lack of room, also where a library wrote it."""
    if isinstance(error, OSError):
        return error.errno in _NO_ROOM
    # safetensors and torch write by themselves, and tell the system's error in words only.
    return "No space left on device" in str(error) or "os error 28" in str(error)


class Database:
    """Short transactions on one database: `with database.write() as session: ...`, likewise `read()`.

    `write` commits at the end and rolls back on an exception. On SQLite there is one writing connection a process, and
    a transaction takes the write lock at its start: a thread that is in `write()` must not enter it again. Reading
    and writing sessions are separate: a `read` sees what was committed before it began, on PostgreSQL before each of
    its statements.
    """

    def __init__(self, url: str, *, read_pool_size: int = READ_POOL_SIZE) -> None:
        self.url: URL = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            self._write_engine = self._write_one_engine = _sqlite_engine(self.url, begin="IMMEDIATE", pool_size=1)
            self._read_engine = self._snapshot_engine = _sqlite_engine(
                self.url, begin="DEFERRED", pool_size=read_pool_size
            )
        else:
            # Most statements are transactions of their own: to begin and to end one would be two trips more.
            # A pooler in transaction mode loses prepared statements: psycopg is told not to make any.
            self._read_engine = self._write_one_engine = create_engine(
                self.url,
                isolation_level="AUTOCOMMIT",
                pool_size=read_pool_size,
                max_overflow=10,
                pool_pre_ping=True,
                connect_args={"prepare_threshold": None},
            )
            self._write_engine = self._read_engine.execution_options(isolation_level="READ COMMITTED")
            self._snapshot_engine = self._read_engine.execution_options(isolation_level="REPEATABLE READ")

        self._file = _file_identity(self.url)

    def is_elsewhere(self) -> bool:
        """Whether the file of SQLite was moved, removed or replaced: what is written goes into the old one then,
        and is not found again.
        """
        found = _file_identity(self.url)
        self._file = self._file or found
        return self._file != found

    @classmethod
    def from_settings(cls, settings: Settings) -> Database:
        return cls(settings.url)

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        with Session(self._write_engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def write_one(self) -> Iterator[Session]:
        """`write` for one statement, cheaper on PostgreSQL: what a second one fails at would not undo the first."""
        with Session(self._write_one_engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        with Session(self._read_engine, expire_on_commit=False) as session:
            yield session

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Session]:
        """`read` whose statements all see the same moment, and which may take rows in parts (`yield_per`).

        For pages and figures put together from several statements, and for rows that others replace as a whole.
        """
        with Session(self._snapshot_engine, expire_on_commit=False) as session:
            yield session

    def dispose(self) -> None:
        self._write_engine.dispose()
        self._read_engine.dispose()


def _file_identity(url: URL) -> tuple[int, int] | None:
    """What tells the file of SQLite from another one in its place; None without any."""
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    try:
        found = Path(url.database).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def sqlite_module() -> ModuleType:
    """`pysqlite3`, which brings its own SQLite, or the standard library's where there is no wheel."""
    try:
        import pysqlite3
    except ImportError:
        return sqlite3
    module: ModuleType = pysqlite3
    return module


def has_wal_bug(version: tuple[int, ...]) -> bool:
    """Whether this SQLite can corrupt a database when two connections reset the write-ahead log at once.

    3.7.0 to 3.51.2 are affected but for the backports in 3.44.6 and 3.50.7 (https://sqlite.org/wal.html#walresetbug).
    """
    if version[:2] == (3, 44) and version >= (3, 44, 6):
        return False
    if version[:2] == (3, 50) and version >= (3, 50, 7):
        return False
    return (3, 7, 0) <= version < (3, 51, 3)


def _sqlite_engine(url: URL, *, begin: str, pool_size: int, foreign_keys: bool = True) -> Engine:
    if not url.database or url.database == ":memory:":
        raise ContractError(f"{url} is in memory: server and worker are two processes and need a file")
    module = sqlite_module()
    affected = has_wal_bug(tuple(module.sqlite_version_info))
    engine = create_engine(
        url,
        module=module,
        poolclass=pool.QueuePool,
        pool_size=pool_size,
        max_overflow=0,
        # The last one used is the next: others keep their small caches while few requests come at once.
        pool_use_lifo=True,
        connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_S},
    )
    # FULL makes the rollback journal safe against power loss; with WAL, NORMAL already is for consistency.
    mode, synchronous = ("DELETE", "FULL") if affected else ("WAL", "NORMAL")
    if affected and begin == "IMMEDIATE":
        log.warning(
            "sqlite_wal_bug",
            sqlite_version=module.sqlite_version,
            journal_mode=mode,
            remedy="install pysqlite3, or SQLite 3.51.3 or later, for faster writes",
        )

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_S * 1000}")
        cursor.execute(f"PRAGMA journal_mode={mode}")
        got = cursor.fetchone()[0]
        if got.upper() != mode:
            raise RuntimeError(f"SQLite stays in journal mode {got!r} instead of {mode!r}: close its other users")
        cursor.execute(f"PRAGMA synchronous={synchronous}")
        cursor.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")
        cache_bytes = WRITE_CACHE_BYTES if begin == "IMMEDIATE" else READ_CACHE_BYTES
        cursor.execute(f"PRAGMA cache_size=-{cache_bytes // 1024}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def began(connection: Connection) -> None:
        # A reader that turns into a writer gets SQLITE_BUSY at once, whatever the timeout: writers say so up front.
        connection.exec_driver_sql(f"BEGIN {begin}")

    return engine


def migrations_dir() -> Path:
    """The Alembic scripts: in an installed wheel inside the package, in a checkout beside it."""
    packaged = Path(str(files("server"))) / "migrations"
    if packaged.is_dir():
        return packaged
    checkout = Path(str(files("server"))).parent / "migrations"
    if checkout.is_dir():
        return checkout
    raise FileNotFoundError(f"no migrations in {packaged} nor {checkout}: install kerf again")


def migration_engine(url: str | URL) -> Engine:
    """An engine with one connection, for migrations only."""
    url = make_url(url)
    if url.get_backend_name() == "sqlite":
        # Batch migrations move tables by copying, which foreign keys would forbid.
        return _sqlite_engine(url, begin="IMMEDIATE", pool_size=1, foreign_keys=False)
    return create_engine(url, poolclass=pool.NullPool)


def upgrade(settings: Settings, revision: str = "head") -> None:
    """Bring the database to `revision`, making it where it does not exist. Several processes may call this at once.

    Raises `NewerSchema` for a database of a newer release: nothing leads back.
    """
    url = make_url(settings.url)
    with _migration_lock(url):
        engine = migration_engine(url)
        try:
            with engine.connect() as connection:
                _refuse_newer(connection)
                command.upgrade(alembic_config(connection), revision)
        finally:
            engine.dispose()


class NewerSchema(Exception):
    """The database was made or upgraded by a newer release. The text names both schemas and the remedy."""


def _refuse_newer(connection: Connection) -> None:
    found = MigrationContext.configure(connection).get_current_revision()
    scripts = ScriptDirectory.from_config(alembic_config())
    if found is not None and all(script.revision != found for script in scripts.walk_revisions()):
        raise NewerSchema(
            f"the database has schema {found}, and the newest that this Kerf knows is {scripts.get_current_head()}: it "
            "is of a newer Kerf. A database is never downgraded: install that release, or restore a backup from before"
        )
    # Looking has begun a transaction, and what migrates makes its own.
    connection.rollback()


@contextlib.contextmanager
def _migration_lock(url: URL) -> Iterator[None]:
    if url.get_backend_name() == "sqlite":
        path = Path(url.database or "")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(path.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        return
    engine = create_engine(url, poolclass=pool.NullPool)
    with engine.connect() as guard:
        # Held by the session: a process that dies gives it back.
        guard.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _MIGRATION_LOCK})
        guard.commit()
        try:
            yield
        finally:
            guard.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _MIGRATION_LOCK})
            guard.commit()
    engine.dispose()


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, to run its commands from Python."""
    config = Config()
    config.set_main_option("script_location", str(migrations_dir()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
