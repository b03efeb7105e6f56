"""What the endpoints share, and how they get it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials

from server.accounts.service import Principal, Scope, authenticate
from server.accounts.tokens import SecretHasher
from server.artifacts.store import ArtifactStore
from server.counters import Counters
from server.database import Database
from server.errors import Forbidden, TooManyRequests, Unauthorized
from server.fleet.unknown_reports import UnknownReports
from server.fleet.waiting import LeaseWaiters
from server.rates import RateLimit
from server.settings import Settings
from server.streams import OpenStreams, SharedReads, Stream

#: Browsers cannot add a header to an event stream or a page: they send the token in this cookie, for reading only.
TOKEN_COOKIE = "kerf_token"

_bearer = HTTPBearer(auto_error=False, description="A token such as kerf_u_... or, for an agent, kerf_a_...")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One running application. `stopping` is set when the process is asked to end, before connections close."""

    settings: Settings
    database: Database
    hasher: SecretHasher
    store: ArtifactStore
    waiters: LeaseWaiters
    stopping: asyncio.Event
    requests: RateLimit
    failed_sign_ins: RateLimit
    streams: OpenStreams
    counters: Counters
    unknown_reports: UnknownReports
    shared_reads: SharedReads = field(default_factory=SharedReads)
    #: What runs beside the requests, until `stopping`.
    background: list[asyncio.Task[None]] = field(default_factory=list)


# What waits for nothing is `async`: anything else would cost a hop to a thread in each request.
async def get_context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


ContextDep = Annotated[Context, Depends(get_context)]


def get_principal(
    request: Request,
    context: ContextDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Principal:
    """Whose request this is. Raises `Unauthorized`, or `TooManyRequests`."""
    token = credentials.credentials if credentials else None
    if token is None and request.method in ("GET", "HEAD"):
        token = request.cookies.get(TOKEN_COOKIE)
    if token is None:
        raise Unauthorized("send a token: 'Authorization: Bearer kerf_u_...'", headers={"WWW-Authenticate": "Bearer"})
    return admitted(request, context, token)


def admitted(request: Request, context: Context, token: str, *, counts_failure: bool = True) -> Principal:
    """Whose token a request brings. Raises `Unauthorized`, or `TooManyRequests`: every way in counts here."""
    try:
        principal = authenticate(context.database, context.hasher, token)
    except Unauthorized:
        if counts_failure:
            count_failure(request, context)
        raise
    request.state.principal = principal
    if (wait_s := context.requests.take(principal.token_id)) is not None:
        most = context.settings.max_requests_per_minute
        raise TooManyRequests(
            f"this token made more than {most} requests in a minute: slow down",
            headers={"Retry-After": str(wait_s)},
        )
    return principal


@contextmanager
def streaming(request: Request, context: Context) -> Iterator[Stream]:
    """The stream that answers a request whose sender is known by now. Raises `TooManyRequests`."""
    principal: Principal | None = getattr(request.state, "principal", None)
    token_id = None if principal is None else principal.token_id
    with context.streams.one(token_id):
        yield Stream(context.database, context.stopping, token_id)


def count_failure(request: Request, context: Context) -> None:
    """Note that somebody sent a wrong secret. Raises `TooManyRequests` where that was too often."""
    address = "" if request.client is None else request.client.host
    if (wait_s := context.failed_sign_ins.take(address)) is not None:
        raise TooManyRequests(
            f"{address} sent too many wrong tokens or codes: wait {wait_s} s",
            code="too_many_failures",
            headers={"Retry-After": str(wait_s)},
        )


PrincipalDep = Annotated[Principal, Depends(get_principal)]


def require(*scopes: Scope) -> Callable[[Principal], Coroutine[Any, Any, Principal]]:
    """A dependency: the principal, who must have one of `scopes`. Raises `Forbidden`."""

    async def check(principal: PrincipalDep) -> Principal:
        if not any(principal.may(scope) for scope in scopes):
            needed = " or ".join(repr(s.value) for s in scopes)
            raise Forbidden(f"this needs the scope {needed}; the token has {sorted(s.value for s in principal.scopes)}")
        return principal

    return check


Reader = Annotated[Principal, Depends(require(Scope.READ))]
SearchWriter = Annotated[Principal, Depends(require(Scope.SEARCHES_WRITE))]
ArtifactReader = Annotated[Principal, Depends(require(Scope.READ, Scope.AGENT))]
ArtifactWriter = Annotated[Principal, Depends(require(Scope.ARTIFACTS_WRITE))]
Admin = Annotated[Principal, Depends(require(Scope.ADMIN))]
Agent = Annotated[Principal, Depends(require(Scope.AGENT))]
