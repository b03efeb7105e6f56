"""Engines, transactions and migrations, on both databases."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, select, text
from sqlalchemy.orm import Session

from device_agent.contracts import ContractError
from server import database as database_module
from server.columns import Base, CompressedText, now_s
from server.database import Database, alembic_config, has_wal_bug, migration_engine, migrations_dir, upgrade
from server.settings import Settings


class TestWalBug:
    @pytest.mark.parametrize(
        ("version", "affected"),
        [
            ((3, 6, 23), False),
            ((3, 7, 0), True),
            ((3, 40, 1), True),
            ((3, 44, 5), True),
            ((3, 44, 6), False),
            ((3, 45, 0), True),
            ((3, 50, 6), True),
            ((3, 50, 7), False),
            ((3, 51, 2), True),
            ((3, 51, 3), False),
            ((4, 0, 0), False),
        ],
    )
    def test_versions(self, version: tuple[int, ...], affected: bool) -> None:
        assert has_wal_bug(version) is affected

    def test_an_affected_library_gets_the_rollback_journal(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database_module, "sqlite_module", lambda: sqlite3)
        monkeypatch.setattr(database_module, "has_wal_bug", lambda version: True)
        database = Database(f"sqlite:///{tmp_path / 'x.db'}")
        with database.write() as session:
            modes = [session.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous")]
        database.dispose()
        assert modes == ["delete", 2]

    def test_a_sound_library_gets_the_write_ahead_log(self, sqlite_settings: Settings) -> None:
        if has_wal_bug(tuple(database_module.sqlite_module().sqlite_version_info)):
            pytest.skip("needs pysqlite3, or SQLite 3.51.3 or later")
        database = Database.from_settings(sqlite_settings)
        with database.read() as session:
            assert session.execute(text("PRAGMA journal_mode")).scalar() == "wal"
            assert session.execute(text("PRAGMA foreign_keys")).scalar() == 1
        database.dispose()

    def test_memory_is_refused(self) -> None:
        with pytest.raises(ContractError, match="two processes"):
            Database("sqlite://")


class TestTransactions:
    def test_rolled_back_on_an_exception(self, settings: Settings) -> None:
        database = Database.from_settings(settings)

        def die(session: Session) -> None:
            session.execute(text("INSERT INTO measuring_setup (id, setup) VALUES ('m', '{}')"))
            raise RuntimeError

        with pytest.raises(RuntimeError), database.write() as session:
            die(session)
        with database.read() as session:
            assert session.execute(text("SELECT count(*) FROM measuring_setup")).scalar() == 0
        database.dispose()

    def test_writers_of_several_processes_never_fail_on_a_lock(self, sqlite_settings: Settings) -> None:
        """Read, then write, in one transaction: the pattern that DEFERRED transactions cannot do."""
        database = Database.from_settings(sqlite_settings)
        with database.write() as session:
            session.execute(text("CREATE TABLE counter (n INTEGER)"))
            session.execute(text("INSERT INTO counter VALUES (0)"))
        script = (
            "import sys; from sqlalchemy import text; from server.database import Database\n"
            "database = Database(sys.argv[1])\n"
            "for _ in range(50):\n"
            "    with database.write() as session:\n"
            "        n = session.execute(text('SELECT n FROM counter')).scalar()\n"
            "        session.execute(text('UPDATE counter SET n = :n'), {'n': n + 1})\n"
        )
        processes = [
            subprocess.Popen([sys.executable, "-c", script, sqlite_settings.url], stderr=subprocess.PIPE)
            for _ in range(3)
        ]
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()
        with database.read() as session:
            assert session.execute(text("SELECT n FROM counter")).scalar() == 150
        database.dispose()

    def test_readers_do_not_wait_for_a_writer(self, sqlite_settings: Settings) -> None:
        if has_wal_bug(tuple(database_module.sqlite_module().sqlite_version_info)):
            pytest.skip("needs pysqlite3, or SQLite 3.51.3 or later")
        database = Database.from_settings(sqlite_settings)
        entered, done = threading.Event(), threading.Event()

        def write() -> None:
            with database.write() as session:
                session.execute(text("INSERT INTO measuring_setup (id, setup) VALUES ('m', '{}')"))
                entered.set()
                assert done.wait(30)

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            assert entered.wait(30)
            with database.read() as session:
                assert session.execute(text("SELECT count(*) FROM measuring_setup")).scalar() == 0
            done.set()
            writing.result()
        database.dispose()

    def test_one_statement_is_kept(self, settings: Settings) -> None:
        database = Database.from_settings(settings)
        with database.write_one() as session:
            session.execute(text("INSERT INTO measuring_setup (id, setup) VALUES ('m', '{}')"))
        with database.read() as session:
            assert session.execute(text("SELECT count(*) FROM measuring_setup")).scalar() == 1
        database.dispose()

    def test_a_snapshot_sees_one_moment_and_takes_rows_in_parts(self, settings: Settings) -> None:
        if settings.url.startswith("sqlite") and has_wal_bug(
            tuple(database_module.sqlite_module().sqlite_version_info)
        ):
            pytest.skip("needs pysqlite3, or SQLite 3.51.3 or later")
        database = Database.from_settings(settings)
        query = text("SELECT id FROM measuring_setup").execution_options(yield_per=1)
        with database.write() as session:
            session.execute(text("INSERT INTO measuring_setup (id, setup) VALUES ('m', '{}'), ('n', '{}')"))
        with database.snapshot() as before:
            assert len(before.execute(query).all()) == 2
            with database.write_one() as session:
                session.execute(text("INSERT INTO measuring_setup (id, setup) VALUES ('o', '{}')"))
            assert len(before.execute(query).all()) == 2
        with database.snapshot() as after:
            assert len(after.execute(query).all()) == 3
        database.dispose()

    def test_reading_leaves_no_transaction_open_on_postgresql(self, postgres_settings: Settings) -> None:
        database = Database.from_settings(postgres_settings)
        states = text("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'")
        with database.read() as reading, database.snapshot() as snapshot:
            reading.execute(text("SELECT 1"))
            with database.read() as session:
                assert session.execute(states).scalar() == 0
            snapshot.execute(text("SELECT 1"))
            with database.read() as session:
                assert session.execute(states).scalar() == 1
        database.dispose()

    def test_the_database_clock(self, settings: Settings) -> None:
        database = Database.from_settings(settings)
        with database.read() as session:
            first = session.execute(select(now_s())).scalar_one()
            second = session.execute(select(now_s())).scalar_one()
        database.dispose()
        assert 1.7e9 < first <= second < first + 60

    def test_compressed_text(self) -> None:
        stored = CompressedText().process_bind_param("0123456789" * 1000, None)
        assert stored is not None
        assert len(stored) < 200
        assert CompressedText().process_result_value(stored, None) == "0123456789" * 1000


class TestMigrations:
    def test_up_check_down_up(self, tmp_path: Path, postgres_url: str) -> None:
        engine = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("CREATE DATABASE migrations"))
        engine.dispose()
        for url in (f"sqlite:///{tmp_path / 'x.db'}", postgres_url.replace("/postgres?", "/migrations?")):
            upgrade(Settings(data_dir=tmp_path, database_url=url))
            engine = migration_engine(url)
            with engine.connect() as connection:
                # Raises where the models and the migrations differ.
                command.check(alembic_config(connection))
                command.downgrade(alembic_config(connection), "base")
                assert set(inspect(connection).get_table_names()) == {"alembic_version"}
                connection.commit()
            engine.dispose()
            upgrade(Settings(data_dir=tmp_path, database_url=url))
            engine = create_engine(url)
            assert set(inspect(engine).get_table_names()) == {*Base.metadata.tables, "alembic_version"}
            engine.dispose()

    def test_several_processes_at_once(self, tmp_path: Path) -> None:
        settings = Settings(data_dir=tmp_path / "new")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: upgrade(settings), range(4)))
        database = Database.from_settings(settings)
        with database.read() as session:
            assert session.execute(text("SELECT version_num FROM alembic_version")).scalar() == "0001_initial"
        database.dispose()

    def test_one_head(self) -> None:
        assert len(ScriptDirectory.from_config(alembic_config()).get_heads()) == 1

    def test_an_installed_wheel_has_them_inside(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert (migrations_dir() / "env.py").is_file()
        package = tmp_path / "server"
        (package / "migrations").mkdir(parents=True)
        monkeypatch.setattr(database_module, "files", lambda name: package)
        assert migrations_dir() == package / "migrations"
        (package / "migrations").rmdir()
        with pytest.raises(FileNotFoundError, match="install kerf again"):
            migrations_dir()
