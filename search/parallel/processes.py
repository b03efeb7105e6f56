"""A crew of processes on this machine.

Each process has one pipe and does one piece at a time, so that a death concerns that piece alone: the standard
library's pool is broken as a whole by it, and cannot end a process that is at work.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any, Self

from search.parallel.crew import Contact, Died, Done, Outcome, Prepare, Told

_DONE, _RAISED, _TOLD = range(3)


@dataclass(slots=True, eq=False)
class _Member:
    process: SpawnProcess
    pipe: Connection
    ticket: int | None = None


class ProcessCrew:
    """Up to `size` processes, started as pieces come and kept until the crew is closed.

    They are spawned, not forked: threads of torch do not survive a fork. A process ends when this one does, however.

    Args:
        prepare: See `search.parallel.crew`.
        size: How many processes.
    """

    def __init__(self, prepare: Prepare, size: int) -> None:
        if size < 1:
            raise ValueError(f"size {size} must be at least 1")
        self._prepare = pickle.dumps(prepare, pickle.HIGHEST_PROTOCOL)
        self._size = size
        self._members: list[_Member] = []

    @property
    def size(self) -> int:
        return self._size

    @property
    def process_ids(self) -> list[int]:
        """Of the processes that are there, those at work first."""
        members = sorted(self._members, key=lambda member: member.ticket is None)
        return [member.process.pid for member in members if member.process.pid is not None]

    def submit(self, ticket: int, piece: Any) -> None:
        data = pickle.dumps(piece, pickle.HIGHEST_PROTOCOL)
        while True:
            member = next((m for m in self._members if m.ticket is None), None) or self._started()
            try:
                member.pipe.send_bytes(data)
            except OSError:
                # It died while it had nothing to do.
                self._end(member)
                continue
            member.ticket = ticket
            return

    def wait(self, timeout_s: float, contact: Contact) -> Sequence[Outcome]:
        by_pipe = {member.pipe: member for member in self._members if member.ticket is not None}
        outcomes: list[Outcome] = []
        for ready in connection.wait(list(by_pipe), timeout_s):
            assert isinstance(ready, Connection)
            outcomes.append(self._received(by_pipe[ready]))
        return outcomes

    def close(self) -> None:
        for member in list(self._members):
            self._end(member)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _started(self) -> _Member:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), name="kerf crew", daemon=True)
        process.start()
        theirs.close()
        member = _Member(process, ours)
        self._members.append(member)
        member.pipe.send_bytes(self._prepare)
        return member

    def _received(self, member: _Member) -> Outcome:
        assert member.ticket is not None
        ticket = member.ticket
        try:
            kind, value = pickle.loads(member.pipe.recv_bytes())
        except (EOFError, OSError):
            return Died(ticket, self._end(member))
        if kind == _TOLD:
            return Told(ticket, value)
        member.ticket = None
        return Done(ticket, error=value) if kind == _RAISED else Done(ticket, value)

    def _end(self, member: _Member) -> str:
        """Be rid of a process; returns how it ended."""
        self._members.remove(member)
        member.pipe.close()
        # One that is already over keeps its own exit code.
        member.process.join(timeout=0.5 if member.ticket is not None and not member.process.is_alive() else 0)
        member.process.kill()
        member.process.join()
        code = member.process.exitcode or 0
        member.process.close()
        if code >= 0:
            return f"it exited with status {code}"
        note = ", as it does where memory runs out" if -code == signal.SIGKILL else ""
        return f"it was ended by {signal.Signals(-code).name}{note}"


def _serve(pipe: Connection) -> None:
    """A member's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()

    def send(kind: int, value: Any) -> None:
        try:
            data = pickle.dumps((kind, value), pickle.HIGHEST_PROTOCOL)
            pickle.loads(data)
        except Exception as error:
            if kind != _RAISED:
                raise
            data = pickle.dumps((kind, RuntimeError(f"{type(value).__name__}: {value} ({error})")))
        pipe.send_bytes(data)

    contact = Contact(tell=lambda note: send(_TOLD, note))
    prepare = pipe.recv_bytes()
    do = None
    while True:
        try:
            piece = pipe.recv_bytes()
        except EOFError:
            return
        try:
            if do is None:
                do = pickle.loads(prepare)()
            result = do(pickle.loads(piece), contact)
        except Exception as error:
            send(_RAISED, error)
        else:
            send(_DONE, result)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
