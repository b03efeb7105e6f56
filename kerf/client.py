"""`Client` and `AsyncClient`: one server, as one user."""

from __future__ import annotations

from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from kerf.backends import AsyncBackend, SyncBackend
from kerf.files import OnTransfer
from kerf.local import is_loopback, server_address, user_token
from kerf.profiles import with_profile
from kerf.resources.artifacts import Artifacts, AsyncArtifacts
from kerf.resources.datasets import AsyncDatasets, Datasets
from kerf.resources.devices import AsyncDevices, Devices
from kerf.resources.latency import AsyncLatencyDatabase, LatencyDatabase
from kerf.resources.models import AsyncModels, Models
from kerf.resources.searches import AsyncSearches, Searches
from kerf.resources.status import AsyncStatus, Status
from kerf.resources.tokens import AsyncTokens, Tokens
from kerf.resources.workers import AsyncWorkers, Workers
from kerf.retries import MAX_ATTEMPTS
from kerf.session import Session

#: No single answer takes longer than this but the streams, which send a sign of life more often.
TIMEOUT_S = 30.0


class _AnyClient:
    """What both clients say of themselves."""

    _http: httpx.Client | httpx.AsyncClient

    @property
    def server(self) -> str:
        """The server's address."""
        return str(self._http.base_url).rstrip("/")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.server}>"


class Client(_AnyClient):
    """Talks to one server as one user. Close it, or use it as a context manager.

    Without `server` and `token` the environment (`KERF_SERVER`, `KERF_TOKEN`) says them, or else the profile of
    `kerf auth login` (`KERF_PROFILE` names another than the current one), or else it is the server that
    `kerf up` runs on this machine, whose token goes to no other. A request that fails on the way is repeated up to
    `max_attempts` times where that is harmless. `on_transfer` is told how far files are that are sent and fetched, see
    `kerf.files.OnTransfer`. `transport` is one of httpx, for proxies and tests.
    """

    _http: httpx.Client

    def __init__(
        self,
        server: str | None = None,
        token: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        max_attempts: int = MAX_ATTEMPTS,
        on_transfer: OnTransfer | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(**_options(server, token, timeout_s), transport=transport)
        session = Session(SyncBackend(self._http), max_attempts, on_transfer)
        self.searches = Searches(session)
        self.devices = Devices(session)
        self.latency = LatencyDatabase(session)
        self.models = Models(session)
        self.datasets = Datasets(session)
        self.artifacts = Artifacts(session)
        self.tokens = Tokens(session)
        self.workers = Workers(session)
        self.status = Status(session)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()


class AsyncClient(_AnyClient):
    """`Client` for `await`: the same resources and methods, each of which is a coroutine."""

    _http: httpx.AsyncClient

    def __init__(
        self,
        server: str | None = None,
        token: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        max_attempts: int = MAX_ATTEMPTS,
        on_transfer: OnTransfer | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(**_options(server, token, timeout_s), transport=transport)
        session = Session(AsyncBackend(self._http), max_attempts, on_transfer)
        self.searches = AsyncSearches(session)
        self.devices = AsyncDevices(session)
        self.latency = AsyncLatencyDatabase(session)
        self.models = AsyncModels(session)
        self.datasets = AsyncDatasets(session)
        self.artifacts = AsyncArtifacts(session)
        self.tokens = AsyncTokens(session)
        self.workers = AsyncWorkers(session)
        self.status = AsyncStatus(session)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()


def _options(server: str | None, token: str | None, timeout_s: float) -> dict[str, Any]:
    server, token = with_profile(server, token)
    address = server_address(server)
    return {
        "base_url": address,
        "headers": {"Authorization": f"Bearer {user_token(token, address)}"},
        "timeout": timeout_s,
        # A proxy cannot reach this machine's own loopback interface, and has no business with its token. Over TLS the
        # environment also says whom to trust (SSL_CERT_FILE).
        "trust_env": address.startswith("https:") or not is_loopback(urlsplit(address).hostname or ""),
    }
