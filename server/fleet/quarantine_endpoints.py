"""/v1/quarantine: what took its devices down, and is not tried again."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Response

from device_agent.contracts import FailureReason
from server.context import Admin, ContextDep, Reader
from server.errors import BadRequest
from server.fleet.quarantine import GroupKey, Quarantined, list_quarantined, pardon
from server.wire import (
    DEFAULT_PAGE,
    PROBLEMS,
    ContractResponse,
    Limit,
    Page,
    answer,
    decode_cursor,
    iso,
    page,
    page_answer,
)

router = APIRouter(prefix="/v1", tags=["devices"], responses=PROBLEMS)

#: Between the parts of a cursor: in no identity or version.
_SEPARATOR = "\x1f"


@dataclass(frozen=True, slots=True, kw_only=True)
class CasualtyView:
    """A device on which all attempts failed: how many, and what the last one told."""

    device_id: str
    device_name: str
    failures: int
    reason: FailureReason
    detail: str
    finished_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineView:
    """A kernel or network (`subject`) that one version of a runtime does not survive. Where `is_everywhere`, no device
    with that runtime is asked to measure it; else only those among its casualties are not.
    """

    subject: str
    kernel_id: str | None
    artifact_sha256: str | None
    runtime: str
    runtime_version: str
    runtime_sha256: str
    is_everywhere: bool
    casualties: tuple[CasualtyView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pardon:
    """How many tasks no longer count against the subject."""

    subject: str
    tasks: int


@router.get("/quarantine", responses=page_answer(QuarantineView))
def get_quarantine(
    context: ContextDep, principal: Reader, cursor: str | None = None, limit: Limit = DEFAULT_PAGE
) -> Response:
    """Kernels and networks that took their process or device down in every attempt."""
    with context.database.read() as session:
        found = list_quarantined(session, after=_place(cursor), limit=limit + 1)
    rows = page(found, limit, key=lambda item: _SEPARATOR.join(item.key))
    return ContractResponse(Page(items=tuple(_view(item) for item in rows.items), next=rows.next))


@router.post("/quarantine/{subject}:pardon", responses=answer(Pardon))
def pardon_subject(subject: str, context: ContextDep, principal: Admin) -> Response:
    """Let a kernel or network be tried again on every device. 404: it is not in quarantine."""
    with context.database.write() as session:
        tasks = pardon(session, subject)
    return ContractResponse(Pardon(subject=subject, tasks=tasks))


def _place(cursor: str | None) -> GroupKey | None:
    text = decode_cursor(cursor)
    if text is None:
        return None
    parts = text.split(_SEPARATOR)
    if len(parts) != 4:
        raise BadRequest(f"cursor {cursor!r} is not one of this list: leave it out to begin at the start")
    return parts[0], parts[1], parts[2], parts[3]


def _view(item: Quarantined) -> QuarantineView:
    subject, runtime, version, sha256 = item.key
    return QuarantineView(
        subject=subject,
        kernel_id=item.kernel_id,
        artifact_sha256=item.artifact_sha256,
        runtime=runtime,
        runtime_version=version,
        runtime_sha256=sha256,
        is_everywhere=item.is_everywhere,
        casualties=tuple(
            CasualtyView(
                device_id=c.device_id,
                device_name=c.device_name,
                failures=c.failures,
                reason=c.reason,
                detail=c.detail,
                finished_at=iso(c.finished_at),
            )
            for c in item.casualties
        ),
    )
