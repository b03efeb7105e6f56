"""A campaign: searches one after the other on a service to which things happen, until enough have.

Everything that is chosen is drawn from a seed. When in a run it happens is not repeatable, as real time is not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select, text

from device_agent.contracts import MeasuringSetup, encode
from search.domain.config import SearchConfig
from server.database import sqlite_module
from server.models import SearchRow, TaskRow
from server.states import JobState, TaskState
from tests.chaos.faults import Fault, FaultLog, WireChance
from tests.chaos.ledger import Findings, settle
from tests.chaos.processes import LEASE_DURATION_S, ChaosStack, wait_until
from tests.chaos.unsteady_agent import Disturbance

#: After the last fault, everything must come to its end in this time.
SETTLING_LIMIT_S = 600.0
#: How long a task takes on an agent here, so that leases are held for a while.
TASK_S = 0.05

#: How often a fault is chosen, relative to the others, and how long at least lies between two of its kind: whoever
#: was killed must have done some work before it is again.
WEIGHTS: Mapping[Fault, tuple[float, float]] = {
    Fault.KILL_SERVER: (3, 6),
    Fault.KILL_WORKER: (2, 12),
    Fault.KILL_AGENT: (4, 2),
    Fault.KILL_EVERYTHING: (1, 25),
    Fault.KILL_POSTMASTER: (2, 10),
    Fault.KILL_BACKEND: (3, 4),
    Fault.FREEZE_SERVER: (2, 5),
    Fault.FREEZE_WORKER: (2, 8),
    Fault.FREEZE_AGENT: (3, 3),
    Fault.VANISH: (3, 6),
    Fault.TWIN: (2, 8),
    Fault.DATABASE_LOCKED: (2, 5),
    Fault.DISK_FULL: (2, 10),
    Fault.CLOCK_JUMP: (4, 1),
    Fault.PARTITION: (3, 5),
}


@dataclass(slots=True)
class Campaign:
    """Faults on one running stack. `faults_wanted` counts all of the log's."""

    stack: ChaosStack
    log: FaultLog
    chance: random.Random
    agents: tuple[str, ...]
    wire_share: float = 0.12
    mean_pause_s: float = 2.0
    kinds: Mapping[Fault, tuple[float, float]] = field(default_factory=lambda: dict(WEIGHTS))
    _under_way: list[threading.Timer] = field(default_factory=list)
    _last: dict[Fault, float] = field(default_factory=dict)
    _submitted: int = 0
    _has_twin: bool = False

    def __post_init__(self) -> None:
        needs_postgres = {Fault.KILL_POSTMASTER, Fault.KILL_BACKEND}
        if self.stack.postgres is None:
            self.kinds = {kind: how for kind, how in self.kinds.items() if kind not in needs_postgres}

    # -- searches -----------------------------------------------------------------------------------------------------

    def submit(self, name: str, config: SearchConfig, agent: str) -> None:
        """Submit a search on one agent's device. Its setup is its own, so that it measures everything anew."""
        self._submitted += 1
        setup = MeasuringSetup(runtime="simulated", budget_s=1.0 + 0.01 * self._submitted)
        measuring = dataclasses.replace(config.measuring, kernels=setup, networks=setup)
        wanted = dataclasses.replace(config, name=name, device=self._device_id(agent), measuring=measuring)

        def is_submitted() -> bool:
            if not self.states().get(name):
                with self.stack.client() as client:
                    client.searches.create(encode(wanted))
            return True

        wait_until(is_submitted, f"the search {name} to be taken")

    def _device_id(self, agent: str) -> str:
        credentials = json.loads((self.stack.state_dir / agent / "credentials.json").read_text())
        return str(credentials["device_id"])

    def states(self) -> dict[str, JobState]:
        """The states of all searches by name. Raises what the database raises."""
        with self.stack.database.read() as session:
            return {row.name: row.state for row in session.execute(select(SearchRow.name, SearchRow.state))}

    def is_over(self, name: str) -> bool:
        """Whether a search has ended; False as well while the database is away."""
        try:
            return self.states()[name].is_terminal
        except Exception:
            return False

    def outcome(self, name: str) -> Any:
        """What a search found, without what is this run's own."""
        with self.stack.database.read() as session:
            row = session.execute(
                select(SearchRow.id, SearchRow.state, SearchRow.error).where(SearchRow.name == name)
            ).one()
        if row.state is not JobState.COMPLETED:
            return {"state": row.state.value, "error": row.error}
        with self.stack.client() as client:
            front = client.searches.result(row.id)["front"]
            for point in front:
                for figures in point["devices"]:
                    del figures["device_id"]
            return {"state": row.state.value, "searched": client.searches.searched_front(row.id), "front": front}

    # -- faults -------------------------------------------------------------------------------------------------------

    def run(self, is_enough: Callable[[], bool], next_search: Callable[[int], str]) -> list[str]:
        """Inject faults while searches run, one after the other, until `is_enough`; then let the last one end.

        Returns the names of the searches that `next_search` submitted.
        """
        self.stack.proxy.chance = WireChance(
            random.Random(self.chance.random()), self.wire_share, LEASE_DURATION_S + 1.5
        )
        self.stack.proxy.on_lent = None
        names = [next_search(0)]
        next_at = time.monotonic() + self.chance.expovariate(1 / self.mean_pause_s)
        while not is_enough():
            if time.monotonic() >= next_at:
                self._inject_if_possible(self._drawn())
                next_at = time.monotonic() + self.chance.expovariate(1 / self.mean_pause_s)
            if self.is_over(names[-1]):
                names.append(next_search(len(names)))
            time.sleep(0.05)
        self.end_faults()
        wait_until(lambda: self.is_over(names[-1]), f"the search {names[-1]} to end", SETTLING_LIMIT_S)
        return names

    def end_faults(self) -> None:
        """No more faults, and those under way are over."""
        self.stack.proxy.chance = None
        self.stack.proxy.on_lent = None
        for timer in self._under_way:
            timer.join()
        for name in self.agents:
            self.stack.disturb(name, Disturbance(task_s=TASK_S))

    def _drawn(self) -> Fault | None:
        now = time.monotonic()
        ready = {k: w for k, (w, gap_s) in self.kinds.items() if now - self._last.get(k, -1e9) >= gap_s}
        if not ready:
            return None
        kind = self.chance.choices(list(ready), list(ready.values()))[0]
        self._last[kind] = now
        return kind

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        """The end of a fault comes by itself: who waits for the service to answer must not keep it frozen."""
        timer = threading.Timer(seconds, action)
        timer.daemon = True
        timer.start()
        self._under_way.append(timer)

    def _inject_if_possible(self, fault: Fault | None) -> None:
        if fault is not None:
            try:
                self.inject(fault)
            except OSError as error:
                # The full disk is in the harness's way, too.
                self.log.note(f"no {fault.value}: {error}")

    def inject(self, fault: Fault) -> None:
        """Make one fault happen now."""
        stack, chance = self.stack, self.chance
        agent = chance.choice(self.agents)
        detail = ""
        if fault is Fault.KILL_SERVER:
            stack.kill("server", down_s=chance.choice([0.0, 0.0, 3.0]))
        elif fault is Fault.KILL_WORKER:
            stack.kill("worker")
        elif fault is Fault.KILL_AGENT:
            stack.kill(agent, down_s=chance.choice([0.0, 1.0]))
            detail = agent
        elif fault is Fault.KILL_EVERYTHING:
            if stack.postgres is not None:
                stack.kill_postmaster(down_s=0.0)
            stack.kill(*[name for name in stack.processes if name != "twin"])
        elif fault is Fault.KILL_POSTMASTER:
            stack.kill_postmaster(down_s=chance.choice([0.0, 3.0]))
        elif fault is Fault.KILL_BACKEND:
            if not stack.kill_backend(chance.randrange(100)):
                return
        elif fault in (Fault.FREEZE_SERVER, Fault.FREEZE_WORKER, Fault.FREEZE_AGENT):
            name = {Fault.FREEZE_SERVER: "server", Fault.FREEZE_WORKER: "worker"}.get(fault, agent)
            # Beyond the lease, or the time after which a worker counts as gone, half of the time.
            seconds = chance.choice([chance.uniform(0.5, 2.0), chance.uniform(5.0, 7.0)])
            stack.freeze(name, seconds)
            self._later(seconds, lambda: stack.thaw(name))
            detail = f"{name} for {seconds:.1f} s"
        elif fault is Fault.VANISH:
            self._vanish_when_lent(agent)
            return  # Counted when it happens.
        elif fault is Fault.TWIN:
            if self._has_twin:
                return
            stack.add_agent("twin", credentials_of=agent)
            self._has_twin = True
            stack.disturb("twin", Disturbance(task_s=TASK_S))
            gently = chance.random() < 0.5
            self._later(chance.uniform(3.0, 8.0), lambda: self._remove_twin(gently=gently))
            detail = agent
        elif fault is Fault.DATABASE_LOCKED:
            detail = self._lock_database(chance.choice([0.5, 2.0, 11.0]))
        elif fault is Fault.DISK_FULL:
            seconds = chance.uniform(1.0, 6.0)
            self._later(seconds, stack.free_disk)
            stack.fill_disk()
            detail = f"for {seconds:.1f} s"
        elif fault is Fault.CLOCK_JUMP:
            offset_s = chance.choice([-1e9, -86400.0, -30.0, 30.0, 86400.0, 1e9])
            stack.disturb(agent, Disturbance(clock_offset_s=offset_s, task_s=TASK_S))
            detail = f"{agent} by {offset_s:g} s"
        elif fault is Fault.PARTITION:
            seconds = chance.choice([1.0, 3.0, LEASE_DURATION_S + 2.0])
            stack.proxy.is_partitioned = True
            self._later(seconds, self._end_partition)
            detail = f"for {seconds:.1f} s"
        self.log.add(fault, detail)

    def _remove_twin(self, *, gently: bool) -> None:
        """Its folder is free for the next one when it has ended, and not before."""
        try:
            self.stack.remove("twin", gently=gently)
        finally:
            self._has_twin = False

    def _end_partition(self) -> None:
        self.stack.proxy.is_partitioned = False

    def _vanish_when_lent(self, agent: str) -> None:
        """Kill an agent at the moment when leases have come to one, and leave it away until they are over."""

        def vanish() -> None:
            if agent in self.stack.processes:
                self.stack.kill(agent, down_s=LEASE_DURATION_S + 1.0)
                self.log.add(Fault.VANISH, agent)

        def lent() -> None:
            self.stack.proxy.on_lent = None
            threading.Thread(target=vanish, name="vanish", daemon=True).start()

        self.stack.proxy.on_lent = lent

    def _lock_database(self, seconds: float) -> str:
        """Hold the lock that writers need, as a long transaction of somebody else would."""
        url = self.stack.database.url

        def hold() -> None:
            with contextlib.suppress(Exception):
                if self.stack.database.is_sqlite:
                    connection = sqlite_module().connect(url.database, timeout=5.0, isolation_level=None)
                    try:
                        connection.execute("BEGIN IMMEDIATE")
                        time.sleep(seconds)
                    finally:
                        connection.close()
                else:
                    with self.stack.database.write() as session:
                        session.execute(text("LOCK TABLE measurement_task IN EXCLUSIVE MODE"))
                        time.sleep(seconds)

        threading.Thread(target=hold, name="lock", daemon=True).start()
        return f"for {seconds:.1f} s"

    # -- the end ------------------------------------------------------------------------------------------------------

    def settled(self) -> Findings:
        """What holds once all work has had the time to end. Faults must be over."""

        def is_quiet() -> bool:
            with self.stack.database.read() as session:
                waiting = session.scalars(
                    select(TaskRow.id).where(TaskRow.state.in_((TaskState.PENDING, TaskState.LEASED))).limit(1)
                ).first()
            spooled = any(any(path.glob("*/*.json")) for path in self._spools())
            return waiting is None and not spooled and all(state.is_terminal for state in self.states().values())

        with contextlib.suppress(TimeoutError):
            wait_until(is_quiet, "all work to end", timeout_s=60.0)
        return settle(self.stack.database, self.stack.proxy.receipts, self._spools())

    def _spools(self) -> list[Path]:
        return [self.stack.state_dir / name / "spool" for name in self.agents]
