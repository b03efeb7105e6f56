"""Measurements survive cuts, repetitions, kills and a second agent with the same token: seconds of `make chaos`.

Real processes, a simulated device, no worker: searches are in `test_kill_processes`.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from sqlalchemy import func, select, update

from device_agent.contracts import KernelTask, MeasuringSetup
from server.latency.source import SqlLatencySource
from server.models import SearchRow, TaskRow
from server.searches.queries import insert_search
from server.states import JobState, TaskState
from tests.chaos.faults import FaultLog, WireChance
from tests.chaos.ledger import settle
from tests.chaos.processes import LEASE_DURATION_S, chaos_stack, wait_until
from tests.chaos.unsteady_agent import Disturbance
from tests.unit.server.server_lab import kernel_task

NUM_TASKS = 60
AGENT = "agent-a"


def test_what_was_accepted_is_there_once(tmp_path: Path) -> None:
    chance = random.Random(3)
    log = FaultLog(tmp_path / "faults.log")
    with chaos_stack(tmp_path / "service", log, own_disk=False) as stack:
        stack.disturb(AGENT, Disturbance(task_s=0.02, clock_offset_s=-86_400.0))
        stack.add_agent(AGENT)
        credentials = stack.state_dir / AGENT / "credentials.json"
        wait_until(credentials.exists, "the agent to enrol")
        device_id = json.loads(credentials.read_text())["device_id"]
        with stack.database.write() as session:
            search = insert_search(session, name="s", device_id=device_id, config={}, created_by="t")
        source = SqlLatencySource(stack.database)
        setup = MeasuringSetup(runtime="simulated")
        tasks = [KernelTask(kernel=kernel_task(i + 1).kernel, setup=setup) for i in range(NUM_TASKS)]

        def is_reported(count: int) -> bool:
            return len({receipt.result_key for receipt in stack.proxy.receipts}) >= count

        stack.proxy.chance = WireChance(chance, 0.3, LEASE_DURATION_S + 0.5)
        wait_until(lambda: bool(source.request(device_id, tasks, search.id)), "the tasks to be stored")
        wait_until(lambda: is_reported(8), "the first reports")
        stack.kill(AGENT)
        wait_until(lambda: is_reported(16), "more reports")
        stack.kill("server")
        stack.add_agent("twin", credentials_of=AGENT)
        stack.proxy.chance = WireChance(chance, 0.3, LEASE_DURATION_S + 0.5)
        wait_until(lambda: is_reported(40), "more reports")
        stack.proxy.chance = None
        stack.remove("twin", gently=False)

        def is_done() -> bool:
            with stack.database.read() as session:
                query = select(func.count()).where(TaskRow.state == TaskState.SUCCEEDED)
                return session.scalar(query) == NUM_TASKS

        wait_until(is_done, "all tasks to end")
        spool = stack.state_dir / AGENT / "spool"
        wait_until(lambda: not any(spool.glob("*/*.json")), "the spool to be empty")
        with stack.database.write() as session:
            session.execute(update(SearchRow).values(state=JobState.CANCELLED))
        found = settle(stack.database, stack.proxy.receipts, [spool])
        assert (found.lost, found.duplicated, found.stuck) == ((), (), ())
        assert found.accepted == NUM_TASKS
        assert log.total > 0
        assert stack.unexpected_ends == []
