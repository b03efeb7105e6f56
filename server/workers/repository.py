"""Workers in SQL: each writes its own row, every few seconds, while it lives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from server.columns import now_s
from server.ids import new_id
from server.models import WorkerRow

#: How often a worker writes that it lives.
HEARTBEAT_INTERVAL_S = 10.0
#: Without a sign of life for so long, it is taken for dead: a worker under load is often late.
SILENT_AFTER_S = 60.0
#: Rows of workers that died without a word are kept so long, for whoever asks why.
FORGOTTEN_AFTER_S = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """A worker, and how long ago it wrote last."""

    row: WorkerRow
    silent_s: float

    @property
    def is_silent(self) -> bool:
        return self.silent_s > SILENT_AFTER_S


def enter_worker(session: Session, *, name: str, host: str, version: str) -> str:
    """Note a worker that begins; returns its identity. Those long dead are forgotten on the way."""
    session.execute(delete(WorkerRow).where(WorkerRow.heartbeat_at < now_s() - FORGOTTEN_AFTER_S))
    worker_id = new_id("worker")
    session.execute(insert(WorkerRow).values(id=worker_id, name=name, host=host, version=version))
    return worker_id


def beat(session: Session, worker_id: str, search_id: str | None) -> bool:
    """Note that a worker lives, and what it does; False where its row is gone."""
    result = session.execute(
        update(WorkerRow)
        .where(WorkerRow.id == worker_id)
        .values(heartbeat_at=now_s(), search_id=search_id)
        .returning(WorkerRow.id)
        .execution_options(synchronize_session=False)
    )
    return result.scalar_one_or_none() is not None


def leave_worker(session: Session, worker_id: str) -> None:
    """A worker ends in good order."""
    session.execute(delete(WorkerRow).where(WorkerRow.id == worker_id))


def list_workers(session: Session, *, after: str | None = None, limit: int) -> Sequence[WorkerStatus]:
    """Workers in the order of their start, the silent ones included."""
    query = select(WorkerRow, (now_s() - WorkerRow.heartbeat_at).label("silent_s")).order_by(WorkerRow.id).limit(limit)
    if after is not None:
        query = query.where(WorkerRow.id > after)
    return [WorkerStatus(row=row, silent_s=float(silent_s)) for row, silent_s in session.execute(query)]
