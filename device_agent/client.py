"""The server's endpoints, one method each, and no policy: loops decide what a failure means for them.

Every method raises `TryAgainLater` or `RequestRefused` (see `device_agent.retry`), and every call has a timeout: a
server that accepts a connection and then says nothing must not hang a device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

import httpx

from device_agent import __version__
from device_agent.contracts import (
    ContractError,
    EnrolmentAnswer,
    EnrolmentRequest,
    HeartbeatAnswer,
    HeartbeatRequest,
    LeaseRequest,
    ReceivedLeases,
    RenewAnswer,
    RenewRequest,
    ReportAnswer,
    ReportBatch,
    dumps,
    loads_answer,
    read_leases,
)
from device_agent.errors import LeaseLost, RequestRefused, TryAgainLater
from device_agent.retry import error_of
from device_agent.settings import is_loopback

Answer = TypeVar("Answer")

CONNECT_TIMEOUT_S = 10.0
#: The server answers everything but a long poll within a second; fifteen allow for a slow radio link.
ANSWER_TIMEOUT_S = 15.0
#: How long after its promised end a long poll may still answer.
LONG_POLL_GRACE_S = 10.0
_CHUNK_BYTES = 1 << 16


class ServerClient:
    """A connection pool to one server. Safe to use from several threads; close it when done."""

    def __init__(self, server_url: str, token: str | None = None) -> None:
        headers = {"user-agent": f"kerf-agent/{__version__}", "accept": "application/json"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        self._http = httpx.Client(
            base_url=server_url,
            headers=headers,
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=4, max_keepalive_connections=2),
            # Loading the certificate store takes 2 MiB and, on a small board, a second: only where it is used.
            verify=server_url.startswith("https:"),
            # A proxy cannot reach this machine's own loopback interface. Over TLS the environment also says whom to
            # trust (SSL_CERT_FILE).
            trust_env=server_url.startswith("https:") or not is_loopback(server_url),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def enrol(self, request: EnrolmentRequest) -> EnrolmentAnswer:
        """Introduce this agent and get its token. Repeating it is harmless."""
        return self._exchange("/v1/agents:enrol", request, EnrolmentAnswer)

    def heartbeat(self, request: HeartbeatRequest) -> HeartbeatAnswer:
        """Say that this agent lives."""
        return self._exchange("/v1/agents:heartbeat", request, HeartbeatAnswer)

    def lease(self, request: LeaseRequest) -> ReceivedLeases:
        """Ask for tasks, waiting up to `request.wait_s` for the first one."""
        timeout = httpx.Timeout(
            request.wait_s + LONG_POLL_GRACE_S, connect=CONNECT_TIMEOUT_S, write=ANSWER_TIMEOUT_S, pool=ANSWER_TIMEOUT_S
        )
        response = self._post("/v1/leases", request, timeout)
        return ReceivedLeases(leases=()) if response.status_code == 204 else _read(read_leases, response)

    def renew(self, lease_id: str, attempt: int) -> RenewAnswer:
        """Keep a lease. Raises `LeaseLost` where it is no longer this agent's."""
        with _lease_errors():
            return self._exchange(f"/v1/leases/{lease_id}:renew", RenewRequest(attempt=attempt), RenewAnswer)

    def release(self, lease_id: str, attempt: int) -> None:
        """Give a lease back unused. Raises `LeaseLost` where it is no longer this agent's."""
        with _lease_errors():
            self._post(f"/v1/leases/{lease_id}:release", RenewRequest(attempt=attempt))

    def report(self, batch: ReportBatch) -> ReportAnswer:
        """Hand over results. Repeating it is harmless."""
        return self._exchange("/v1/reports", batch, ReportAnswer)

    @contextmanager
    def artifact(self, sha256: str, offset: int = 0) -> Iterator[tuple[int, Iterator[bytes]]]:
        """The bytes of an artifact from `offset` on, as (first offset that is sent, chunks).

        A server that does not know ranges sends it from the start, and says so by the offset 0.
        """
        headers = {"accept": "application/octet-stream", "accept-encoding": "identity"}
        if offset:
            headers["range"] = f"bytes={offset}-"
        try:
            with self._http.stream("GET", f"/v1/artifacts/sha256/{sha256}", headers=headers) as response:
                if not response.is_success:
                    response.read()
                    _raise_for(response)
                yield (offset if response.status_code == 206 else 0), response.iter_bytes(_CHUNK_BYTES)
        except httpx.TransportError as error:
            raise _unreachable(error) from error

    def _exchange(self, path: str, body: object, answer: type[Answer]) -> Answer:
        return _decoded(answer, self._post(path, body))

    def _post(self, path: str, body: object, timeout: httpx.Timeout | None = None) -> httpx.Response:
        try:
            response = self._http.post(
                path,
                content=dumps(body).encode(),
                headers={"content-type": "application/json"},
                timeout=timeout if timeout is not None else self._http.timeout,
            )
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _unreachable(error) from error
        _raise_for(response)
        return response


def _raise_for(response: httpx.Response) -> None:
    error = error_of(response)
    if error is not None:
        raise error


def _decoded(answer: type[Answer], response: httpx.Response) -> Answer:
    return _read(functools.partial(loads_answer, answer), response)


def _read(reader: Callable[[bytes], Answer], response: httpx.Response) -> Answer:
    try:
        return reader(response.content)
    except ContractError as error:
        # Not our server's words: a captive portal or a proxy answered 200 in its place.
        raise TryAgainLater(f"{response.request.url.path}: HTTP {response.status_code}, but {error}") from None


def _unreachable(error: httpx.HTTPError) -> TryAgainLater:
    return TryAgainLater(f"the server cannot be reached: {type(error).__name__}: {error}")


@contextmanager
def _lease_errors() -> Iterator[None]:
    """A lease that is unknown (404), gone (410) or another attempt's (409) is lost."""
    try:
        yield
    except RequestRefused as error:
        if error.status in (404, 409, 410):
            raise LeaseLost(str(error), status=error.status, code=error.code) from None
        raise
