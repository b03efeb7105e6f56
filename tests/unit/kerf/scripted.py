"""Both kinds of clients against a server that answers as it is told."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest

import kerf
from kerf import backends

#: Status, headers and body of an answer; or what goes wrong on the way.
Answer = tuple[int, dict[str, str], bytes] | httpx.TransportError


def json_answer(status: int, text: str) -> Answer:
    return status, {"Content-Type": "application/json"}, text.encode()


class Script:
    """Answers requests from a list. What was asked, and for how long the client slept, is remembered."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.sleeps_s: list[float] = []

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, httpx.TransportError):
            raise answer
        status, headers, body = answer
        return httpx.Response(status, headers=headers, content=body)

    def sync_sleep(self, seconds: float) -> None:
        self.sleeps_s.append(seconds)

    async def async_sleep(self, seconds: float) -> None:
        self.sleeps_s.append(seconds)

    async def handle_async(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        return self.handle(request)

    @property
    def asked(self) -> list[tuple[str, str]]:
        return [(request.method, request.url.raw_path.decode()) for request in self.requests]


def both(
    monkeypatch: pytest.MonkeyPatch, answers: Sequence[Answer], call: Callable[[Any], Any], **options: Any
) -> tuple[Any, Script]:
    """What `call(client)` gives or raises with either client, and what it asked the server: it must be the same.

    A coroutine is awaited, and an iterator listed.
    """
    scripts = Script(answers), Script(answers)
    monkeypatch.setattr(backends.time, "sleep", scripts[0].sync_sleep)
    found = _outcome(lambda: _sync(scripts[0], call, options))
    monkeypatch.setattr(backends.asyncio, "sleep", scripts[1].async_sleep)
    awaited = _outcome(lambda: asyncio.run(_async(scripts[1], call, options)))
    assert scripts[0].asked == scripts[1].asked
    assert len(scripts[0].sleeps_s) == len(scripts[1].sleeps_s)
    if isinstance(found, Exception):
        assert (type(found), str(found)) == (type(awaited), str(awaited))
        raise found
    assert type(found) is type(awaited) or (not inspect.isclass(found) and "Search" in type(found).__name__)
    return found, scripts[0]


def _outcome(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except Exception as error:
        return error


def _sync(script: Script, call: Callable[[Any], Any], options: Any) -> Any:
    transport = httpx.MockTransport(script.handle)
    with kerf.Client("http://server", "token", transport=transport, **options) as client:
        found = call(client)
        return list(found) if inspect.isgenerator(found) else found


async def _async(script: Script, call: Callable[[Any], Any], options: Any) -> Any:
    transport = httpx.MockTransport(script.handle_async)
    async with kerf.AsyncClient("http://server", "token", transport=transport, **options) as client:
        found = call(client)
        if inspect.isasyncgen(found):
            return [item async for item in found]
        return await found
