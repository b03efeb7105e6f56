"""The load generator says what it measured, and what it sends is what agents send."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from fastapi.routing import APIRoute

from bench.load.fleet import SETUP, Reporter, heartbeat, kernel_task
from bench.load.http import Connection, LoadError, Timings
from bench.load.parts import PAGES
from bench.load.stack import Usage
from device_agent.contracts import HeartbeatRequest, Measurement, ReportBatch, Verdict, kernel_id, loads
from server.dashboard.views import router
from server.fleet.checking import judged, why_inconsistent


def test_reports_are_sound() -> None:
    leases: list[dict[str, object]] = [{"lease_id": f"l{n}", "task_id": f"t{n}", "attempt": n} for n in range(3)]
    batch = loads(ReportBatch, Reporter().batch(leases).encode())
    told = [(r.lease_id, r.task_id, r.attempt) for r in batch.reports]
    assert told == [("l0", "t0", 0), ("l1", "t1", 1), ("l2", "t2", 2)]
    assert len({report.result_key for report in batch.reports}) == 3
    result = batch.reports[0].result
    assert isinstance(result, Measurement)
    assert why_inconsistent(result, SETUP) is None
    assert judged(result, SETUP).verdict is Verdict.TRUSTED
    loads(HeartbeatRequest, heartbeat().encode())


def test_people_read_pages_that_there_are() -> None:
    assert set(PAGES) <= {route.path for route in router.routes if isinstance(route, APIRoute)}


def test_every_task_is_of_another_kernel() -> None:
    assert len({kernel_id(kernel_task(number).kernel) for number in range(10)}) == 10


def test_figures() -> None:
    timings = Timings(seconds=[n / 1000 for n in range(100, 0, -1)], refused=2)
    assert timings.summary() == {"requests": 100, "refused": 2, "p50_ms": 51.0, "p95_ms": 96.0, "p99_ms": 100.0}
    assert Timings().summary() == {"requests": 0, "refused": 0}
    before, after = Usage(10.0, 1.0, 5.0, 0), Usage(14.0, 3.0, 5.4, 0)
    assert after.cores_since(before) == {"server_cores": 0.5, "database_cores": 0.1}


def served(answers: Sequence[bytes], requests: int) -> tuple[list[bytes], Timings]:
    """What a client gets of a server that gives one of `answers` to each connection's request, and then closes it."""
    left = list(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(left.pop(0))
        await writer.drain()
        writer.close()

    async def ask() -> tuple[list[bytes], Timings]:
        timings = Timings()
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            connection = Connection(server.sockets[0].getsockname()[1], "token")
            got = [await connection.get("/", timings) for _ in range(requests)]
            connection.close()
        return got, timings

    return asyncio.run(ask())


def test_answers_of_all_forms_over_connections_that_the_server_closes() -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    away = b"HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\n\r\n"
    got, timings = served([whole, chunked, away], 3)
    assert got == [b"ab", b"abc", b""]
    assert (len(timings.seconds), timings.refused) == (2, 1)
    with pytest.raises(LoadError, match="GET /: 500"):
        served([b"HTTP/1.1 500 Oops\r\nContent-Length: 1\r\n\r\nx"], 1)
