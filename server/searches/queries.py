"""Search jobs as users make, read and steer them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from server.columns import now_s
from server.errors import Conflict, NotFound, Unprocessable
from server.ids import new_id
from server.models import CandidateRow, DocumentRow, EventRow, IdempotencyRow, SearchRow
from server.searches.repository import SearchEvent, append_events
from server.searches.tasks import cancel_unwanted_tasks
from server.searches.visibility import is_of
from server.states import JOB_TRANSITIONS, JobState
from server.upsert import insert_missing

#: How long a repeated POST with the same Idempotency-Key gives the same search.
IDEMPOTENCY_LIFETIME_S = 24 * 3600.0


def insert_search(
    session: Session, *, name: str, device_id: str, config: Mapping[str, Any], created_by: str
) -> SearchRow:
    search_id = new_id("search")
    session.execute(
        insert(SearchRow).values(
            id=search_id, name=name, device_id=device_id, config=dict(config), created_by=created_by
        )
    )
    append_events(session, search_id, [SearchEvent(kind="state", data={"state": JobState.PENDING.value})])
    return get_search(session, search_id)


def get_search(session: Session, search_id: str, *, lock: bool = False) -> SearchRow:
    """Raises `NotFound`."""
    query = select(SearchRow).where(SearchRow.id == search_id).execution_options(populate_existing=True)
    row = session.scalars(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFound(f"there is no search {search_id!r}: GET /v1/searches lists them")
    return row


def device_ids(row: SearchRow) -> tuple[str, ...]:
    """The devices of a search, in the order of its config."""
    return tuple(row.config.get("devices") or (row.device_id,))


def list_searches(
    session: Session, *, before: str | None, limit: int, state: JobState | None = None, owner: str | None = None
) -> Sequence[SearchRow]:
    """Searches (of one user), the newest first; `before` is the last one of the page before."""
    query = select(SearchRow).where(is_of(owner)).order_by(SearchRow.id.desc()).limit(limit)
    if before is not None:
        query = query.where(SearchRow.id < before)
    if state is not None:
        query = query.where(SearchRow.state == state)
    return session.scalars(query).all()


def steer(session: Session, search_id: str, targets: Mapping[JobState, JobState], verb: str) -> SearchRow:
    """Move a search to `targets[its state]`; one that is there already stays.

    Raises `NotFound`, and `Conflict` where the state allows no such thing.
    """
    row = get_search(session, search_id, lock=True)
    target = targets.get(row.state)
    if target is None:
        raise Conflict(f"search {search_id} is {row.state.value}: it cannot be {verb}", code="illegal_transition")
    if target is row.state:
        return row
    assert target in JOB_TRANSITIONS[row.state], f"{row.state} -> {target} is no transition"
    session.execute(
        update(SearchRow)
        .where(SearchRow.id == search_id)
        .values(state=target, **({"finished_at": now_s()} if target.is_terminal else {}))
        .execution_options(synchronize_session=False)
    )
    append_events(session, search_id, [SearchEvent(kind="state", data={"state": target.value})])
    if target.is_terminal:
        cancel_unwanted_tasks(session, search_id)
    return get_search(session, search_id)


PAUSE: Mapping[JobState, JobState] = {
    JobState.PENDING: JobState.PAUSED,
    JobState.RUNNING: JobState.PAUSING,
    JobState.PAUSING: JobState.PAUSING,
    JobState.PAUSED: JobState.PAUSED,
}
RESUME: Mapping[JobState, JobState] = {
    JobState.PAUSED: JobState.PENDING,
    JobState.PENDING: JobState.PENDING,
    JobState.RUNNING: JobState.RUNNING,
}
CANCEL: Mapping[JobState, JobState] = {
    JobState.PENDING: JobState.CANCELLED,
    JobState.PAUSED: JobState.CANCELLED,
    JobState.RUNNING: JobState.CANCELLING,
    JobState.PAUSING: JobState.CANCELLING,
    JobState.CANCELLING: JobState.CANCELLING,
    JobState.CANCELLED: JobState.CANCELLED,
}


#: What a user can do with a search: the states it leads to, and what was done in words.
STEERING: Mapping[str, tuple[Mapping[JobState, JobState], str]] = {
    "pause": (PAUSE, "paused"),
    "resume": (RESUME, "resumed"),
    "cancel": (CANCEL, "cancelled"),
}


def list_candidates(session: Session, search_id: str, *, after: str | None, limit: int) -> Sequence[CandidateRow]:
    """Candidates in the order of their identity."""
    query = (
        select(CandidateRow).where(CandidateRow.search_id == search_id).order_by(CandidateRow.candidate_id).limit(limit)
    )
    if after is not None:
        query = query.where(CandidateRow.candidate_id > after)
    return session.scalars(query).all()


def find_document(session: Session, search_id: str, name: str) -> tuple[str, str] | None:
    """(SHA-256, text) of a document."""
    row = session.execute(
        select(DocumentRow.sha256, DocumentRow.text).where(DocumentRow.search_id == search_id, DocumentRow.name == name)
    ).one_or_none()
    return None if row is None else (row.sha256, row.text)


def events_after(session: Session, search_id: str, seq: int, limit: int) -> Sequence[EventRow]:
    return session.scalars(
        select(EventRow).where(EventRow.search_id == search_id, EventRow.seq > seq).order_by(EventRow.seq).limit(limit)
    ).all()


def claim_idempotency_key(
    session: Session, *, principal: str, key: str, request_sha256: str, resource_id: str
) -> str | None:
    """Bind a key to what is about to be made; returns what it is bound to already, if so.

    Two requests with one key at once: the second waits here until the first is committed. Raises `Unprocessable` for
    another request under the same key.
    """
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < now_s() - IDEMPOTENCY_LIFETIME_S))
    row = {"principal": principal, "key": key, "request_sha256": request_sha256, "resource_id": resource_id}
    insert_missing(session, IdempotencyRow, [row])
    stored = find_idempotency_key(session, principal, key, request_sha256)
    return None if stored == resource_id else stored


def find_idempotency_key(session: Session, principal: str, key: str, request_sha256: str) -> str | None:
    """What a key is bound to. Raises `Unprocessable` where that was another request."""
    stored = session.execute(
        select(IdempotencyRow.request_sha256, IdempotencyRow.resource_id).where(
            IdempotencyRow.principal == principal,
            IdempotencyRow.key == key,
            IdempotencyRow.created_at > now_s() - IDEMPOTENCY_LIFETIME_S,
        )
    ).one_or_none()
    if stored is None:
        return None
    if stored.request_sha256 != request_sha256:
        raise Unprocessable(
            f"the Idempotency-Key {key!r} was used for another request: take a new key", code="idempotency_key_reused"
        )
    return str(stored.resource_id)
