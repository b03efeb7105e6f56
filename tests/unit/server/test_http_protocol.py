"""What comes before a body has a bound, over real connections: no token is needed to send it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import uvicorn

from kerf.local import is_loopback
from server.cli import processes
from server.http_protocol import MAX_HEAD_BYTES, BoundedHttpProtocol
from server.settings import Settings

#: What a socket takes at once, and the server may read at once, beyond the bound.
MOST_TAKEN = MAX_HEAD_BYTES + (8 << 20)


async def echo_length(scope: Any, receive: Any, send: Any) -> None:
    """Answers with how long the body was."""
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message["body"]), message.get("more_body", False)
    content = str(length).encode()
    headers = [(b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(echo_length, http=BoundedHttpProtocol, ws="none", lifespan="off", log_level="critical")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
        thread.start()
        yield int(listening.getsockname()[1])
        server.should_exit = True
        thread.join()


def exchange(port: int, *parts: bytes) -> bytes:
    """What the server says to these bytes, until it closes the connection."""
    said = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        try:
            for part in parts:
                connection.sendall(part)
        except ConnectionError:
            pass
        try:
            while data := connection.recv(1 << 16):
                said += data
        except ConnectionError:
            pass
    return said


CHUNKED = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("before", "endless"),
    [
        (b"GET /", b"a"),
        (b"GET / HTTP/1.1\r\nX: ", b"a"),
        (b"GET / HTTP/1.1\r\n", b"X: a\r\n"),
        (CHUNKED + b"1;", b"a"),
        (CHUNKED + b"1\r\na\r\n0\r\n", b"X: a\r\n"),
    ],
    ids=["address", "header", "headers", "extension of a chunk", "trailers"],
)
def test_what_never_ends_is_ended(port: int, before: bytes, endless: bytes) -> None:
    part = endless * ((64 << 10) // len(endless))
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(before)
        with suppress(ConnectionError):
            while sent < MOST_TAKEN:
                connection.sendall(part)
                sent += len(part)
    assert sent < MOST_TAKEN


def test_it_says_why(port: int) -> None:
    head = b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * MAX_HEAD_BYTES
    assert exchange(port, head, b"a").startswith(b"HTTP/1.1 431 ")


def test_usual_heads_and_any_body_pass(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX: " + b"a" * 30_000 + b"\r\n"
    size = 20 * MAX_HEAD_BYTES
    assert exchange(port, head + b"Content-Length: %d\r\n\r\n" % size, b"b" * size).endswith(b"\r\n\r\n%d" % size)
    chunks = b"%x\r\n%s\r\n" % (1000, b"c" * 1000) * 300 + b"0\r\n\r\n"
    assert exchange(port, head + b"Transfer-Encoding: chunked\r\n\r\n", chunks).endswith(b"\r\n\r\n300000")


def test_a_connection_is_used_as_often_as_one_likes(port: int) -> None:
    request = b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 20_000 + b"\r\n"
    last = request + b"Connection: close\r\n\r\n"
    assert exchange(port, *[request + b"\r\n"] * 8, last).count(b"HTTP/1.1 200") == 9


def test_the_server_is_started_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, Any] = {}
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: started.update(options))
    processes.server()
    assert (started["http"], started["ws"]) == (BoundedHttpProtocol, "none")
    # Nobody else reaches it before somebody says so.
    assert is_loopback(started["host"])
    assert is_loopback(Settings().host)
