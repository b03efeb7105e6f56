"""What can go wrong between a client and a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx


class KerfError(Exception):
    """Whatever goes wrong in this package. The text says what, and what to do."""


class NotConfigured(KerfError):
    """There is no token, or something that is needed here is not installed."""


class ServerUnavailable(KerfError):
    """The server could not be reached. Check its address, and that it runs (`kerf up`)."""


class DamagedDownload(KerfError):
    """What arrived is not what the server has under that hash."""


class SearchEnded(KerfError):
    """A search ended without a result. The text is the server's reason."""


class ApiError(KerfError):
    """The server refused a request: its problem document (RFC 9457).

    Attributes:
        status: HTTP status.
        code: What is wrong, stable and for programs.
        detail: What is wrong and what to do, for people.
        retryable: Whether the same request may succeed later.
        errors: `{"field", "message"}` of each bad value.
    """

    def __init__(self, status: int, title: str, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.detail = str(problem.get("detail") or "")
        self.code = str(problem.get("code") or "")
        self.retryable = bool(problem.get("retryable"))
        self.errors: Sequence[Mapping[str, str]] = problem.get("errors") or ()
        super().__init__(f"{title}: {self.detail}" if self.detail else title)


class BadRequest(ApiError):
    """400: the request cannot be read."""


class Unauthorized(ApiError):
    """401: no valid token."""


class Forbidden(ApiError):
    """403: the token does not allow this."""


class NotFound(ApiError):
    """404: there is no such thing."""


class Conflict(ApiError):
    """409: it is not in a state for this."""


class PayloadTooLarge(ApiError):
    """413: more than the server takes at once."""


class Unprocessable(ApiError):
    """422: a value cannot be used; `errors` names it."""


class ServerFailed(ApiError):
    """5xx: the server could not do it."""


_BY_STATUS: Mapping[int, type[ApiError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: PayloadTooLarge,
    422: Unprocessable,
}


def error_of(response: httpx.Response) -> ApiError:
    """The error that a response of status 400 and above stands for. Its body must have been read."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {}  # a proxy's page, say
    status = response.status_code
    kind = _BY_STATUS.get(status, ServerFailed if status >= 500 else ApiError)
    return kind(status, str(problem.get("title") or f"the server answered {status}"), problem)
