"""Commands against the app of a lab instead of a socket."""

from __future__ import annotations

import functools
from typing import Any

import httpx
import pytest

from kerf import Client
from server.cli import connection
from tests.unit.server.server_lab import ServerLab


def forward(lab: ServerLab, request: httpx.Request) -> httpx.Response:
    answer = lab.client.request(request.method, str(request.url), headers=dict(request.headers), content=request.read())
    return httpx.Response(answer.status_code, headers=dict(answer.headers), content=answer.content)


@pytest.fixture
def server(sqlite_lab: ServerLab, monkeypatch: pytest.MonkeyPatch) -> ServerLab:
    """Every command talks to the lab, as an admin."""
    transport = httpx.MockTransport(functools.partial(forward, sqlite_lab))

    def client(server: str | None, token: str | None, **options: Any) -> Client:
        address = server or "http://testserver"
        return Client(address, token or sqlite_lab.admin, transport=transport, max_attempts=1, **options)

    monkeypatch.setattr(connection, "Client", client)
    return sqlite_lab
