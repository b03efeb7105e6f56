"""The command line talking to the lab's app instead of a socket."""

from __future__ import annotations

from types import ModuleType

import httpx
import pytest

from server.client import KerfClient
from tests.unit.server.server_lab import ServerLab


def serve(lab: ServerLab, monkeypatch: pytest.MonkeyPatch, *commands: ModuleType) -> ServerLab:
    """Let the `connect` of these modules of commands give clients of `lab`."""

    def forward(request: httpx.Request) -> httpx.Response:
        answer = lab.client.request(
            request.method, str(request.url), headers=dict(request.headers), content=request.read()
        )
        return httpx.Response(answer.status_code, headers=dict(answer.headers), content=answer.content)

    def connect(server: str | None, token: str | None) -> KerfClient:
        client = KerfClient("http://testserver", lab.user)
        headers = client._http.headers
        client.close()
        client._http = httpx.Client(
            base_url="http://testserver", headers=headers, transport=httpx.MockTransport(forward)
        )
        return client

    for module in commands:
        monkeypatch.setattr(module, "connect", connect)
    return lab
