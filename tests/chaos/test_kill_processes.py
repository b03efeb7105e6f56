"""`kill -9` of worker, agent and server while a search runs: it ends as if nothing had happened.

Real processes, a simulated device (the same latency for the same kernel), kills drawn from a seed.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from device_agent.contracts import FailureReason, encode
from server.cli.local_stack import LocalStack, StackOptions, local_settings, running_stack
from server.database import Database
from server.models import TaskRow
from server.states import TaskState
from tests.chaos.ledger import reported_failures, settle
from tests.end_to_end.stacks import simulated_search

#: A short campaign kills agent and server, and test_several_devices the worker, in the other tests.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("stack")]

#: No undisturbed search here takes a tenth of this; a search that hangs must not hang the tests.
SEARCH_TIMEOUT_S = 400.0


def finished(stack: LocalStack, search_id: str) -> bool:
    with stack.client() as client:
        state = client.searches.get(search_id)["state"]
    assert state not in ("failed", "cancelled")
    return bool(state == "completed")


def run_disturbed(stack: LocalStack, generator: random.Random, kills: tuple[str, ...]) -> str:
    """Submit the search, kill one process after the other at random moments, restart each, and wait for the end."""
    with stack.client() as client:
        search_id = str(client.searches.create(encode(simulated_search("kill")))["id"])
    deadline = time.monotonic() + SEARCH_TIMEOUT_S
    for name in kills:
        time.sleep(generator.uniform(0.2, 4.0))
        stack.processes[name].kill()
        stack.processes[name].wait()
        stack.start(name)
        if name == "server":
            with stack.client() as client:
                stack.wait_for("the server to answer again", client.status.is_ready)
        if finished(stack, search_id):
            break
    while not finished(stack, search_id):
        assert time.monotonic() < deadline, "the search did not end"
        stack.check()
        time.sleep(0.3)
    return search_id


def outcome(stack: LocalStack, search_id: str) -> tuple[Any, list[Any]]:
    """The front as searched, and of the trained and verified front what does not depend on this run's identities."""
    with stack.client() as client:
        result = client.searches.result(search_id)
        for point in result["front"]:
            for figures in point["devices"]:
                del figures["device_id"]
        return client.searches.searched_front(search_id), result["front"]


def assert_counted_once(state_dir: Path, kills_of_agent: int) -> None:
    """Every task succeeded, and has one accepted measurement.

    Only one that an agent was at when it was killed has an accepted report before: that it may have brought it down.
    """
    database = Database.from_settings(local_settings(state_dir))
    try:
        with database.read() as session:
            states = session.scalars(select(TaskRow.state)).all()
        assert set(states) == {TaskState.SUCCEEDED}
        found = settle(database, (), ())
        assert (found.lost, found.duplicated, found.stuck) == ((), (), ())
        assert found.accepted == len(states)
        assert reported_failures(database) <= Counter({FailureReason.CRASHED: kills_of_agent})
    finally:
        database.dispose()


@pytest.mark.parametrize("seed", [0])
def test_a_search_survives_kills(simulated_stack: LocalStack, tmp_path: Path, seed: int) -> None:
    undisturbed = outcome(simulated_stack, run_disturbed(simulated_stack, random.Random(seed), kills=()))

    generator = random.Random(seed)
    kills = ["worker", "agent", "server"]
    generator.shuffle(kills)
    with running_stack(StackOptions(state_dir=tmp_path / "state", simulated=True)) as stack:
        search_id = run_disturbed(stack, generator, tuple(kills))
        disturbed = outcome(stack, search_id)

    assert json.dumps(disturbed[0]) == json.dumps(undisturbed[0])
    assert disturbed[1] == undisturbed[1]
    assert_counted_once(tmp_path / "state", kills.count("agent"))
