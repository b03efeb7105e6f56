"""A proxy in front of the server that cuts, delays, repeats and reorders requests, and remembers every receipt.

It runs in a thread of its own. Each request gets a new connection to the server, and its answer is read whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from device_agent.contracts import ReportStatus
from tests.chaos.faults import Fault, FaultLog, WireChance

#: No request or answer of an agent is nearly as long.
MAX_HEAD_BYTES = 64 << 10
#: A request waits at most this long for another one to overtake it.
OVERTAKING_LIMIT_S = 2.0

_BAD_GATEWAY = (
    b"HTTP/1.1 502 Bad Gateway\r\ncontent-type: text/html\r\ncontent-length: 27\r\nconnection: close\r\n\r\n"
    b"<html>502 bad gateway</html>"[:27]
)
_PORTAL = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 33\r\nconnection: close\r\n\r\n"
    b"<html>Please sign in here.</html>"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, as bytes that can be sent on."""

    method: str
    path: str
    raw: bytes
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What the server told an agent of a report, whether or not the agent ever heard it."""

    result_key: str
    task_id: str
    attempt: int
    status: ReportStatus
    is_measurement: bool


class FaultyProxy:
    """A listening proxy: `with FaultyProxy(...) as proxy: ... proxy.url`. `chance` None leaves all requests alone."""

    def __init__(self, server_host: str, server_port: int, log: FaultLog) -> None:
        self._server = (server_host, server_port)
        self._log = log
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._passed = asyncio.Event()
        self._lock = threading.Lock()
        self._receipts: list[Receipt] = []
        #: What happens to requests; set and unset from the harness.
        self.chance: WireChance | None = None
        self.is_partitioned = False
        #: Called (on the proxy's thread) after an answer with leases has gone to an agent.
        self.on_lent: Callable[[], None] | None = None

    @property
    def url(self) -> str:
        assert self._listener is not None
        host, port = self._listener.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"

    @property
    def receipts(self) -> list[Receipt]:
        with self._lock:
            return list(self._receipts)

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=MAX_HEAD_BYTES)

    async def _close(self) -> None:
        assert self._listener is not None
        self._listener.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            request = await _read_request(reader)
            if request is not None and not self.is_partitioned:
                answer = await self._answered(request, reader)
                if answer and not self.is_partitioned:
                    writer.write(answer)
                    await writer.drain()
                    if request.path == "/v1/leases" and b'"lease_id"' in answer and self.on_lent is not None:
                        self.on_lent()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # Whoever is on either side went away: that is what this is for.
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _answered(self, request: Request, client: asyncio.StreamReader) -> bytes:
        """The answer to send, after what befalls the request; empty to hang up."""
        chance = self.chance
        fault = None if chance is None else chance.draw(request.path)
        if chance is None or fault is None:
            return await self._forward(request, client)
        self._log.add(fault, f"{request.method} {request.path}")
        if fault is Fault.CUT_BEFORE:
            return b""
        if fault is Fault.BAD_GATEWAY:
            return _BAD_GATEWAY
        if fault is Fault.CAPTIVE_PORTAL:
            return _PORTAL
        if fault in (Fault.SLOW, Fault.LATE):
            await asyncio.sleep(chance.delay_s(fault))
        elif fault is Fault.REORDERED:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._passed.wait(), OVERTAKING_LIMIT_S)
        elif fault is Fault.TWICE:
            await self._forward(request, client)
        elif fault is Fault.TWICE_AT_ONCE:
            both = await asyncio.gather(self._forward(request), self._forward(request), return_exceptions=True)
            return next((answer for answer in both if isinstance(answer, bytes)), b"")
        elif fault is Fault.REPLAYED:
            replay = asyncio.create_task(self._replay(request, chance.delay_s(fault)))
            self._tasks.add(replay)
            replay.add_done_callback(self._tasks.discard)
        answer = await self._forward(request, client)
        if fault is Fault.CUT_AFTER:
            return b""
        if fault is Fault.TRUNCATED:
            return answer[: int(len(answer) * chance.at_random())]
        return answer

    async def _replay(self, request: Request, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._forward(request)

    async def _forward(self, request: Request, client: asyncio.StreamReader | None = None) -> bytes:
        """Send a request to the server and read the answer. Gives up, as a connection would, when `client` leaves."""
        reader, writer = await asyncio.open_connection(*self._server)
        try:
            writer.write(request.raw)
            await writer.drain()
            whole = asyncio.ensure_future(reader.read())
            gone = asyncio.ensure_future(client.read(1)) if client is not None else None
            try:
                await asyncio.wait({whole, gone} if gone else {whole}, return_when=asyncio.FIRST_COMPLETED)
                answer = whole.result() if whole.done() else b""
            finally:
                whole.cancel()
                if gone is not None:
                    gone.cancel()
        finally:
            writer.close()
        self._passed.set()
        self._passed.clear()
        if request.path == "/v1/reports":
            self._remember(request, answer)
        return answer

    def _remember(self, request: Request, answer: bytes) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            return
        try:
            told = {r["result_key"]: r["status"] for r in json.loads(body)["receipts"]}
        except ValueError:
            return  # The server died while it answered.
        reports = {report["result_key"]: report for report in json.loads(request.body)["reports"]}
        with self._lock:
            self._receipts += [
                Receipt(
                    result_key=key,
                    task_id=reports[key]["task_id"],
                    attempt=reports[key]["attempt"],
                    status=ReportStatus(status),
                    is_measurement="statistics" in reports[key]["result"],
                )
                for key, status in told.items()
            ]


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    lines = head.decode("latin-1").split("\r\n")
    method, target, _ = lines[0].split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    kept = [line for line in lines[1:] if line and not line.lower().startswith("connection:")]
    raw = "\r\n".join([lines[0], *kept, "connection: close", "", ""]).encode("latin-1") + body
    return Request(method=method, path=target.partition("?")[0], raw=raw, body=body)
