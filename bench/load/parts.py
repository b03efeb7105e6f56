"""The parts of the load, each on a running stack; every one returns figures by name."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
from sqlalchemy import func, select

from bench.load.fleet import Agent, Fleet, Reporter, heartbeat, lease_request
from bench.load.http import Connection, LoadError, Timings
from bench.load.stack import Stack
from server.models import MeasurementRow, TaskRow
from server.searches.repository import claim_runnable_job, release_job
from server.settings import Settings
from server.states import TaskState

#: What agents are told by default, and so do.
LEASE_WAIT_S, HEARTBEAT_S = Settings().lease_wait_s, Settings().heartbeat_interval_s
#: Connections that are opened at once while agents come.
_ARRIVING = 50
#: The number of the first kernel of the part with everything at once: no other part goes so far.
_FIRST_TOGETHER = 10_000_000
#: Pages that people have open.
PAGES = ("/", "/queue", "/explorer", "/compare", "/quarantine")


async def waiting(
    stack: Stack, fleet: Fleet, agents: Sequence[Agent], hold_s: float, wakes: int, *, heartbeats: bool
) -> dict[str, Any]:
    """Agents that wait for work: the cores that this takes over `hold_s`, and how soon one feels that work came."""
    rng = np.random.default_rng(0)
    woken: dict[str, asyncio.Future[float]] = {}
    failures: list[BaseException] = []
    arriving = asyncio.Semaphore(_ARRIVING)
    before = stack.usage()
    beats = Timings()

    async def poll(number: int, agent: Agent) -> None:
        connection = _connection(stack, number, agent.token)
        # Spread over the time of a poll, as agents that started at different times are.
        wait_s = float(rng.uniform(0.5, LEASE_WAIT_S))
        try:
            async with arriving:
                await connection.get("/healthz")
                polls_open.release()
            while True:
                answer = await connection.post("/v1/leases", lease_request(1, round(wait_s, 2)))
                wait_s = LEASE_WAIT_S
                for lease in (answer or {"leases": ()})["leases"]:
                    if (future := woken.get(agent.device_id)) is not None and not future.done():
                        future.set_result(time.perf_counter())
                    path = f"/v1/leases/{lease['lease_id']}:release"
                    await connection.post(path, f'{{"attempt": {lease["attempt"]}}}')
                    # Work that was given back would come again at once.
                    await asyncio.sleep(3600)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            failures.append(error)
        finally:
            connection.close()

    async def beat(number: int, agent: Agent) -> None:
        connection = _connection(stack, number, agent.token)
        try:
            await asyncio.sleep(float(rng.uniform(0.0, HEARTBEAT_S)))
            while True:
                await connection.post("/v1/agents:heartbeat", body, beats)
                await asyncio.sleep(HEARTBEAT_S)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            failures.append(error)
        finally:
            connection.close()

    body = heartbeat()
    polls_open = asyncio.Semaphore(0)
    tasks = [asyncio.create_task(poll(number, agent)) for number, agent in enumerate(agents)]
    try:
        for _ in agents:
            await polls_open.acquire()
        if heartbeats:
            tasks += [asyncio.create_task(beat(number, agent)) for number, agent in enumerate(agents)]
        # What arriving costs is no idling.
        await asyncio.sleep(min(5.0, hold_s))
        start = stack.usage()
        await asyncio.sleep(hold_s)
        end = stack.usage()
        delays_s = []
        for number, agent in enumerate(rng.permutation(np.arange(len(agents)))[:wakes]):
            chosen = agents[int(agent)]
            woken[chosen.device_id] = asyncio.get_running_loop().create_future()
            await asyncio.to_thread(fleet.give_work, stack, [chosen], 1, 1_000_000 + number)
            began = time.perf_counter()
            delays_s.append(await asyncio.wait_for(woken[chosen.device_id], 60.0) - began)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if failures:
        raise LoadError(f"{len(failures)} of {len(agents)} agents failed; the first: {failures[0]!r}")
    delays = Timings(seconds=delays_s).summary()
    return {
        "agents": len(agents),
        "held_s": hold_s,
        "heartbeats_per_s": round(len(agents) / HEARTBEAT_S, 1) if heartbeats else 0.0,
        **end.cores_since(start),
        "server_mib": round(end.server_bytes / 2**20, 1),
        "server_kib_per_agent": round((end.server_bytes - before.server_bytes) / 1024 / len(agents), 1),
        "work_is_felt": {name: value for name, value in delays.items() if name != "refused"},
        **({"heartbeats": beats.summary()} if heartbeats else {}),
    }


async def exchanging(
    stack: Stack, agents: Sequence[Agent], batch: int, seconds: float, *, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Agents that take `batch` tasks, report all of them in one request, and ask again, as fast as they are answered.

    Raises `LoadError` where a task was lent twice, a report was not accepted, or the database disagrees.
    """
    reporter = reporter or Reporter()
    leases, reports = Timings(), Timings()
    lent: Counter[str] = Counter()
    accepted = 0
    end = time.monotonic() + seconds

    async def work(number: int, agent: Agent) -> None:
        nonlocal accepted
        connection = _connection(stack, number, agent.token)
        try:
            while time.monotonic() < end:
                answer = await connection.post("/v1/leases", lease_request(batch, 0.0), leases)
                if answer is None:
                    await asyncio.sleep(0.5)
                    continue
                if not answer["leases"]:
                    return
                lent.update(lease["task_id"] for lease in answer["leases"])
                body = reporter.batch(answer["leases"])
                while (receipts := await connection.post("/v1/reports", body, reports)) is None:
                    await asyncio.sleep(0.5)
                statuses = Counter(receipt["status"] for receipt in receipts["receipts"])
                if set(statuses) != {"accepted"}:
                    raise LoadError(f"reports of {agent.device_id} became {dict(statuses)}")
                accepted += statuses["accepted"]
        finally:
            connection.close()

    start, began = stack.usage(), time.monotonic()
    succeeded = _succeeded(stack)
    await asyncio.gather(*(work(number, agent) for number, agent in enumerate(agents)))
    passed_s, usage = time.monotonic() - began, stack.usage()
    twice = sum(count - 1 for count in lent.values())
    stored = _succeeded(stack) - succeeded
    if twice or stored != accepted:
        raise LoadError(f"{twice} tasks were lent twice; {accepted} reports were accepted, {stored} tasks are done")
    cpu_s = usage.server_cpu_s - start.server_cpu_s
    return {
        "agents": len(agents),
        "batch": batch,
        "measurements": accepted,
        "measurements_per_s": round(accepted / passed_s, 1),
        "lent_twice": twice,
        "leases": leases.summary(),
        "reports": reports.summary(),
        **usage.cores_since(start),
        "server_cpu_ms_per_measurement": round(1e3 * cpu_s / max(1, accepted), 3),
        "server_mib": round(usage.server_bytes / 2**20, 1),
    }


