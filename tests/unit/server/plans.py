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


def rows_read(session: Session, statement: Any) -> int:
    """On PostgreSQL: how many rows the steps of the statement found or passed over, all together."""
    compiled = statement.compile(session.get_bind(), compile_kwargs={"literal_binds": True})
    found = session.execute(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {compiled}")).scalar_one()
    steps = [found[0]["Plan"]]
    total = 0.0
    while steps:
        step = steps.pop()
        steps += step.get("Plans", [])
        passed = sum(value for name, value in step.items() if name.startswith("Rows Removed"))
        total += (step["Actual Rows"] + passed) * step["Actual Loops"]
    return round(total)
