"""Bodies in and out. The contract dataclasses are the bodies; they are checked and written by their own codec.

Pydantic would take "5" for 5 and ignore unknown keys; `device_agent.contracts.decode` refuses both, and names the
field. OpenAPI still shows the schemas: see `server.openapi`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from device_agent.contracts import ContractError, decode, dumps
from server.errors import BadRequest, PayloadTooLarge, Problem, Unprocessable, problem

T = TypeVar("T")

MAX_PAGE = 500
DEFAULT_PAGE = 50
#: The `limit` of a list.
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]

#: Of JSON: about 10 ms of work.
LARGE_BODY_BYTES = 256 << 10
#: Far more than a batch of reports has, whose agents send up to 2 MiB at once.
MAX_CONTAINERS = 500_000
#: Likewise of values and names: each takes the checks some microseconds.
MAX_VALUES = 1_000_000

#: Declared on all routes: any of them can be sent nonsense.
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": description,
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for status, description in {
        400: "The request cannot be read",
        401: "No valid token",
        403: "The token does not allow this",
        404: "There is no such thing",
        409: "It is not in a state for this",
        413: "Too large",
        422: "A value cannot be used; `errors` names it",
        429: "Too many requests: wait for as many seconds as Retry-After says",
        503: "Try again in a moment",
    }.items()
}


class ContractResponse(Response):
    """A contract value, or anything made of such, as JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dumps(content).encode()


class ProblemResponse(Response):
    media_type = "application/problem+json"

    def __init__(self, value: Problem, headers: dict[str, str] | None = None) -> None:
        super().__init__(dumps(value).encode(), status_code=value.status, headers=headers)

    @classmethod
    def of(cls, status: int, code: str, detail: str, **kwargs: Any) -> ProblemResponse:
        headers = kwargs.pop("headers", None)
        return cls(problem(status, code, detail, **kwargs), headers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """One page of a list. `next` is the `cursor` of the following one; None on the last."""

    items: tuple[T, ...]
    next: str | None = None


def page(rows: Sequence[T], limit: int, key: Callable[[T], str]) -> Page[T]:
    """A page from up to `limit` + 1 rows: the surplus one tells that there is more."""
    items = tuple(rows[:limit])
    return Page(items=items, next=encode_cursor(key(items[-1])) if len(rows) > limit else None)


def encode_cursor(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> str | None:
    """The key behind a cursor. Raises `BadRequest` for one that we did not make."""
    if cursor is None:
        return None
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise BadRequest(f"cursor {cursor!r} is not one of ours: leave it out to begin at the start") from None


def iso(time_s: float | None) -> str | None:
    """Seconds since 1970 as an RFC 3339 time, which is what people and spreadsheets read."""
    if time_s is None:
        return None
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def body_of(cls: type[T], *, max_bytes: int | None = None) -> Callable[[Request], Coroutine[Any, Any, T]]:
    """A dependency that reads the body as `cls`: of up to `max_bytes`, and never more than `max_body_bytes`."""

    async def read(request: Request) -> T:
        return await _read(request, max_bytes, lambda raw: checked(cls, _parsed(raw)))

    return read


def body_schema(name: str) -> dict[str, Any]:
    """`openapi_extra` for a route whose body is the contract class `name`."""
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def answer(cls: type, description: str = "Done", status: int = 200) -> dict[int | str, dict[str, Any]]:
    """`responses` for a route that answers with the contract class `cls`."""
    schema = {"$ref": f"#/components/schemas/{cls.__name__}"}
    return {status: {"description": description, "content": {"application/json": {"schema": schema}}}}


def page_answer(cls: type) -> dict[int | str, dict[str, Any]]:
    """`responses` for a route that answers with a page of the contract class `cls`."""
    items = {"type": "array", "items": {"$ref": f"#/components/schemas/{cls.__name__}"}}
    schema = {
        "type": "object",
        "properties": {"items": items, "next": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
        "required": ["items", "next"],
    }
    return {200: {"description": "One page", "content": {"application/json": {"schema": schema}}}}


def checked(cls: type[T], data: object) -> T:
    """Decode, turning a `ContractError` into a 422 that names the field."""
    try:
        return decode(cls, data)
    except ContractError as error:
        raise unprocessable(error) from None


def unprocessable(error: ContractError) -> Unprocessable:
    """A 422 from a contract error, whose text begins with the path of the bad value."""
    path, separator, message = str(error).partition(": ")
    if not separator or not re.fullmatch(r"[\w.\[\]-]+", path):
        path, message = "", str(error)
    return Unprocessable(str(error), errors=[{"field": path, "message": message}])


async def read_json(request: Request) -> object:
    """The body as JSON data. Raises `BadRequest`, or `PayloadTooLarge`."""
    return await _read(request, None, _parsed)


async def _read(request: Request, max_bytes: int | None, use: Callable[[bytes], T]) -> T:
    """What `use` makes of the body: a large one in a thread, as all other requests would wait for it."""
    limit = request.app.state.context.settings.max_body_bytes
    raw = await _read_limited(request, limit if max_bytes is None else min(limit, max_bytes))
    return use(raw) if len(raw) <= LARGE_BODY_BYTES else await run_in_threadpool(use, raw)


def _parsed(raw: bytes) -> object:
    # Nobody is served while the parser runs, and millions of lists take it seconds. Signs in texts count, too.
    if raw.count(b"[") + raw.count(b"{") > MAX_CONTAINERS:
        raise PayloadTooLarge(f"the body has more than {MAX_CONTAINERS} lists and objects: send less at once")
    if raw.count(b",") > MAX_VALUES:
        raise PayloadTooLarge(f"the body has more than {MAX_VALUES} values: send less at once")
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}", code="malformed_json") from None
    # Neither can be stored: PostgreSQL has no NUL in texts, and half a surrogate pair is no Unicode.
    if b"\\u0000" in raw or (re.search(rb"\\u[dD][89a-fA-F]", raw) and not _is_unicode(data)):
        raise BadRequest("the body holds a NUL or half a surrogate pair: send valid Unicode", code="malformed_json")
    return data


def _is_unicode(data: object) -> bool:
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


async def _read_limited(request: Request, limit: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise PayloadTooLarge(f"the body is larger than {limit} bytes: send less at once")
        parts.append(part)
    return b"".join(parts)
