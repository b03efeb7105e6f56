"""Every stored database is restored, upgraded and used, on both kinds of database."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, text

from server.app import create_app
from server.backup import restore
from server.database import alembic_config
from server.integrity import problems
from server.schema import schema_status
from server.settings import Settings
from tests.migration.stored import FOLDER, StoredDatabase, make, stored_databases
from tests.unit.server.server_lab import ServerLab

STORED = stored_databases()


def test_every_schema_but_the_newest_is_stored() -> None:
    known = {script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()}
    assert {item.schema for item in STORED} == known
    assert {path.name for path in FOLDER.iterdir()} == {"manifest.json", *(f"{item.schema}.db.gz" for item in STORED)}


@pytest.mark.parametrize("item", STORED, ids=lambda item: item.schema)
def test_a_released_migration_is_never_edited(item: StoredDatabase) -> None:
    assert item.is_current or not item.is_released


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("item", STORED, ids=lambda item: item.schema)
def test_it_is_upgraded_with_its_rows_and_used(
    item: StoredDatabase, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if item.is_current:
        item.unpack(backup := tmp_path / "backup.db")
        search_id = item.search_id
    else:
        # A migration that is not released yet may still be edited: what it makes now is what there is to upgrade.
        backup, search_id = make(tmp_path)
    url = "" if kind == "sqlite" else _fresh(request.getfixturevalue("postgres_url"))
    settings = Settings(data_dir=tmp_path / "restored", database_url=url)
    done = restore(settings, backup)
    assert done.schema == item.schema
    assert done.num_rows > 30
    assert schema_status(settings).is_newest
    with TestClient(create_app(settings)) as client:
        lab = ServerLab(client, settings)
        assert lab.get(f"/v1/searches/{search_id}").json()["name"] == "ümläut \U0001f680"
        names = [measured["median_ns"] for measured in lab.get("/v1/measurements").json()["items"]]
        assert 1234.567 in names
        # New work goes through the old rows.
        agent = lab.agent(device_name="new")
        lab.tasks(agent, 1)
        assert len(lab.lease(agent)) == 1
        lab.close()
    assert [problem for problem in problems(settings) if "artifacts" not in problem] == []


def _fresh(postgres_url: str) -> str:
    engine = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS upgraded WITH (FORCE)"))
        connection.execute(text("CREATE DATABASE upgraded"))
    engine.dispose()
    return postgres_url.replace("/postgres?", "/upgraded?")
