"""Run by Alembic. `server.database.upgrade` hands it a connection; the command line gives it KERF_DATABASE_URL."""

from __future__ import annotations

from typing import Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Connection

from server import models  # noqa: F401 - fills the metadata
from server.columns import Base, CompressedText
from server.database import migration_engine
from server.settings import Settings


def render_item(kind: str, item: object, autogen_context: AutogenContext) -> str | Literal[False]:
    """Migrations name plain column types: they must run long after ours have changed."""
    return "sa.LargeBinary()" if isinstance(item, CompressedText) else False


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        # SQLite changes a table by copying it.
        render_as_batch=True,
        transaction_per_migration=True,
        compare_type=True,
        render_item=render_item,
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("Kerf's migrations run on a database: leave --sql out and set KERF_DATABASE_URL")

given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    engine = migration_engine(Settings.from_env().url)
    with engine.connect() as opened:
        run(opened)
    engine.dispose()