async def queued(stack: Stack, fleet: Fleet, agent: Agent, depths: Sequence[int], claims: int) -> list[dict[str, Any]]:
    """How long a claim takes by the number of tasks that wait for its device."""
    found = []
    given = 0
    connection = _connection(stack, 0, agent.token)
    for depth in depths:
        while given < depth:
            step = min(5000, depth - given)
            fleet.give_work(stack, [agent], step, 2_000_000 + given)
            given += step
        timings = Timings()
        for _ in range(claims):
            answer = await connection.post("/v1/leases", lease_request(1, 0.0), timings)
            (lease,) = answer["leases"]
            await connection.post(f"/v1/leases/{lease['lease_id']}:release", f'{{"attempt": {lease["attempt"]}}}')
        found.append({"waiting": depth, "claims": timings.summary()})
    connection.close()
    return found


async def jobs(stack: Stack, fleet: Fleet, depths: Sequence[int], claims: int) -> list[dict[str, Any]]:
    """How long a worker's claim and the lists of searches take by the number of searches that wait."""
    found = []
    given = 0
    connection = _connection(stack, 0, fleet.user_token)
    for depth in depths:
        fleet.submit(stack, depth - given)
        given = depth
        claimed = Timings()
        for _ in range(claims):
            began = time.perf_counter()
            with stack.database.write() as session:
                claim = claim_runnable_job(session, worker="load", stale_s=3600.0)
            claimed.seconds.append(time.perf_counter() - began)
            if claim is None:
                raise LoadError(f"{depth} searches wait, and none was found")
            with stack.database.write() as session:
                release_job(session, claim)
        lists = {path: Timings() for path in ("/", "/queue", "/v1/searches")}
        for path, timings in lists.items():
            for _ in range(claims):
                await connection.get(path, timings)
        found.append(
            {"waiting": depth, "claims": claimed.summary(), **{p: timings.summary() for p, timings in lists.items()}}
        )
    connection.close()
    return found


