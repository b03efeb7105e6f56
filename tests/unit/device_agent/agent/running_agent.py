"""An agent in a thread, with everything around it real but the child process and, where asked, the clock."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

from device_agent.agent import Agent
from device_agent.client import ServerClient
from device_agent.clock import SystemClock
from device_agent.contracts import Conditions, Measurement, MeasurementFailure
from device_agent.heartbeat import Announcement
from device_agent.held import HeldLease
from device_agent.identity import Credentials
from device_agent.service import build_agent
from device_agent.settings import AgentSettings
from device_agent.stopping import StopRequest
from tests.unit.device_agent.agent.agent_samples import PROFILE, RUNTIMES, measurement
from tests.unit.device_agent.agent.fake_kerf_server import TOKEN, FakeServer


class ManualClock:
    """Time that passes only when something waits; every wait is noted."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        self.waits.append(timeout_s)
        if not event.is_set():
            self.now += max(0.0, timeout_s)
        return event.is_set()


class ScriptedRunner:
    """The child process, replaced by a function: what is tested here is everything around it."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.action: Callable[[HeldLease, Path | None], Measurement | MeasurementFailure] = lambda held, artifact: (
            measurement()
        )

    def run(self, held: HeldLease, artifact: Path | None) -> Measurement | MeasurementFailure:
        self.runs.append(held.lease.task_id)
        return self.action(held, artifact)


class RunningAgent:
    """A real agent in a thread, talking HTTP to a server."""

    def __init__(self, server: FakeServer, state_dir: Path, *, max_leases: int = 8) -> None:
        self.stop = StopRequest()
        self.runner = ScriptedRunner()
        self.not_ready: str | None = None
        self.error: BaseException | None = None
        self._server = server
        self._settings = AgentSettings(
            state_dir=state_dir, device_name="bench", server_url=server.url, max_leases=max_leases, simulated=False
        )
        self._thread: threading.Thread | None = None

    def agent(self, client: ServerClient) -> Agent:
        credentials = Credentials(
            server_url=self._server.url, device_id="d1", token=TOKEN, heartbeat_interval_s=30.0, lease_wait_s=0.2
        )
        return build_agent(
            self._settings,
            credentials,
            client,
            Announcement(profile=PROFILE, runtimes=RUNTIMES),
            self.runner,
            self.stop,
            clock=SystemClock(),
            rng=random.Random(7),
            read_conditions=Conditions,
            why_not_ready=lambda: self.not_ready,
        )

    def run(self) -> None:
        try:
            with ServerClient(self._server.url, TOKEN) as client:
                self.agent(client).run()
        except BaseException as error:
            self.error = error

    def start(self) -> RunningAgent:
        self._thread = threading.Thread(target=self.run, daemon=True)
        self._thread.start()
        return self

    def join(self) -> None:
        assert self._thread is not None
        self._thread.join(30.0)
        assert not self._thread.is_alive(), "the agent did not stop"

    def drain(self) -> None:
        self.stop.ask_drain()
        self.join()
