"""What pages read of a database in which others have measured much."""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert, inspect, text
from sqlalchemy.orm import Session

from device_agent.contracts import Source
from server.dashboard.searches import search_rows_query
from server.models import Base, MeasurementRow, SearchTaskRow, TaskRow
from tests.unit.server.plans import rows_read
from tests.unit.server.server_lab import ServerLab, measurement, report_of

MEASURED = 3000


def test_a_search_without_measurements_is_not_looked_for_among_all_there_are(postgres_lab: ServerLab) -> None:
    lab = postgres_lab
    agent = lab.agent()
    busy = lab.search(agent.device_id, "busy")
    lab.tasks(agent, search_id=busy)
    (lease,) = lab.lease(agent)
    lab.report(agent, report_of(lease, measurement()))
    with lab.database.write() as session:
        repeat_the_measurement(session, busy)
    for number in range(20):
        lab.search(agent.device_id, f"new-{number}")
    with lab.database.write() as session:
        session.execute(text("ANALYZE"))
    query = search_rows_query(limit=21)
    with lab.database.read() as session:
        sources = [source for *_, source in session.execute(query)]
        assert sources == [None] * 20 + [Source.MEASURED]
        assert rows_read(session, query) < MEASURED / 5


def repeat_the_measurement(session: Session, search_id: str) -> None:
    """The one that there is, as if other tasks had given it."""
    columns: dict[type[Base], dict[str, Any]] = {}
    for kind in (TaskRow, MeasurementRow):
        (row,) = session.query(kind).all()
        columns[kind] = {column.key: getattr(row, column.key) for column in inspect(kind).column_attrs}
    names = [f"task_{number:06}" for number in range(MEASURED)]
    session.execute(insert(TaskRow), [{**columns[TaskRow], "id": name, "repeat": name} for name in names])
    session.execute(
        insert(MeasurementRow), [{**columns[MeasurementRow], "result_key": name, "task_id": name} for name in names]
    )
    session.execute(
        insert(SearchTaskRow), [{"search_id": search_id, "task_id": name, "shared": False} for name in names]
    )
