"""/v1/searches."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from server.context import ContextDep, Reader, SearchWriter
from server.errors import NotFound
from server.models import CandidateRow, SearchRow
from server.searches import queries, service
from server.searches.effort import measuring_efforts
from server.searches.repository import LATENCY_TABLE, RESOLVED_CONFIG, RESULT, SEARCHED_FRONT, device_document
from server.searches.schemas import CandidateView, SearchView, candidate_view, search_view
from server.searches.visibility import check_visible, sees_only
from server.states import JobState
from server.wire import (
    DEFAULT_PAGE,
    PROBLEMS,
    ContractResponse,
    Limit,
    Page,
    answer,
    body_schema,
    decode_cursor,
    page,
    page_answer,
    read_json,
)

router = APIRouter(prefix="/v1/searches", tags=["searches"], responses=PROBLEMS, dependencies=[Depends(check_visible)])


@router.post("", status_code=201, openapi_extra=body_schema("SearchConfig"), responses=answer(SearchView, status=201))
def create_search(
    context: ContextDep,
    principal: SearchWriter,
    data: Annotated[object, Depends(read_json)],
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Response:
    """Submit a search. With an Idempotency-Key, repeating the request for a day gives the same search (status 200)."""
    row, is_new = service.create_search(context, data, principal=principal, idempotency_key=idempotency_key)
    with context.database.read() as session:
        view = search_view(row, measuring_efforts(session, row.id))
    return ContractResponse(view, status_code=201 if is_new else 200, headers={"Location": f"/v1/searches/{row.id}"})


@router.get("", responses=page_answer(SearchView))
def list_searches(
    context: ContextDep,
    principal: Reader,
    cursor: str | None = None,
    limit: Limit = DEFAULT_PAGE,
    state: JobState | None = None,
) -> Response:
    """Searches, the newest first."""
    owner = sees_only(context.settings, principal)
    with context.database.read() as session:
        rows = queries.list_searches(session, before=decode_cursor(cursor), limit=limit + 1, state=state, owner=owner)
    part = page(rows, limit, key=lambda row: row.id)
    return ContractResponse(Page(items=tuple(search_view(row) for row in part.items), next=part.next))


@router.get("/{search_id}", responses=answer(SearchView))
def get_search(search_id: str, context: ContextDep, principal: Reader) -> Response:
    with context.database.read() as session:
        return _with_effort(session, queries.get_search(session, search_id))


@router.post("/{search_id}:pause", responses=answer(SearchView))
def pause_search(search_id: str, context: ContextDep, principal: SearchWriter) -> Response:
    """Stop after the step in hand; the search can go on later."""
    with context.database.write() as session:
        return _with_effort(session, queries.steer(session, search_id, queries.PAUSE, "paused"))


@router.post("/{search_id}:resume", responses=answer(SearchView))
def resume_search(search_id: str, context: ContextDep, principal: SearchWriter) -> Response:
    """Let a paused search go on."""
    with context.database.write() as session:
        return _with_effort(session, queries.steer(session, search_id, queries.RESUME, "resumed"))


@router.post("/{search_id}:cancel", responses=answer(SearchView))
def cancel_search(search_id: str, context: ContextDep, principal: SearchWriter) -> Response:
    """End the search. What was measured stays in the latency database."""
    with context.database.write() as session:
        return _with_effort(session, queries.steer(session, search_id, queries.CANCEL, "cancelled"))


@router.get("/{search_id}/candidates", responses=page_answer(CandidateView))
def list_candidates(
    search_id: str, context: ContextDep, principal: Reader, cursor: str | None = None, limit: Limit = DEFAULT_PAGE
) -> Response:
    """All candidates that were evaluated, in the order of their identity."""
    with context.database.read() as session:
        queries.get_search(session, search_id)
        rows = queries.list_candidates(session, search_id, after=decode_cursor(cursor), limit=limit + 1)
    part = page(rows, limit, key=lambda row: row.candidate_id)
    return ContractResponse(Page(items=tuple(candidate_view(row) for row in part.items), next=part.next))


@router.get("/{search_id}/candidates/{candidate_id}", responses=answer(CandidateView))
def get_candidate(search_id: str, candidate_id: str, context: ContextDep, principal: Reader) -> Response:
    with context.database.read() as session:
        row = session.get(CandidateRow, (search_id, candidate_id))
    if row is None:
        raise NotFound(f"search {search_id!r} has no candidate {candidate_id!r}")
    return ContractResponse(candidate_view(row))


@router.get("/{search_id}/front", responses=page_answer(CandidateView))
def get_front(search_id: str, context: ContextDep, principal: Reader) -> Response:
    """The Pareto front as it stands: `{"items": [candidates]}`."""
    with context.database.read() as session:
        queries.get_search(session, search_id)
        rows = session.scalars(
            select(CandidateRow)
            .where(CandidateRow.search_id == search_id, CandidateRow.on_front)
            .order_by(CandidateRow.candidate_id)
        ).all()
    return ContractResponse(Page(items=tuple(candidate_view(row) for row in rows)))


@router.get("/{search_id}/config")
def get_config(search_id: str, request: Request, context: ContextDep, principal: Reader) -> Response:
    """The resolved config, with every default spelled out, as the search used it."""
    return _document(search_id, RESOLVED_CONFIG, request, context)


@router.get("/{search_id}/latency-table")
def get_latency_table(
    search_id: str, request: Request, context: ContextDep, principal: Reader, device: str | None = None
) -> Response:
    """The latency table that the search used, byte for byte: of the device with the id `device`, else of its first."""
    name = LATENCY_TABLE
    if device is not None:
        with context.database.read() as session:
            known = queries.device_ids(queries.get_search(session, search_id))
        if device not in known:
            raise NotFound(f"search {search_id!r} has no device {device!r}: it has {', '.join(known)}")
        name = device_document(LATENCY_TABLE, device, known)
    return _document(search_id, name, request, context)


@router.get("/{search_id}/searched-front")
def get_searched_front(search_id: str, request: Request, context: ContextDep, principal: Reader) -> Response:
    """The front as the search found it, before training: equal for equal seeds and latency tables, byte for byte."""
    return _document(search_id, SEARCHED_FRONT, request, context)


@router.get("/{search_id}/result")
def get_result(search_id: str, request: Request, context: ContextDep, principal: Reader) -> Response:
    """The result, once the search is complete."""
    return _document(search_id, RESULT, request, context)


def _with_effort(session: Session, row: SearchRow) -> Response:
    return ContractResponse(search_view(row, measuring_efforts(session, row.id)))


def _document(search_id: str, name: str, request: Request, context: ContextDep) -> Response:
    with context.database.read() as session:
        row = queries.get_search(session, search_id)
        document = queries.find_document(session, search_id, name)
    if document is None:
        ended = row.state.is_terminal
        raise NotFound(
            f"search {search_id} has no {name}{'' if ended else ' yet'}: it is {row.state.value}, in stage "
            f"{row.stage.value}",
            code="not_ready",
        )
    sha256, text = document
    headers = {"ETag": f'"{sha256}"', "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == f'"{sha256}"':
        return Response(status_code=304, headers=headers)
    return Response(text.encode(), media_type="application/json", headers=headers)
