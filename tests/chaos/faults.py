"""The kinds of faults that are injected, and a count of those that were."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from enum import StrEnum
from pathlib import Path


class Fault(StrEnum):
    """What can go wrong. The names are the keys of `faults_by_kind` in the result."""

    # On the wire, one request each.
    CUT_BEFORE = "request_cut_before_it_arrived"
    CUT_AFTER = "answer_cut_off"
    TRUNCATED = "answer_truncated"
    SLOW = "request_slow"
    TWICE = "request_twice"
    TWICE_AT_ONCE = "request_twice_at_once"
    REPLAYED = "request_replayed_later"
    REORDERED = "request_overtaken"
    LATE = "request_after_its_lease"
    BAD_GATEWAY = "bad_gateway"
    CAPTIVE_PORTAL = "captive_portal"
    PARTITION = "network_partition"
    # Processes.
    KILL_SERVER = "server_killed"
    KILL_WORKER = "worker_killed"
    KILL_AGENT = "agent_killed"
    KILL_EVERYTHING = "all_processes_killed"
    KILL_POSTMASTER = "postgresql_killed"
    KILL_BACKEND = "postgresql_backend_killed"
    FREEZE_SERVER = "server_frozen"
    FREEZE_WORKER = "worker_frozen"
    FREEZE_AGENT = "agent_frozen"
    VANISH = "agent_vanished_with_a_lease"
    TWIN = "second_agent_with_the_same_token"
    # Below them.
    DATABASE_LOCKED = "database_locked"
    DISK_FULL = "disk_full"
    CLOCK_JUMP = "clock_of_an_agent_jumped"
    # The task itself.
    DEADLY_TASK = "task_killed_its_agent"
    HANGING_TASK = "task_hung_its_device"


WIRE_FAULTS = (
    Fault.CUT_BEFORE,
    Fault.CUT_AFTER,
    Fault.TRUNCATED,
    Fault.SLOW,
    Fault.TWICE,
    Fault.TWICE_AT_ONCE,
    Fault.REPLAYED,
    Fault.REORDERED,
    Fault.LATE,
    Fault.BAD_GATEWAY,
    Fault.CAPTIVE_PORTAL,
)


class FaultLog:
    """Counts faults, and keeps a line of each in a file. Its methods may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[Fault] = Counter()
        self._started_at = time.monotonic()
        self._path = path

    def add(self, fault: Fault, detail: str = "") -> None:
        """A fault has been injected, now."""
        with self._lock:
            self._counts[fault] += 1
            self._write(f"{fault.value} {detail}")

    def note(self, text: str) -> None:
        """Something else worth a line in the log."""
        with self._lock:
            self._write(f"-- {text}")

    def _write(self, text: str) -> None:
        with self._path.open("a") as file:
            file.write(f"{time.monotonic() - self._started_at:8.2f} s  {text.rstrip()}\n")

    @property
    def total(self) -> int:
        with self._lock:
            return sum(self._counts.values())

    @property
    def by_kind(self) -> dict[str, int]:
        """The counts by name, in the order of the kinds."""
        with self._lock:
            return {fault.value: self._counts[fault] for fault in Fault if self._counts[fault]}


class WireChance:
    """Which request meets which fault. Reports meet more than others: they are what must not be lost."""

    def __init__(self, chance: random.Random, share: float, late_s: float) -> None:
        self._chance = chance
        self._share = share
        self.late_s = late_s

    def draw(self, path: str) -> Fault | None:
        """The fault of a request to `path`; None leaves it alone."""
        is_report = path == "/v1/reports"
        if self._chance.random() >= self._share * (2.0 if is_report else 1.0):
            return None
        possible = [f for f in WIRE_FAULTS if is_report or f not in (Fault.LATE, Fault.REPLAYED)]
        return self._chance.choice(possible)

    def delay_s(self, fault: Fault) -> float:
        """How long a fault that takes time lasts."""
        if fault is Fault.LATE:
            return self.late_s
        if fault is Fault.REPLAYED:
            return self._chance.uniform(0.5, 2 * self.late_s)
        return self._chance.uniform(0.1, 2.5)

    def at_random(self) -> float:
        """Evenly from [0, 1)."""
        return self._chance.random()
