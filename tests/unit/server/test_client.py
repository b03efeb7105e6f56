"""The client against a server that fails in scripted ways."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from server import client as client_module
from server.client import ClientError, KerfClient, ServerUnavailable

Answer = tuple[int, dict[str, str], bytes]


class Script:
    """Answers requests from a list and remembers what was asked."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []

    def next(self, method: str, path: str, headers: dict[str, str]) -> Answer:
        self.requests.append((method, path, headers))
        return self.answers.pop(0)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    monkeypatch.setattr(client_module.time, "sleep", lambda _: None)
    return Script()


@pytest.fixture
def client(script: Script) -> Iterator[KerfClient]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.rfile.read(length)
            status, headers, body = script.next(self.command, self.path, dict(self.headers))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_POST = do_HEAD = do_PUT = _answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with KerfClient(f"http://127.0.0.1:{server.server_address[1]}", "token") as made:
        yield made
    server.shutdown()
    server.server_close()


def json_answer(status: int, text: str) -> Answer:
    return status, {"Content-Type": "application/json"}, text.encode()


def test_an_answer_that_asks_to_come_back_is_repeated(client: KerfClient, script: Script) -> None:
    script.answers = [(503, {"Retry-After": "1"}, b""), json_answer(200, '{"id": "s"}')]
    assert client.search("s") == {"id": "s"}
    assert [r[1] for r in script.requests] == ["/v1/searches/s"] * 2
    assert script.requests[0][2]["Authorization"] == "Bearer token"


def test_a_problem_document_becomes_the_error(client: KerfClient, script: Script) -> None:
    script.answers = [json_answer(422, '{"title": "Unprocessable", "detail": "config.name is empty: name it"}')]
    with pytest.raises(ClientError, match=r"config\.name is empty: name it") as caught:
        client.submit_search({}, "key")
    assert caught.value.status == 422
    assert script.requests[0][2]["Idempotency-Key"] == "key"


def test_a_server_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module.time, "sleep", lambda _: None)
    with KerfClient("http://127.0.0.1:9", None) as client, pytest.raises(ServerUnavailable, match=r"127\.0\.0\.1:9"):
        client.search("s")


def event(number: int, data: str, kind: str = "progress") -> str:
    return f"id: {number}\nevent: {kind}\ndata: {data}\n\n"


def test_events_go_on_where_the_connection_broke(client: KerfClient, script: Script) -> None:
    stream = {"Content-Type": "text/event-stream"}
    first = event(1, '{"n": 1}') + ": comment\n\n" + event(2, '{"n": 2}')
    second = event(3, '{"n": 3}') + event(3, "{}", kind="end")
    script.answers = [(200, stream, first.encode()), (200, stream, second.encode())]
    assert [e["n"] for e in client.events("s")] == [1, 2, 3]
    assert "Last-Event-ID" not in script.requests[0][2]
    assert script.requests[1][2]["Last-Event-ID"] == "2"


def test_a_file_that_the_server_has_is_not_sent_again(client: KerfClient, script: Script, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    script.answers = [(200, {}, b"")]
    digest = client.upload_artifact(path)
    assert digest == hashlib.sha256(b"content").hexdigest()
    assert [r[0] for r in script.requests] == ["HEAD"]
    script.answers = [(404, {}, b""), (201, {}, b"")]
    client.upload_artifact(path)
    assert [r[0] for r in script.requests] == ["HEAD", "HEAD", "PUT"]


def test_a_damaged_download_leaves_no_file(client: KerfClient, script: Script, tmp_path: Path) -> None:
    script.answers = [(200, {}, b"damaged")]
    with pytest.raises(ClientError, match="damaged"):
        client.download_artifact("0" * 64, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
