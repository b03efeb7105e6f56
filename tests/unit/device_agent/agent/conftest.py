from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from device_agent.client import ServerClient
from tests.unit.device_agent.agent.fake_kerf_server import TOKEN, FakeServer
from tests.unit.device_agent.agent.running_agent import ManualClock, RunningAgent


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def client(server: FakeServer) -> Iterator[ServerClient]:
    with ServerClient(server.url, TOKEN) as open_client:
        yield open_client


@pytest.fixture
def start_agent(server: FakeServer, tmp_path: Path) -> Iterator[Callable[..., RunningAgent]]:
    """Start agents on one state directory; those still running are aborted at the end."""
    started: list[RunningAgent] = []

    def start(prepare: Callable[[RunningAgent], None] = lambda agent: None, **options: int) -> RunningAgent:
        agent = RunningAgent(server, tmp_path / "state", **options)
        prepare(agent)
        started.append(agent.start())
        return agent

    yield start
    for agent in started:
        agent.stop.ask_abort()
        agent.join()
