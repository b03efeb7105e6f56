"""`kerf db backup | restore | check`: the same rows back, from and to both databases, while somebody writes."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, select, text

from device_agent.contracts import ContractError, Verdict
from server.backup import BackupError, back_up, restore
from server.columns import Base
from server.database import NewerSchema, migration_engine, upgrade
from server.integrity import problems
from server.models import ArtifactRow, EventRow, MeasurementRow, SearchRow
from server.searches.repository import SearchEvent, append_events
from server.settings import Settings
from tests.unit.server.filled_database import contents, fill, url_of
from tests.unit.server.server_lab import ServerLab


@pytest.fixture
def emptied(postgres_url: str) -> str:
    """A database of its own in the PostgreSQL server of the tests."""
    name = "restored"
    engine = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return postgres_url.replace("/postgres?", f"/{name}?")


class TestRoundTrip:
    def test_every_row_comes_back_in_both_kinds_of_database(self, lab: ServerLab, tmp_path: Path, emptied: str) -> None:
        search_id = fill(lab)
        before = contents(lab.settings.url)
        assert set(before) == set(Base.metadata.tables)
        assert all(before.values())
        backup = tmp_path / "backup.db"
        back_up(lab.settings, backup)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.db", "data"]
        assert backup.stat().st_mode & 0o777 == 0o600
        assert contents(url_of(backup)) == before

        here = Settings(data_dir=tmp_path / "new")
        done = restore(here, backup)
        assert done.num_rows == sum(map(len, before.values()))
        assert contents(here.url) == before

        there = Settings(data_dir=tmp_path / "new", database_url=emptied)
        assert restore(there, backup) == done
        assert contents(there.url) == before
        with create_engine(there.url).connect() as connection:
            row = connection.execute(select(SearchRow.name).where(SearchRow.id == search_id)).one()
            assert row.name == "ümläut \U0001f680"
            verdicts = connection.execute(select(MeasurementRow.verdict)).scalars().all()
            assert Verdict.TRUSTED in verdicts
        with pytest.raises(BackupError, match="has rows in"):
            restore(there, backup)
        assert contents(there.url) == before

    def test_while_somebody_writes_it_is_one_moment(self, lab: ServerLab, tmp_path: Path) -> None:
        """An event and its number in the search change together, in each of many transactions."""
        search_id = lab.search(lab.agent().device_id)
        done = threading.Event()

        def write() -> None:
            while not done.is_set():
                with lab.database.write() as session:
                    append_events(session, search_id, [SearchEvent(kind="message", data={"text": "x" * 500})] * 3)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for i in range(3):
                back_up(lab.settings, tmp_path / f"{i}.db")
        finally:
            done.set()
            writer.join()
        for i in range(3):
            with create_engine(url_of(tmp_path / f"{i}.db")).connect() as connection:
                last = connection.execute(select(SearchRow.last_event_seq)).scalar_one()
                counted = connection.execute(select(func.count(), func.max(EventRow.seq)).select_from(EventRow)).one()
                assert tuple(counted) == (last, last)
                assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"


@pytest.mark.parametrize("name", ["a#b", "50% & ü"])
def test_whatever_its_folder_is_called_it_is_the_database(sqlite_lab: ServerLab, tmp_path: Path, name: str) -> None:
    """SQLite takes an address here: what follows a # is not of the file, which would be another, empty one."""
    folder = tmp_path / name
    shutil.copytree(sqlite_lab.settings.data_dir, folder)
    back_up(Settings(data_dir=folder), folder / "backup.db")
    assert restore(Settings(data_dir=tmp_path / "new"), folder / "backup.db").num_rows == 2
    assert not (tmp_path / "a").exists()
    with pytest.raises(ContractError, match="a '\\?'"):
        Settings(data_dir=tmp_path / "a?b")


class TestRefusals:
    @pytest.fixture
    def backup(self, sqlite_lab: ServerLab, tmp_path: Path) -> Path:
        back_up(sqlite_lab.settings, tmp_path / "backup.db")
        return tmp_path / "backup.db"

    def test_nothing_is_written_over(self, sqlite_lab: ServerLab, backup: Path) -> None:
        with pytest.raises(BackupError, match="is there: name another file"):
            back_up(sqlite_lab.settings, backup)
        with pytest.raises(BackupError, match="stop the server and move it away"):
            restore(sqlite_lab.settings, backup)

    @pytest.mark.parametrize("content", [b"", b"no database at all" * 100])
    def test_what_is_no_backup(self, tmp_path: Path, content: bytes) -> None:
        file = tmp_path / "file"
        file.write_bytes(content)
        with pytest.raises(BackupError, match="no backup of Kerf"):
            restore(Settings(data_dir=tmp_path / "new"), file)
        assert not (tmp_path / "new").exists()

    def test_a_damaged_backup(self, backup: Path, tmp_path: Path) -> None:
        data = bytearray(backup.read_bytes())
        data[4096 * 3 : 4096 * 6] = b"\xff" * (4096 * 3)
        backup.write_bytes(data)
        with pytest.raises(BackupError, match=r"is damaged|no backup"):
            restore(Settings(data_dir=tmp_path / "new"), backup)
        assert not (tmp_path / "new" / "kerf.db").exists()

    def test_a_newer_release_s(self, backup: Path, tmp_path: Path, sqlite_lab: ServerLab) -> None:
        for url in (url_of(backup), sqlite_lab.settings.url):
            engine = migration_engine(url)
            with engine.begin() as connection:
                connection.execute(text("UPDATE alembic_version SET version_num = '9999_future'"))
            engine.dispose()
        with pytest.raises(BackupError, match="9999_future, made by a newer Kerf"):
            restore(Settings(data_dir=tmp_path / "new"), backup)
        with pytest.raises(NewerSchema, match=r"9999_future.*never downgraded.*restore a backup"):
            upgrade(sqlite_lab.settings)
        # A process of the release before goes on while the newer one's take over.
        assert sqlite_lab.client.get("/readyz").status_code == 200


class TestCheck:
    def test_a_database_that_is_well(self, lab: ServerLab) -> None:
        agent = lab.agent()
        lab.tasks(agent, 2)
        assert list(problems(lab.settings)) == []

    def test_what_is_wrong_is_named(self, lab: ServerLab, tmp_path: Path) -> None:
        lab.settings.key_file.unlink()
        with lab.database.write() as session:
            session.add(ArtifactRow(sha256="ab" * 32, size_bytes=1))
        found = " ".join(problems(lab.settings))
        assert "token.key is missing" in found
        assert f"1 artifacts are not in the store, such as {'ab' * 32}" in found
        engine = migration_engine(lab.settings.url)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE surplus (id INTEGER)"))
        assert any("tables differ" in problem for problem in problems(lab.settings))
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE surplus"))
        engine.dispose()

    def test_references_that_lead_nowhere(self, sqlite_settings: Settings, tmp_path: Path) -> None:
        settings = replace(sqlite_settings, data_dir=tmp_path / "copy")
        settings.data_dir.mkdir()
        shutil.copy(sqlite_settings.data_dir / "kerf.db", settings.data_dir / "kerf.db")
        engine = migration_engine(settings.url)
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO search_event VALUES ('none', 1, 'x', '{}', 0.0)"))
        engine.dispose()
        assert any("search_event refer to rows that are not there" in problem for problem in problems(settings))
