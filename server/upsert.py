"""INSERT ... ON CONFLICT for SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from server.columns import Base

#: SQLite takes at most 32766 parameters in one statement.
_MAX_PARAMETERS = 30_000


def _insert(session: Session, table: type[Base]) -> Any:
    dialect = session.get_bind().dialect.name
    return (sqlite if dialect == "sqlite" else postgresql).insert(table)


def insert_missing(session: Session, table: type[Base], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows whose primary key, or any other unique key, is not there yet."""
    for part in _parts(rows):
        session.execute(_insert(session, table).values(part).on_conflict_do_nothing())


def upsert(
    session: Session,
    table: type[Base],
    rows: Sequence[Mapping[str, Any]],
    *,
    key: Sequence[str],
    replace: Sequence[str] | None = None,
) -> None:
    """Insert rows; where `key` is taken, set the columns `replace` (None: all that are given) instead."""
    for part in _parts(rows):
        statement = _insert(session, table).values(part)
        columns = replace if replace is not None else [c for c in part[0] if c not in key]
        session.execute(
            statement.on_conflict_do_update(index_elements=list(key), set_={c: statement.excluded[c] for c in columns})
        )


def _parts(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    if not rows:
        return []
    # Column defaults add parameters of their own: leave room for as many again.
    size = max(1, _MAX_PARAMETERS // (2 * len(rows[0])))
    return [list(rows[i : i + size]) for i in range(0, len(rows), size)]
