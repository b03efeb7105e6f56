"""A database with rows in every table: some from real requests, the others made up from the columns' types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Boolean, Enum, Float, Integer, LargeBinary, String, create_engine, insert, select
from sqlalchemy.types import TypeDecorator, TypeEngine

from device_agent.contracts import FailureReason
from server.columns import Base
from server.database import sqlite_module
from tests.unit.server.server_lab import ServerLab, failure, measurement, report_of


def fill(lab: ServerLab) -> str:
    """Fill every table; returns the identity of a search with measurements."""
    agent = lab.agent()
    search_id = lab.search(agent.device_id, "ümläut \U0001f680")
    lab.tasks(agent, 3, search_id)
    first, second = lab.lease(agent, 2)
    lab.report(agent, report_of(first, measurement(1234.567)), report_of(second, failure(FailureReason.CRASHED)))
    known: dict[str, Any] = {}
    with lab.database.write() as session:
        for table in Base.metadata.sorted_tables:
            row = session.execute(select(table).limit(1)).mappings().first()
            if row is None:
                values = {c.name: _value(c.type, c.name) for c in table.columns}
                for column in table.columns:
                    for key in column.foreign_keys:
                        values[column.name] = known[key.target_fullname]
                session.execute(insert(table).values(values))
                row = session.execute(select(table).limit(1)).mappings().one()
            known |= {f"{table.name}.{name}": row[name] for name in row}
    return search_id


def _value(kind: TypeEngine[Any], name: str) -> Any:
    if isinstance(kind, Enum):
        assert kind.enum_class is not None
        return next(iter(kind.enum_class))
    if isinstance(kind, TypeDecorator):
        return f"text of {name}"
    if isinstance(kind, JSON):
        return {"é": [1, 0.1, None, True]}
    if isinstance(kind, Boolean):
        return True
    if isinstance(kind, Integer):
        return 7
    if isinstance(kind, Float):
        return 0.1 + 0.2
    if isinstance(kind, LargeBinary):
        return b"\x00\xff"
    assert isinstance(kind, String), kind
    if name.endswith("sha256"):
        return "ab" * 32
    return f"made up {name}"[: kind.length or 40]


def contents(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables in a fixed order, as the models read them."""
    options = {"module": sqlite_module()} if url.startswith("sqlite") else {}
    engine = create_engine(url, **options)
    found = {}
    with engine.connect() as connection:
        for table in Base.metadata.sorted_tables:
            rows = connection.execute(select(table)).all()
            found[table.name] = sorted((tuple(row) for row in rows), key=repr)
    engine.dispose()
    return found


def url_of(file: Path) -> str:
    return f"sqlite:///{file}"
