"""A client that costs little CPU, so that what is measured is the server on the same machine: HTTP/1.1 on streams."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 120.0


class LoadError(Exception):
    """The server answered otherwise than load alone explains."""


@dataclass(slots=True)
class Timings:
    """How long requests of one kind took, in s, and how many were refused for the moment (429, 503)."""

    seconds: list[float] = field(default_factory=list)
    refused: int = 0

    def summary(self) -> dict[str, float | int]:
        values = sorted(self.seconds)
        found: dict[str, float | int] = {"requests": len(values), "refused": self.refused}
        for name, part in (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99)):
            if values:
                found[name] = round(1e3 * values[min(len(values) - 1, int(part * len(values)))], 2)
        return found


class Connection:
    """One kept-alive connection with one token. A request at a time."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._head = f"Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: str, timings: Timings | None = None) -> Any:
        """The answer's JSON, or None where the server refused for the moment. Raises `LoadError` for anything else."""
        return json.loads(await self._request("POST", path, body, timings) or "null")

    async def get(self, path: str, timings: Timings | None = None) -> bytes:
        return await self._request("GET", path, "", timings)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _request(self, method: str, path: str, body: str, timings: Timings | None) -> bytes:
        data = body.encode()
        head = f"{method} {path} HTTP/1.1\r\n{self._head}"
        if data:
            head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        began = time.perf_counter()
        status, answer = await asyncio.wait_for(self._exchange(f"{head}\r\n".encode() + data), TIMEOUT_S)
        if status in (429, 503):
            if timings is not None:
                timings.refused += 1
            return b""
        if status >= 300:
            raise LoadError(f"{method} {path}: {status} {answer[:300]!r}")
        if timings is not None:
            timings.seconds.append(time.perf_counter() - began)
        return answer

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        is_reused = self._streams is not None
        try:
            return await self._answer(request)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self.close()
            # The server closes what it has not heard of for some seconds, and every client tries again.
            if not is_reused or getattr(error, "partial", b""):
                raise
            return await self._answer(request)

    async def _answer(self, request: bytes) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        if headers.get("transfer-encoding", "") == "chunked":
            parts = []
            while size := int(await reader.readline(), 16):
                parts.append((await reader.readexactly(size + 2))[:-2])
            await reader.readline()
            answer = b"".join(parts)
        else:
            answer = await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection", "").lower() == "close":
            self.close()
        return int(lines[0].split()[1]), answer
