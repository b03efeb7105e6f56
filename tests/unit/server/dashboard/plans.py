"""How SQLite finds the rows of a query."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session


def plan(session: Session, query: Any) -> str:
    """The steps, one a line."""
    compiled = query.compile(session.get_bind(), compile_kwargs={"literal_binds": True})
    rows = session.execute(text(f"EXPLAIN QUERY PLAN {compiled}"))
    return "\n".join(str(row[3]) for row in rows)
