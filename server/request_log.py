"""An identity for each request, in every log line about it and in its answer; one line for each that is worth it."""

from __future__ import annotations

import re
import secrets
import time
from typing import Any

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.accounts.service import Principal
from server.counters import Counters

log = structlog.get_logger(__name__)

HEADER = "X-Request-ID"
_WELL_FORMED = re.compile(rb"[\w.-]{1,64}", re.ASCII)

#: Asked every few seconds by every device and probe: logged only where they fail, counted always.
ROUTINE = frozenset(
    {"/healthz", "/readyz", "/metrics", "/v1/agents:heartbeat", "/v1/leases", "/v1/leases/{lease_id}:renew"}
)
#: They wait on purpose: their time says nothing.
WAITING = frozenset({"/v1/leases", "/v1/searches/{search_id}/events", "/live", "/live/searches/{search_id}"})

#: What a path names, and what log lines call it.
_NAMED = ("search_id", "device_id", "lease_id", "series_id", "token_id", "candidate_id", "sha256", "digest")


class RequestLog:
    """ASGI middleware: binds `request_id`, taken from `X-Request-ID` where a proxy sent one, and logs and counts."""

    def __init__(self, app: ASGIApp, counters: Counters) -> None:
        self._app = app
        self._counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})
        began, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception:
                status = 500
                raise
            finally:
                self._note(scope, status, time.perf_counter() - began)

    def _note(self, scope: Scope, status: int, duration_s: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "PUT") else "other"
        # 0: whoever asked was gone before the answer.
        self._counters.requests.labels(method, route, str(status)).inc()
        if route not in WAITING:
            self._counters.duration.labels(route).observe(duration_s)
        if route in ROUTINE and 0 < status < 400:
            return
        found: dict[str, Any] = {name: value for name, value in scope.get("path_params", {}).items() if name in _NAMED}
        principal: Principal | None = scope["state"].get("principal")
        if principal is not None:
            found["token_id"] = principal.token_id
            if principal.device_id is not None:
                found["agent_id"] = principal.device_id
        log.info("request", method=method, route=route, status=status, duration_ms=round(1000 * duration_s, 1), **found)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _WELL_FORMED.fullmatch(value):
            return str(value.decode("ascii"))
    return secrets.token_hex(8)
