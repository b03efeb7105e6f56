"""INSERT ... ON CONFLICT for SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from server.columns import Base


def insert_missing(session: Session, table: type[Base], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows whose primary key, or any other unique key, is not there yet."""
    if rows:
        session.execute(_insert(session, table).on_conflict_do_nothing(), list(rows))


def upsert(
    session: Session,
    table: type[Base],
    rows: Sequence[Mapping[str, Any]],
    *,
    key: Sequence[str],
    replace: Sequence[str] | None = None,
) -> None:
    """Insert rows; where `key` is taken, set the columns `replace` (None: all that are given) instead."""
    if not rows:
        return
    statement = _insert(session, table)
    columns = replace if replace is not None else [c for c in rows[0] if c not in key]
    session.execute(
        statement.on_conflict_do_update(index_elements=list(key), set_={c: statement.excluded[c] for c in columns}),
        list(rows),
    )


def _insert(session: Session, table: type[Base]) -> Any:
    # The table and not the class: the ORM's bulk insert would compile one long statement for each number of rows.
    dialect = session.get_bind().dialect.name
    return (sqlite if dialect == "sqlite" else postgresql).insert(table.__table__)
