"""Databases for the server's tests: a SQLite file, and a real PostgreSQL, each fresh for every test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, text

from server.app import create_app
from server.columns import Base
from server.database import upgrade
from server.settings import Settings
from tests.unit.server.server_lab import ServerLab

#: Intervals that make a test wait no longer than it must.
FAST = {"poll_interval_s": 0.02, "reap_interval_s": 3600.0}


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite database, to copy."""
    folder = tmp_path_factory.mktemp("sqlite")
    upgrade(Settings(data_dir=folder))
    return folder / "kerf.db"


@pytest.fixture
def sqlite_settings(tmp_path: Path, sqlite_template: Path) -> Settings:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    shutil.copy(sqlite_template, data_dir / "kerf.db")
    return Settings(data_dir=data_dir, **FAST)


@pytest.fixture
def postgres_settings(tmp_path: Path, postgres_url: str) -> Settings:
    # A new database for each test would take a second each.
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
        connection.execute(text(f"TRUNCATE {tables} CASCADE"))
    engine.dispose()
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    return Settings(data_dir=data_dir, database_url=postgres_url, **FAST)


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest) -> Settings:
    """Settings of a fresh database, on both kinds in turn."""
    name = "sqlite_settings" if request.param == "sqlite" else "postgres_settings"
    value: Settings = request.getfixturevalue(name)
    return value


@pytest.fixture(scope="session")
def app() -> FastAPI:
    """The app; each start of it takes the settings that it finds in its state. Building it takes 0.3 s."""
    return create_app(Settings())


@pytest.fixture
def lab(settings: Settings, app: FastAPI) -> Iterator[ServerLab]:
    """A running app on both kinds of database in turn."""
    yield from _lab(app, settings)


@pytest.fixture
def sqlite_lab(sqlite_settings: Settings, app: FastAPI) -> Iterator[ServerLab]:
    """A running app on SQLite, for what does not depend on the database."""
    yield from _lab(app, sqlite_settings)


@pytest.fixture
def postgres_lab(postgres_settings: Settings, app: FastAPI) -> Iterator[ServerLab]:
    """A running app on PostgreSQL, for races that SQLite's one writer rules out."""
    yield from _lab(app, postgres_settings)


def _lab(app: FastAPI, settings: Settings) -> Iterator[ServerLab]:
    app.state.settings = settings
    with TestClient(app, raise_server_exceptions=False) as client:
        lab = ServerLab(client, settings)
        yield lab
        lab.close()
