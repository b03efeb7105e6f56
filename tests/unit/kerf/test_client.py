"""The clients against servers that fail in scripted ways."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import kerf
from tests.unit.kerf.scripted import Answer, both, json_answer

STREAM = {"Content-Type": "text/event-stream"}


def test_an_answer_that_asks_to_come_back_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(503, {"Retry-After": "7"}, b""), httpx.ReadError("gone"), json_answer(200, '{"id": "s"}')]
    found, script = both(monkeypatch, answers, lambda client: client.searches.get("s"))
    assert found == {"id": "s"}
    assert script.asked == [("GET", "/v1/searches/s")] * 3
    assert script.requests[0].headers["Authorization"] == "Bearer token"
    assert script.sleeps_s[0] == 7.0
    assert 0.0 <= script.sleeps_s[1] <= 0.4


@pytest.mark.parametrize(
    ("answer", "repeats"),
    [
        ((503, {}, b""), False),
        (httpx.ReadError("gone"), False),
        (httpx.ConnectError("refused"), True),
        ((429, {"Retry-After": "1"}, b""), True),
    ],
)
def test_what_might_be_done_twice_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, answer: Answer, repeats: bool
) -> None:
    """A second enrolment code, or a second token, would be one that nobody knows of."""
    answers = [answer, json_answer(201, '{"code": "c"}')]
    if repeats:
        found, _ = both(monkeypatch, answers, lambda client: client.devices.create_enrolment_code())
        assert found == {"code": "c"}
    else:
        with pytest.raises((kerf.ServerFailed, kerf.ServerUnavailable)):
            both(monkeypatch, answers, lambda client: client.devices.create_enrolment_code())


def test_a_search_is_submitted_with_a_key_that_makes_repeating_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [httpx.ReadError("gone"), json_answer(201, '{"id": "s", "name": "n", "state": "pending"}')]
    search, script = both(monkeypatch, answers, lambda client: client.searches.submit({"name": "n"}))
    assert search.id == "s"
    assert "pending" in repr(search)
    keys = [request.headers["Idempotency-Key"] for request in script.requests]
    assert keys[0] == keys[1]
    assert len(keys[0]) > 20
    _, script = both(monkeypatch, answers[1:], lambda client: client.searches.create({}, idempotency_key="mine"))
    assert script.requests[0].headers["Idempotency-Key"] == "mine"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, kerf.BadRequest),
        (401, kerf.Unauthorized),
        (403, kerf.Forbidden),
        (404, kerf.NotFound),
        (409, kerf.Conflict),
        (413, kerf.PayloadTooLarge),
        (422, kerf.Unprocessable),
        (500, kerf.ServerFailed),
        (418, kerf.ApiError),
    ],
)
def test_a_problem_document_becomes_the_error(
    monkeypatch: pytest.MonkeyPatch, status: int, error: type[kerf.ApiError]
) -> None:
    field = {"field": "config.name", "message": "is empty"}
    problem = {"title": "No", "detail": "config.name is empty: name it", "code": "invalid", "errors": [field]}
    with pytest.raises(error, match=r"No: config\.name is empty: name it") as caught:
        both(monkeypatch, [json_answer(status, json.dumps(problem))], lambda client: client.searches.create({}))
    assert (caught.value.status, caught.value.code, caught.value.errors) == (status, "invalid", [field])


@pytest.mark.parametrize("body", [b"<html>", b"[]", b""])
def test_an_error_page_of_a_proxy_is_an_error_too(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    with pytest.raises(kerf.ServerFailed, match="the server answered 502"):
        both(monkeypatch, [(502, {}, body)], lambda client: client.searches.get("s"), max_attempts=1)


def test_a_server_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [httpx.ConnectError("refused")] * 8
    with pytest.raises(kerf.ServerUnavailable, match=r"http://server.*refused"):
        both(monkeypatch, answers, lambda client: client.searches.get("s"))
    ready, script = both(monkeypatch, answers, lambda client: client.status.is_ready())
    assert not ready
    assert script.asked == [("GET", "/readyz")]


def test_a_list_is_read_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [json_answer(200, '{"items": [{"id": "a"}, {"id": "b"}], "next": "b"}')]
    pages.append(json_answer(200, '{"items": [{"id": "c"}], "next": "c"}'))
    found, script = both(monkeypatch, pages, lambda client: client.latency.list(limit=3, op="conv2d", device=None))
    assert [item["id"] for item in found] == ["a", "b", "c"]
    assert found.next == "c"
    assert script.asked[0] == ("GET", "/v1/latencies?op=conv2d&limit=3")
    assert script.asked[1] == ("GET", "/v1/latencies?op=conv2d&limit=1&cursor=b")


def event(number: int, data: dict[str, Any], kind: str = "progress") -> str:
    return f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"


def test_events_go_on_where_the_connection_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    first = event(1, {"n": 1}) + ": comment\n\n" + event(2, {"n": 2}) + "id: 9\ndata: {half"
    second = 'id: 3\ndata: {"n":\ndata: 3}\n\n' + event(3, {}, kind="end") + event(4, {"n": 4})
    answers = [
        (200, STREAM, first.encode()),
        httpx.ReadError("gone"),
        (503, {}, b""),
        (200, STREAM, second.encode()),
    ]
    found, script = both(monkeypatch, answers, lambda client: client.searches.events("s"))
    assert [item["n"] for item in found] == [1, 2, 3]
    assert "Last-Event-ID" not in script.requests[0].headers
    assert [request.headers["Last-Event-ID"] for request in script.requests[1:]] == ["2"] * 3
    with pytest.raises(kerf.NotFound, match="no search"):
        both(monkeypatch, [json_answer(404, '{"title": "no search"}')], lambda client: client.searches.events("s"))


def search_view(state: str, error: str | None = None) -> Answer:
    return json_answer(200, json.dumps({"id": "s", "name": "n", "state": state, "error": error}))


def wait_for(client: Any, seen: list[Any]) -> Any:
    if isinstance(client, kerf.Client):
        return client.searches.open("s").wait(progress=seen.append)

    async def awaited() -> Any:
        search = await client.searches.open("s")
        return await search.wait(progress=seen.append)

    return awaited()


def test_waiting_follows_the_events_and_tells_how_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = (200, STREAM, (event(1, {"kind": "stage"}) + event(2, {}, kind="end")).encode())
    seen: list[Any] = []
    search, _ = both(
        monkeypatch,
        [search_view("running"), stream, search_view("completed")],
        lambda client: wait_for(client, seen),
    )
    assert search.state == "completed"
    assert seen == [{"kind": "stage"}] * 2
    with pytest.raises(kerf.SearchEnded, match="search s failed: the device went away"):
        both(
            monkeypatch,
            [search_view("running"), stream, search_view("failed", "the device went away")],
            lambda client: wait_for(client, seen),
        )


def test_a_file_that_the_server_has_is_not_sent_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    digest, script = both(monkeypatch, [(200, {}, b"")], lambda client: client.artifacts.upload(path))
    assert digest == hashlib.sha256(b"content").hexdigest()
    assert [method for method, _ in script.asked] == ["HEAD"]
    answers: list[Answer] = [(404, {}, b""), httpx.ReadError("gone"), (201, {}, b"")]
    _, script = both(monkeypatch, answers, lambda client: client.artifacts.upload(path))
    assert [method for method, _ in script.asked] == ["HEAD", "PUT", "PUT"]
    assert script.requests[2].headers["Content-Length"] == "7"
    assert script.requests[2].content == b"content" or script.requests[2].read() == b"content"


def test_a_download_appears_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target = tmp_path / "file"
    digest = hashlib.sha256(b"content").hexdigest()
    for answers, error in (
        ([(200, {}, b"damaged")], kerf.DamagedDownload),
        ([json_answer(404, "{}")], kerf.NotFound),
    ):
        with pytest.raises(error):
            both(monkeypatch, answers, lambda client: client.artifacts.download(digest, target))
        assert list(tmp_path.iterdir()) == []
    good: list[Answer] = [httpx.ReadError("gone"), (200, {}, b"content")]
    both(monkeypatch, good, lambda client: client.artifacts.download(digest, target))
    assert target.read_bytes() == b"content"
    assert list(tmp_path.iterdir()) == [target]


def test_how_far_files_are_is_told_for_each_attempt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"x" * (3 << 19))  # A part and a half.
    told: list[Any] = []

    @contextmanager
    def on_transfer(name: str, size_bytes: int | None) -> Iterator[Callable[[int], None]]:
        told.append((name, size_bytes))
        yield told.append
        told.append("end")

    def call(client: Any) -> Any:
        told.clear()
        return client.artifacts.upload(source)

    both(monkeypatch, [(404, {}, b""), (201, {}, b"")], call, on_transfer=on_transfer)
    assert told == [("source", 3 << 19), 1 << 20, 1 << 19, "end"]

    def fetch(client: Any) -> Any:
        told.clear()
        return client.artifacts.download(hashlib.sha256(b"content").hexdigest(), target)

    answers: list[Answer] = [(503, {"Retry-After": "0"}, b""), (200, {"Content-Length": "7"}, b"content")]
    both(monkeypatch, answers, fetch, on_transfer=on_transfer)
    assert told == [("target", 7), 7, "end"]
    packed = gzip.compress(b"content")
    headers = {"Content-Encoding": "gzip", "Content-Length": str(len(packed))}
    both(monkeypatch, [(200, headers, packed)], fetch, on_transfer=on_transfer)
    assert told == [("target", None), 7, "end"]


def test_identities_in_addresses_are_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    _, script = both(monkeypatch, [json_answer(200, "{}")], lambda client: client.devices.get("a/b ?c"))
    assert script.asked == [("GET", "/v1/devices/a%2Fb%20%3Fc")]


@pytest.mark.parametrize(
    "address", ["nonsense", "board:8321", "ftp://board", "http://", "http://board:port", "http://board:0"]
)
def test_what_is_no_address_of_a_server_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    with pytest.raises(kerf.NotConfigured, match=r"is not a server's address: give one such as http://127.*--server"):
        kerf.Client(address, "kerf_u_token")
    monkeypatch.setenv("KERF_SERVER", address)
    with pytest.raises(kerf.NotConfigured, match="is not a server's address"):
        kerf.Client(token="kerf_u_token")


def test_where_the_server_is_and_who_asks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KERF_SERVER", "KERF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KERF_DATA_DIR", str(tmp_path))
    with pytest.raises(kerf.NotConfigured, match=r"no token for .*KERF_TOKEN.*--server, KERF_SERVER.*kerf up"):
        kerf.Client()
    (tmp_path / "user.token").write_text("kerf_u_local\n")
    with kerf.Client() as client:
        assert client.server == "http://127.0.0.1:8321"
        assert client._http.headers["Authorization"] == "Bearer kerf_u_local"
    for started, asked in (
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("http://0.0.0.0:9000", "http://127.0.0.1:9000"),
        ("http://[::]:9000", "http://[::1]:9000"),
        ("", "http://127.0.0.1:8321"),
    ):
        (tmp_path / "server.url").write_text(f"{started}\n")
        with kerf.Client() as client:
            assert client.server == asked
            assert client._http.headers["Authorization"] == "Bearer kerf_u_local"
    monkeypatch.setenv("KERF_SERVER", "http://elsewhere:1/")
    monkeypatch.setenv("KERF_TOKEN", "kerf_u_env")
    with kerf.Client() as client:
        assert repr(client) == "<Client of http://elsewhere:1>"
        assert client._http.headers["Authorization"] == "Bearer kerf_u_env"


@pytest.mark.parametrize(
    ("started", "asked", "is_given"),
    [
        ("http://127.0.0.1:8321", "http://localhost:8321", True),
        ("http://127.0.0.1:8321", "http://[::1]:8321/", True),
        ("http://0.0.0.0:9000", "http://127.0.0.1:9000", True),
        ("http://192.0.2.1:8321", "http://192.0.2.1:8321", True),
        ("http://127.0.0.1:8321", "http://127.0.0.1:9000", False),
        ("http://127.0.0.1:8321", "https://127.0.0.1:8321", False),
        ("http://0.0.0.0:8321", "http://192.0.2.1:8321", False),
        ("http://127.0.0.1:8321", "http://evil.example:8321", False),
        ("http://127.0.0.1:8321", "http://127.0.0.1.evil.example:8321", False),
        ("http://127.0.0.1:8321", "http://127.0.0.1:8321@evil.example", False),
        ("http://127.0.0.1:port", "http://127.0.0.1:8321", False),
    ],
)
def test_the_local_token_goes_to_the_local_server_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, started: str, asked: str, is_given: bool
) -> None:
    monkeypatch.delenv("KERF_TOKEN", raising=False)
    monkeypatch.setenv("KERF_DATA_DIR", str(tmp_path))
    (tmp_path / "user.token").write_text("kerf_u_local\n")
    (tmp_path / "server.url").write_text(f"{started}\n")
    if is_given:
        with kerf.Client(asked) as client:
            assert client._http.headers["Authorization"] == "Bearer kerf_u_local"
    else:
        with pytest.raises(kerf.NotConfigured, match="goes nowhere else"):
            kerf.Client(asked)
        with pytest.raises(kerf.NotConfigured, match="goes nowhere else"):
            kerf.AsyncClient(asked)


def test_no_proxy_sees_what_is_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    with kerf.Client("http://127.0.0.1:8321", "kerf_u_x") as client:
        assert client._http._trust_env is False
    with kerf.Client("http://kerf.example", "kerf_u_x") as client:
        assert client._http._trust_env is True
