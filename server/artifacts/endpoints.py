"""/v1/artifacts: upload and download by SHA-256."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from server.accounts.service import Principal
from server.artifacts.repository import insert_artifact, is_for_device
from server.artifacts.store import Upload, check_digest
from server.artifacts.visibility import is_visible
from server.context import ArtifactReader, ArtifactWriter, Context, ContextDep
from server.errors import NotFound
from server.searches.visibility import sees_only
from server.wire import PROBLEMS

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"], responses=PROBLEMS)

#: Written in one go in a thread, so that neither the event loop nor the memory of the process suffers.
_BUFFER_BYTES = 1 << 20

_BINARY = {"schema": {"type": "string", "format": "binary"}}


@router.put(
    "/sha256/{digest}",
    status_code=201,
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": _BINARY}}},
    responses={200: {"description": "It was there already"}, 201: {"description": "Stored"}},
)
async def put_artifact(digest: str, request: Request, context: ContextDep, principal: ArtifactWriter) -> Response:
    """Store the body under its SHA-256. Sending it again is harmless."""
    # What another user sent is received and checked like something new: a hash alone shows nothing and opens nothing.
    if await run_in_threadpool(_is_stored, context, digest, principal):
        return Response(status_code=200)
    with context.store.upload(context.settings.max_artifact_bytes) as upload:
        await _receive(request, upload)
        await run_in_threadpool(upload.commit, digest)
        size_bytes = upload.size_bytes
    await run_in_threadpool(_register, context, digest, size_bytes, principal)
    return Response(status_code=201, headers={"Location": f"/v1/artifacts/sha256/{digest}"})


@router.get(
    "/sha256/{digest}",
    response_class=FileResponse,
    responses={
        200: {"content": {"application/octet-stream": _BINARY}, "description": "The file"},
        206: {"description": "A part of the file"},
        304: {"description": "The client has it"},
        416: {"description": "The file is shorter"},
    },
)
def get_artifact(
    digest: str,
    context: ContextDep,
    principal: ArtifactReader,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The file with this SHA-256. Range, If-Range and If-None-Match are understood; the content never changes."""
    check_digest(digest)
    with context.database.read() as session:
        # An agent reads what its tasks need, and learns nothing about the rest.
        if principal.device_id is not None:
            known = is_for_device(session, digest, principal.device_id)
        else:
            known = is_visible(session, digest, sees_only(context.settings, principal))
    path = context.store.path(digest) if known else None
    if path is None or not path.is_file():
        raise NotFound(f"there is no artifact {digest}: upload it with PUT")
    headers = {"ETag": f'"{digest}"', "Cache-Control": "private, max-age=31536000, immutable"}
    if if_none_match is not None and _matches(if_none_match, digest):
        return Response(status_code=304, headers=headers)
    return FileResponse(path, headers=headers, media_type="application/octet-stream")


@router.head("/sha256/{digest}", responses={200: {"description": "It is stored"}})
def head_artifact(digest: str, context: ContextDep, principal: ArtifactReader) -> Response:
    """Whether an artifact is stored, and how large it is."""
    return get_artifact(digest, context, principal)


def _matches(if_none_match: str, digest: str) -> bool:
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in tags or f'"{digest}"' in tags


async def _receive(request: Request, upload: Upload) -> None:
    buffer = bytearray()
    async for part in request.stream():
        buffer += part
        if len(buffer) >= _BUFFER_BYTES:
            await run_in_threadpool(upload.write, bytes(buffer))
            buffer.clear()
    await run_in_threadpool(upload.write, bytes(buffer))


def _is_stored(context: Context, digest: str, principal: Principal) -> bool:
    check_digest(digest)
    with context.database.read() as session:
        is_known = is_visible(session, digest, sees_only(context.settings, principal))
    return is_known and context.store.has(digest)


def _register(context: Context, digest: str, size_bytes: int, principal: Principal) -> None:
    with context.database.write() as session:
        insert_artifact(session, sha256=digest, size_bytes=size_bytes, created_by=principal.token_id)
