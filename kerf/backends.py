"""The two ways to talk HTTP: waiting, and with `await`. Nothing else of the client exists twice.

The coroutines of `SyncBackend` wait inside and never suspend, so that `finish` can run what is built on them to its end
without an event loop: also in a notebook, where one is running already.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, Protocol, TypeVar

import httpx

T = TypeVar("T")


class Backend(Protocol):
    """What a session needs of HTTP. Responses come with their body unread, for `read`, `parts` or `lines`."""

    @property
    def http(self) -> httpx.Client | httpx.AsyncClient: ...

    def body(self, parts: Iterator[bytes]) -> Any:
        """`parts` in the form in which httpx takes a body."""

    async def send(self, request: httpx.Request) -> httpx.Response: ...

    async def read(self, response: httpx.Response) -> None: ...

    def parts(self, response: httpx.Response) -> AsyncIterator[bytes]: ...

    def lines(self, response: httpx.Response) -> AsyncIterator[str]: ...

    async def close(self, response: httpx.Response) -> None: ...

    async def sleep(self, seconds: float) -> None: ...


class SyncBackend:
    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def body(self, parts: Iterator[bytes]) -> Any:
        return parts

    async def send(self, request: httpx.Request) -> httpx.Response:
        return self.http.send(request, stream=True)

    async def read(self, response: httpx.Response) -> None:
        response.read()

    def parts(self, response: httpx.Response) -> AsyncIterator[bytes]:
        return _never_suspending(response.iter_bytes())

    def lines(self, response: httpx.Response) -> AsyncIterator[str]:
        return _never_suspending(response.iter_lines())

    async def close(self, response: httpx.Response) -> None:
        response.close()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class AsyncBackend:
    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    def body(self, parts: Iterator[bytes]) -> Any:
        return _never_suspending(parts)

    async def send(self, request: httpx.Request) -> httpx.Response:
        return await self.http.send(request, stream=True)

    async def read(self, response: httpx.Response) -> None:
        await response.aread()

    def parts(self, response: httpx.Response) -> AsyncIterator[bytes]:
        return response.aiter_bytes()

    def lines(self, response: httpx.Response) -> AsyncIterator[str]:
        return response.aiter_lines()

    async def close(self, response: httpx.Response) -> None:
        await response.aclose()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a `SyncBackend` to its end. Raises what it raises."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("a procedure awaited something that is not its session's")


async def _never_suspending(items: Iterator[T]) -> AsyncIterator[T]:
    for item in items:
        yield item
