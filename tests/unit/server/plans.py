"""How the database finds the rows of a statement."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session


def plan(session: Session, statement: Any) -> str:
    """The steps, one a line. On PostgreSQL as for a table too large to be read whole."""
    compiled = statement.compile(session.get_bind(), compile_kwargs={"literal_binds": True})
    if session.get_bind().dialect.name == "sqlite":
        return "\n".join(str(row[3]) for row in session.execute(text(f"EXPLAIN QUERY PLAN {compiled}")))
    session.execute(text("SET LOCAL enable_seqscan = off"))
    session.execute(text("SET LOCAL enable_bitmapscan = off"))
    return "\n".join(str(row[0]) for row in session.execute(text(f"EXPLAIN {compiled}")))