async def together(
    stack: Stack,
    fleet: Fleet,
    agents: Sequence[Agent],
    workers: Sequence[Agent],
    viewers: int,
    waiting_each: int,
    seconds: float,
    pause_s: float,
) -> dict[str, Any]:
    """Agents that wait and report in, others that work with pauses as real devices do, and people who read pages.

    `waiting_each` tasks wait for each of `workers` all the time.
    """
    fleet.give_work(stack, workers, waiting_each, _FIRST_TOGETHER)
    pages = {path: Timings() for path in PAGES}
    end = time.monotonic() + seconds
    memory: list[tuple[float, float]] = []

    async def view(number: int) -> None:
        connection = _connection(stack, number, fleet.user_token)
        try:
            for path in itertools.cycle(PAGES):
                if time.monotonic() > end:
                    return
                await connection.get(path, pages[path])
                await asyncio.sleep(1.0)
        finally:
            connection.close()

    async def remember() -> None:
        began = time.monotonic()
        while time.monotonic() < end:
            memory.append((time.monotonic() - began, stack.usage().server_bytes / 2**20))
            await asyncio.sleep(min(10.0, seconds / 10))

    exchanged: list[dict[str, Any]] = []

    async def exchange() -> None:
        reporter = Reporter()
        given = waiting_each
        while time.monotonic() < end:
            found = await exchanging(stack, workers, 8, 2.0, reporter=reporter)
            exchanged.append(found)
            # As many come as were done: what grows is the database, not the queue.
            more = -(-found["measurements"] // len(workers))
            await asyncio.to_thread(fleet.give_work, stack, workers, more, _FIRST_TOGETHER + given)
            given += more
            await asyncio.sleep(pause_s)

    hold: Callable[[], Awaitable[dict[str, Any]]] = lambda: waiting(  # noqa: E731
        stack, fleet, agents, max(1.0, seconds - 10.0), 0, heartbeats=True
    )
    held, *_ = await asyncio.gather(hold(), exchange(), remember(), *(view(number) for number in range(viewers)))
    times = np.array(memory)
    half = times[len(times) // 2 :]
    slope = float(np.polyfit(half[:, 0], half[:, 1], 1)[0]) if len(half) > 2 else 0.0
    return {
        "agents": len(agents),
        "working_agents": len(workers),
        "viewers": viewers,
        "waiting_tasks": waiting_each * len(workers),
        "seconds": seconds,
        "measurements": sum(found["measurements"] for found in exchanged),
        "lent_twice": sum(found["lent_twice"] for found in exchanged),
        "pages": {path: timings.summary() for path, timings in pages.items()},
        "heartbeats": held["heartbeats"],
        "server_cores": held["server_cores"],
        "database_cores": held["database_cores"],
        "server_mib": {
            "first": round(memory[0][1], 1),
            "last": round(memory[-1][1], 1),
            "growth_per_h_over_second_half": round(3600 * slope, 1),
            # Some 60 of the moments, as [seconds, MiB].
            "over_time": [[round(at_s), round(mib, 1)] for at_s, mib in memory[:: max(1, len(memory) // 60)]],
        },
    }


def stored_measurements(stack: Stack) -> int:
    with stack.database.read() as session:
        return int(session.scalar(select(func.count()).select_from(MeasurementRow)) or 0)


def _succeeded(stack: Stack) -> int:
    with stack.database.read() as session:
        query = select(func.count()).select_from(TaskRow).where(TaskRow.state == TaskState.SUCCEEDED)
        return int(session.scalar(query) or 0)


def _connection(stack: Stack, number: int, token: str) -> Connection:
    return Connection(stack.ports[number % len(stack.ports)], token)
