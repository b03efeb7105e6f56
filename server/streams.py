"""Event streams that are open: how many a token has, that each ends with its token, and what they ask together.

A stream is one request that may last for days, and asks the database several times a second. So what is checked when a
request begins is not enough for it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool

from server.accounts.repository import is_usable
from server.database import Database
from server.errors import TooManyRequests

#: A stream goes on for so long after its token was revoked or has expired.
RECHECK_S = 10.0
#: Told to whoever has too many.
RETRY_AFTER_S = 10
#: Answers that are kept for other streams; then those that are there are forgotten.
_KEPT_ANSWERS = 1000

T = TypeVar("T")


class OpenStreams:
    """Counts the open streams of each token in this process, up to `most`; 0 is without limit. Used by one thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[str] = Counter()

    @contextmanager
    def one(self, token_id: str | None) -> Iterator[None]:
        """One more stream while the block lasts. None is whoever needs no token. Raises `TooManyRequests`."""
        if token_id is None:
            yield
            return
        if 0 < self._most <= self._open[token_id]:
            raise TooManyRequests(
                f"this token has {self._most} event streams open: close some, or see KERF_MAX_STREAMS",
                code="too_many_streams",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        self._open[token_id] += 1
        try:
            yield
        finally:
            self._open[token_id] -= 1
            if not self._open[token_id]:
                del self._open[token_id]


class SharedReads:
    """What many streams ask of the database at about the same time is asked once. Used by one thread, the loop's."""

    def __init__(self) -> None:
        self._answers: dict[Hashable, tuple[float, asyncio.Task[Any]]] = {}

    async def get(self, key: Hashable, read: Callable[[], T], max_age_s: float) -> T:
        """What `read` returns, in a thread; or what it returned to another with this key that asked less than
        `max_age_s` ago. A read that failed is not kept.
        """
        asked_s, task = self._answers.get(key, (0.0, None))
        now_s = time.monotonic()
        if task is None or (task.done() and (now_s - asked_s >= max_age_s or _failed(task))):
            if len(self._answers) >= _KEPT_ANSWERS:
                self._answers = {k: answer for k, answer in self._answers.items() if not answer[1].done()}
            task = asyncio.create_task(run_in_threadpool(read))
            self._answers[key] = (now_s, task)
        # Whoever asked first may go away meanwhile.
        found: T = await asyncio.shield(task)
        return found


def _failed(task: asyncio.Task[Any]) -> bool:
    return task.cancelled() or task.exception() is not None


class Stream:
    """One open stream, of a token or, where the dashboard is open to this machine, of nobody."""

    def __init__(self, database: Database, stopping: asyncio.Event, token_id: str | None) -> None:
        self._database = database
        self._stopping = stopping
        self._token_id = token_id
        self._checked_s = time.monotonic()

    async def goes_on(self) -> bool:
        """Whether the server runs on, and the token is still good. A client that asks again is told what is wrong."""
        if self._stopping.is_set():
            return False
        if self._token_id is None or time.monotonic() - self._checked_s < RECHECK_S:
            return True
        self._checked_s = time.monotonic()
        return await run_in_threadpool(self._is_usable, self._token_id)

    def _is_usable(self, token_id: str) -> bool:
        with self._database.read() as session:
            return is_usable(session, token_id)
