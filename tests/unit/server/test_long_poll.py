"""Waiting for work: woken by what other processes write, one waiter for each task, and no leaks."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from device_agent.contracts import LeaseRequest
from server.fleet.service import lend_waiting
from server.fleet.waiting import LeaseWaiters
from tests.unit.server.server_lab import ServerLab


class TestWaiters:
    def test_a_timeout_leaves_nothing_behind(self) -> None:
        async def scenario() -> None:
            waiters = LeaseWaiters()
            assert not await waiters.wait("d", 0.01)
            assert (waiters.num_waiting, waiters.devices) == (0, [])

        asyncio.run(scenario())

    def test_n_tasks_wake_n_waiters_in_order(self) -> None:
        async def scenario() -> list[int]:
            waiters, woken = LeaseWaiters(), []

            async def waiter(number: int) -> None:
                if await waiters.wait("d", 30.0):
                    woken.append(number)

            tasks = []
            for number in range(4):
                tasks.append(asyncio.create_task(waiter(number)))
                await asyncio.sleep(0)
            assert waiters.notify("d", 2) == 2
            assert waiters.notify("another", 5) == 0
            await asyncio.gather(*tasks[:2])
            assert waiters.num_waiting == 2
            waiters.close()
            await asyncio.gather(*tasks[2:])
            return woken

        assert asyncio.run(scenario()) == [0, 1]

    def test_closing_sends_everybody_away_and_lets_nobody_in(self) -> None:
        async def scenario() -> None:
            waiters = LeaseWaiters()
            waiting = [asyncio.create_task(waiters.wait(str(i % 2), 30.0)) for i in range(6)]
            await asyncio.sleep(0)
            waiters.close()
            assert await asyncio.gather(*waiting) == [False] * 6
            assert not await waiters.wait("d", 30.0)

        asyncio.run(scenario())

    def test_the_watch_asks_only_while_somebody_waits_and_survives_errors(self) -> None:
        async def scenario() -> list[list[str]]:
            waiters, asked = LeaseWaiters(), []

            async def ready(devices: object) -> dict[str, int]:
                asked.append(list(devices))  # type: ignore[call-overload]
                if len(asked) == 1:
                    raise OSError("the database is away")
                return {"d": 1}

            watch = asyncio.create_task(waiters.watch(ready, 0.001))
            await asyncio.sleep(0.02)
            assert asked == []
            assert await waiters.wait("d", 30.0)
            waiters.close()
            await watch
            return asked

        assert asyncio.run(scenario()) == [["d"], ["d"]]


def num_waiting(lab: ServerLab) -> int:
    """Read on the event loop, where the waiters live."""
    portal = lab.client.portal
    assert portal is not None
    return int(portal.call(lambda: lab.client.app.state.context.waiters.num_waiting))  # type: ignore[attr-defined]


class TestLongPoll:
    def test_a_task_of_another_process_ends_the_wait(self, lab: ServerLab) -> None:
        agent = lab.agent()
        with ThreadPoolExecutor(1) as pool:
            polling = pool.submit(lab.lease, agent, 1, 30.0)
            while not num_waiting(lab):
                time.sleep(0.005)
            # Through a database of its own, as a worker does.
            (task_id,) = lab.tasks(agent)
            assert [lease.task_id for lease in polling.result(timeout=20)] == [task_id]

    def test_an_agent_that_hung_up_while_it_waited_is_lent_nothing(self, lab: ServerLab) -> None:
        async def is_gone() -> bool:
            return True

        agent = lab.agent()
        context = lab.client.app.state.context  # type: ignore[attr-defined]
        request = LeaseRequest(max_leases=1, wait_s=30.0)
        portal = lab.client.portal
        assert portal is not None
        with ThreadPoolExecutor(1) as pool:
            polling = pool.submit(portal.call, lend_waiting, context, agent.device_id, request, is_gone)
            while not num_waiting(lab):
                time.sleep(0.005)
            (task_id,) = lab.tasks(agent)
            assert polling.result(timeout=20) == ()
        assert [lease.task_id for lease in lab.lease(agent)] == [task_id]

    def test_an_empty_wait_ends_in_time(self, lab: ServerLab) -> None:
        assert lab.lease(lab.agent(), wait_s=0.05) == ()

    def test_many_waiters_hold_no_thread(self, sqlite_lab: ServerLab) -> None:
        # More than the 40 threads that endpoints run in.
        lab, count = sqlite_lab, 60
        agents = [lab.agent() for _ in range(3)]
        waiters = lab.client.app.state.context.waiters  # type: ignore[attr-defined]
        with ThreadPoolExecutor(count) as pool:
            polls = [pool.submit(lab.lease, agents[i % 3], 1, 20.0) for i in range(count)]
            while num_waiting(lab) < count:
                time.sleep(0.01)
            assert lab.client.get("/readyz").status_code == 200
            lab.client.portal.call(waiters.close)  # type: ignore[union-attr]
            assert [poll.result(timeout=20) for poll in polls] == [()] * count
