"""Agents that wait for work: who waits for which device, and whom to wake.

All of this runs on the event loop's thread; only `notify_threadsafe` may be called from elsewhere.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog

log = structlog.get_logger(__name__)


class LeaseWaiters:
    """Long polls by device. n new tasks wake n waiters, never all of them."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._someone_waits = asyncio.Event()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def devices(self) -> list[str]:
        """The devices somebody waits for."""
        return list(self._waiting)

    @property
    def num_waiting(self) -> int:
        return sum(len(queue) for queue in self._waiting.values())

    @property
    def is_closed(self) -> bool:
        return self._closed

    async def wait(self, device_id: str, timeout_s: float) -> bool:
        """Wait to be woken; False after `timeout_s`, or when the server stops."""
        if self._closed or timeout_s <= 0:
            return False
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = self._loop.create_future()
        queue = self._waiting.setdefault(device_id, deque())
        queue.append(future)
        self._someone_waits.set()
        try:
            await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            return False
        finally:
            self._forget(device_id, future)
        return not self._closed

    def notify(self, device_id: str, count: int = 1) -> int:
        """Wake up to `count` waiters of a device, the longest waiting first; returns how many."""
        queue, woken = self._waiting.get(device_id, deque()), 0
        while queue and woken < count:
            future = queue.popleft()
            if not future.done():
                future.set_result(None)
                woken += 1
        return woken

    def notify_threadsafe(self, device_id: str, count: int = 1) -> None:
        """`notify` from a thread that runs an endpoint."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.notify, device_id, count)

    def close(self) -> None:
        """Send everybody away, and let nobody in."""
        self._closed = True
        for device_id in self.devices:
            self.notify(device_id, self.num_waiting)
        self._someone_waits.set()

    async def watch(
        self, ready_tasks: Callable[[Sequence[str]], Awaitable[Mapping[str, int]]], interval_s: float
    ) -> None:
        """Wake waiters for tasks that other processes made; runs until `close`.

        One query for all waiters every `interval_s`, and none while nobody waits.
        """
        while True:
            await self._someone_waits.wait()
            if self.is_closed:
                return
            try:
                for device_id, count in (await ready_tasks(self.devices)).items():
                    self.notify(device_id, count)
            except Exception:
                # The database is away for a moment: the agents' own polls find the tasks at the latest.
                log.warning("lease_watch_failed", exc_info=True)
            await asyncio.sleep(interval_s)

    def _forget(self, device_id: str, future: asyncio.Future[None]) -> None:
        queue = self._waiting.get(device_id)
        if queue is None:
            return
        if future in queue:
            queue.remove(future)
        if not queue:
            del self._waiting[device_id]
        if not self._waiting and not self._closed:
            self._someone_waits.clear()
