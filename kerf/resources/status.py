"""/healthz, /readyz and /v1/version."""

from __future__ import annotations

from kerf.errors import ApiError, ServerUnavailable
from kerf.operations import Request, operation, procedure
from kerf.resources.base import AsyncBound, Bound, SyncBound
from kerf.schemas import Health, Version

#: A server that is well answers at once.
PROBE_TIMEOUT_S = 2.0


class StatusOperations(Bound):
    """How the server is. These are asked once: who asks wants to know about now."""

    @operation("GET", "/healthz")
    def health(self) -> Request[Health]:
        """Whether the process answers."""
        return Request(max_attempts=1, timeout_s=PROBE_TIMEOUT_S)

    @operation("GET", "/readyz")
    def ready(self) -> Request[Health]:
        """Whether requests can be served. Raises `ServerFailed` with the reason where not."""
        return Request(max_attempts=1, timeout_s=PROBE_TIMEOUT_S)

    @operation("GET", "/v1/version")
    def version(self) -> Request[Version]:
        """Versions of the server, of the agents' messages, and of the database's schema."""
        return Request()

    @procedure
    async def is_ready(self) -> bool:
        """Whether the server answers and can serve requests."""
        try:
            await self.session.call(StatusOperations.ready.prepare())
        except (ApiError, ServerUnavailable):
            return False
        return True


class Status(StatusOperations, SyncBound):
    pass


class AsyncStatus(StatusOperations, AsyncBound):
    pass
