"""What no handler expects: a fault of ours. Answered like everything else, and told in the log with its request.

The framework's own place for it is outside of all middleware: its answers have no headers of ours, and the traceback
that uvicorn then writes has no request's identity.
"""

from __future__ import annotations

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.wire import ProblemResponse

log = structlog.get_logger(__name__)


def internal_problem() -> ProblemResponse:
    """The answer to a request that the server failed on. It gives nothing away."""
    return ProblemResponse.of(
        500, "internal", "the server failed on this request: its log has the reason", retryable=True
    )


class Failures:
    """ASGI middleware, the innermost: logs what nobody caught as `request_failed`, and answers with 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def send_noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = has_begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except Exception as error:
            log.error("request_failed", path=scope["path"], exc_info=error)
            if has_begun:
                # An answer that breaks off must not look whole: the connection is cut.
                raise
            await internal_problem()(scope, receive, send)
