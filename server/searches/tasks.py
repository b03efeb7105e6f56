"""Which searches, and which drift checks, want which measuring tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import exists, select, update
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql import ColumnElement

from server.columns import now_s
from server.models import DriftCheckRow, SearchRow, SearchTaskRow, TaskRow
from server.states import JobState, TaskState
from server.upsert import insert_missing

_OVER = tuple(s for s in JobState if s.is_terminal)


def link_tasks(session: Session, search_id: str, shared: Mapping[str, bool]) -> None:
    """Note that a search wants these tasks, and whether each is shared; what was noted first stays."""
    rows = [{"search_id": search_id, "task_id": task_id, "shared": found} for task_id, found in shared.items()]
    insert_missing(session, SearchTaskRow, rows)


def cancel_unwanted_tasks(session: Session, search_id: str) -> None:
    """Cancel the waiting tasks of a search that is over, unless another open search wants them too.

    A task that is being measured goes on; its agent learns that nobody wants it when it renews the lease.
    """
    mine = select(SearchTaskRow.task_id).where(SearchTaskRow.search_id == search_id)
    _cancel(session, TaskRow.id.in_(mine))


def cancel_unwanted(session: Session, task_ids: Sequence[str]) -> None:
    """Cancel those of the tasks that wait although nothing open wants them."""
    if task_ids:
        _cancel(session, TaskRow.id.in_(task_ids))


def _cancel(session: Session, which: ColumnElement[bool]) -> None:
    session.execute(
        update(TaskRow)
        .where(which, TaskRow.state == TaskState.PENDING, ~_wanted())
        .values(state=TaskState.CANCELLED, finished_at=now_s())
        .execution_options(synchronize_session=False)
    )


def is_wanted(session: Session, task_id: str) -> bool:
    """Whether an open search or drift check wants the task."""
    return bool(session.scalar(select(exists().where(TaskRow.id == task_id, _wanted()))))


def _wanted() -> ColumnElement[bool]:
    link, search, check = aliased(SearchTaskRow), aliased(SearchRow), aliased(DriftCheckRow)
    by_search = exists().where(link.task_id == TaskRow.id, search.id == link.search_id, search.state.not_in(_OVER))
    return by_search | exists().where(check.id == TaskRow.repeat, check.finished_at.is_(None))
