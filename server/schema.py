"""Which schema a database has, and which the code needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, make_url

from server.database import alembic_config, migration_engine
from server.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaStatus:
    """`url` is without its password. `schema` is None where there is no database or nothing in it."""

    url: str
    schema: str | None
    newest: str | None
    is_newest: bool


class NoDatabase(Exception):
    """There is no database where one is needed, or nothing in it. The text names the place and the remedy."""


def schema_of(connection: Connection) -> str | None:
    """The schema of a database; None for an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def newest_schema() -> str | None:
    """The schema that this code needs."""
    return ScriptDirectory.from_config(alembic_config()).get_current_head()


def is_known_schema(schema: str) -> bool:
    """Whether this code has the way to a schema. It has not to those of newer releases."""
    return any(script.revision == schema for script in ScriptDirectory.from_config(alembic_config()).walk_revisions())


def schema_status(settings: Settings) -> SchemaStatus:
    """How the database of `settings` is. Looks only: a SQLite file that is not there is not made."""
    url = make_url(settings.url)
    found = None
    if url.get_backend_name() != "sqlite" or Path(url.database or "").is_file():
        engine = migration_engine(url)
        try:
            with engine.connect() as connection:
                found = schema_of(connection)
        finally:
            engine.dispose()
    newest = newest_schema()
    return SchemaStatus(
        url=url.render_as_string(hide_password=True), schema=found, newest=newest, is_newest=found == newest
    )
