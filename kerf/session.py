"""Requests, repeated where that is harmless, and event streams that go on where they broke off."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack
from itertools import count
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from kerf.backends import Backend
from kerf.errors import ServerUnavailable
from kerf.events import EventReader
from kerf.files import OnTransfer, chunks, shown_nowhere
from kerf.operations import Prepared
from kerf.retries import next_delay_s
from kerf.schemas import EventView

T = TypeVar("T")

EVENTS_PATH = "/v1/searches/{search_id}/events"


class Session:
    """One user at one server. Its coroutines suspend only where `backend` does."""

    def __init__(self, backend: Backend, max_attempts: int, on_transfer: OnTransfer | None = None) -> None:
        self.backend = backend
        self.max_attempts = max_attempts
        self.on_transfer = on_transfer or shown_nowhere

    async def call(self, prepared: Prepared[T]) -> T:
        """The result of one operation. Raises `ApiError`, or `ServerUnavailable` after the last attempt."""
        most = min(prepared.request.max_attempts or self.max_attempts, self.max_attempts)
        for attempt in count(1):
            try:
                outcome: httpx.Response | httpx.TransportError = await self._attempt(prepared)
            except httpx.TransportError as error:
                outcome = error
            delay_s = next_delay_s(outcome, attempt, is_repeatable=prepared.is_repeatable, max_attempts=most)
            if delay_s is not None:
                await self.backend.sleep(delay_s)
                continue
            if isinstance(outcome, httpx.TransportError):
                address = self.backend.http.base_url
                raise ServerUnavailable(f"cannot reach the server at {address}: {outcome}") from outcome
            return prepared.result(outcome)
        raise AssertionError("count does not end")

    async def events(self, search_id: str) -> AsyncIterator[EventView]:
        """The events of a search from its beginning until it ends, through as many connections as that takes."""
        reader, backend = EventReader(), self.backend
        url = EVENTS_PATH.format(search_id=quote(search_id, safe=""))
        while True:
            failure: httpx.Response | httpx.TransportError | None = None
            try:
                response = await backend.send(backend.http.build_request("GET", url, headers=reader.headers))
                try:
                    if response.is_error:
                        await backend.read(response)
                        failure = response
                    else:
                        async for line in backend.lines(response):
                            if (event := reader.feed(line)) is not None:
                                yield event
                            if reader.is_over:
                                return
                finally:
                    await backend.close(response)
            except httpx.TransportError as error:
                failure = error
            if failure is not None:
                await backend.sleep(reader.delay_s(failure))

    async def _attempt(self, prepared: Prepared[Any]) -> httpx.Response:
        with ExitStack() as shown:
            return await self._shown_attempt(prepared, shown)

    async def _shown_attempt(self, prepared: Prepared[Any], shown: ExitStack) -> httpx.Response:
        wanted, backend = prepared.request, self.backend
        headers, content = dict(wanted.headers), None
        if wanted.upload is not None:
            size_bytes = wanted.upload.stat().st_size
            headers["Content-Length"] = str(size_bytes)
            tell = shown.enter_context(self.on_transfer(wanted.upload.name, size_bytes))
            content = backend.body(chunks(wanted.upload, tell))
        request = backend.http.build_request(
            prepared.method,
            prepared.url,
            params={name: value for name, value in wanted.query.items() if value is not None},
            headers=headers,
            json=wanted.json,
            content=content,
            timeout=backend.http.timeout if wanted.timeout_s is None else wanted.timeout_s,
        )
        response = await backend.send(request)
        try:
            if wanted.download is None or response.is_error:
                await backend.read(response)
            else:
                wanted.download.begin()
                tell = shown.enter_context(self.on_transfer(wanted.download.name, _body_bytes(response)))
                async for part in backend.parts(response):
                    wanted.download.write(part)
                    tell(len(part))
        except BaseException:
            if wanted.download is not None:
                wanted.download.abort()
            raise
        finally:
            await backend.close(response)
        return response


def _body_bytes(response: httpx.Response) -> int | None:
    """How many bytes are read of it; None where the server does not say, or says how many are sent in packed form."""
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() and "Content-Encoding" not in response.headers else None
