"""Errors with an HTTP status, and their form on the wire: problem documents (RFC 9457).

    {"type": "tag:kerf,2026:problem:<code>", "title", "status", "detail", "code", "retryable", "errors"?: [...]}

`code` is stable and for programs; `detail` names the value and the remedy and is for people. `retryable` says
whether the same request may succeed later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

#: An identifier, as RFC 9457 section 3.1.1 allows: nothing has to answer there.
TYPE_PREFIX = "tag:kerf,2026:problem:"

#: Nobody reads more, and what a client sent is not sent back whole.
MAX_TEXT_CHARS = 8000
MAX_FIELD_ERRORS = 100


class ApiError(Exception):
    """What the caller did cannot be done. Subclasses fix the status; `code` tells the cases of one status apart."""

    status = 500
    code = "internal"
    retryable = False

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or type(self).code
        self.errors = tuple(errors)
        self.headers = dict(headers or {})


class BadRequest(ApiError):
    status, code = 400, "bad_request"


class Unauthorized(ApiError):
    status, code = 401, "unauthorized"


class Forbidden(ApiError):
    status, code = 403, "forbidden"


class NotFound(ApiError):
    status, code = 404, "not_found"


class Conflict(ApiError):
    status, code = 409, "conflict"


class PayloadTooLarge(ApiError):
    status, code = 413, "payload_too_large"


class Unprocessable(ApiError):
    """The request is well formed, but a value in it cannot be used."""

    status, code = 422, "invalid"


class TooManyRequests(ApiError):
    status, code, retryable = 429, "too_many_requests", True


class Unavailable(ApiError):
    status, code, retryable = 503, "unavailable", True


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldError:
    """One bad value: the path to it, and what is wrong with it."""

    field: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The body of every answer with a status of 400 and above."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    errors: tuple[FieldError, ...] = ()


def problem(
    status: int, code: str, detail: str, *, retryable: bool = False, errors: Sequence[Mapping[str, Any]] = ()
) -> Problem:
    return Problem(
        type=TYPE_PREFIX + code,
        title=HTTPStatus(status).phrase,
        status=status,
        detail=_shortened(detail),
        code=code,
        retryable=retryable,
        errors=tuple(
            FieldError(field=_shortened(str(e["field"])), message=_shortened(str(e["message"])))
            for e in errors[:MAX_FIELD_ERRORS]
        ),
    )


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARS else f"{text[:MAX_TEXT_CHARS]} ..."
