"""From exceptions to problem documents."""

from __future__ import annotations

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from server.database import is_away, is_full
from server.errors import ApiError
from server.failures import internal_problem
from server.wire import ProblemResponse

log = structlog.get_logger(__name__)

#: A locked or restarting database is back within seconds; agents add jitter of their own.
RETRY_AFTER_S = 2
#: Somebody has to make room on a full disk.
DISK_RETRY_AFTER_S = 10

_CODES = {400: "bad_request", 401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed"}


def install(app: FastAPI) -> None:
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(DataError, _unstorable)
    app.add_exception_handler(OverflowError, _unstorable)
    app.add_exception_handler(OperationalError, _database_away)
    app.add_exception_handler(DBAPIError, _database_error)
    app.add_exception_handler(PoolTimeout, _database_away)
    app.add_exception_handler(IntegrityError, _integrity_error)
    app.add_exception_handler(OSError, _system_error)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    # What middleware itself fails on; all else is `server.failures`.
    app.add_exception_handler(Exception, _internal)


def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    headers = dict(error.headers)
    if error.retryable:
        headers.setdefault("Retry-After", str(RETRY_AFTER_S))
    return ProblemResponse.of(
        error.status, error.code, error.detail, retryable=error.retryable, errors=error.errors, headers=headers
    )


def _validation_error(request: Request, error: Exception) -> Response:
    """Path, query and header values; bodies have their own check."""
    assert isinstance(error, RequestValidationError)
    errors = [
        {"field": ".".join(str(part) for part in e["loc"]), "message": f"{e['msg']}, not {e.get('input')!r}"}
        for e in error.errors()
    ]
    detail = "; ".join(f"{e['field']}: {e['message']}" for e in errors)
    return ProblemResponse.of(422, "invalid", detail, errors=errors)


def _http_exception(request: Request, error: Exception) -> Response:
    """What the framework raises itself: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    detail = f"{request.method} {request.url.path}: {error.detail}"
    code = _CODES.get(error.status_code, "http_error")
    return ProblemResponse.of(error.status_code, code, detail, headers=dict(error.headers or {}))


def _unstorable(request: Request, error: Exception) -> Response:
    """A number or a text that passed the checks, but does not fit its column."""
    log.info("unstorable_value", path=request.url.path, exc_info=error)
    return ProblemResponse.of(422, "invalid", "a value in the request is too large to be stored: shorten it")


def _integrity_error(request: Request, error: Exception) -> Response:
    """Two requests made the same thing at once, and this one lost: repeated, it finds the other's."""
    log.info("write_conflict", path=request.url.path, exc_info=error)
    return ProblemResponse.of(
        409, "write_conflict", "another request changed the same thing at the same time: repeat it", retryable=True
    )


def _database_away(request: Request, error: Exception) -> Response:
    log.warning("database_away", path=request.url.path, exc_info=error)
    return ProblemResponse.of(
        503,
        "unavailable",
        "the database does not answer: try again in a moment",
        retryable=True,
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )


def _database_error(request: Request, error: Exception) -> Response:
    """A connection that broke has a class of its own in each driver."""
    if is_away(error):
        return _database_away(request, error)
    log.error("request_failed", path=request.url.path, exc_info=error)
    return _internal(request, error)


def _system_error(request: Request, error: Exception) -> Response:
    if not is_full(error):
        log.error("request_failed", path=request.url.path, exc_info=error)
        return _internal(request, error)
    log.error("disk_full", path=request.url.path, error=str(error))
    return ProblemResponse.of(
        503,
        "disk_full",
        "the server's disk is full, so nothing can be stored: make room on it (KERF_DATA_DIR) and try again",
        retryable=True,
        headers={"Retry-After": str(DISK_RETRY_AFTER_S)},
    )


def _internal(request: Request, error: Exception) -> Response:
    return internal_problem()


def _client_gone(request: Request, error: Exception) -> Response:
    """Nobody reads it; without, it would count as a fault of ours."""
    return ProblemResponse.of(400, "bad_request", "the connection ended before the body did")
