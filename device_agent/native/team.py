"""Threads that run a program's steps together with the caller.

Python only starts them: each enters the library once, without the interpreter's lock, and comes back at the end. The
state that they share is in memory that belongs to the team.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from device_agent.native.errors import NativeError
from device_agent.native.library import MAX_THREADS, TEAM_ALIGNMENT, Library, Step

#: Steps that last longer are shared, whatever a measurement on a busy machine says.
LONGEST_ALONE_NS = 50_000
#: Rows of steps that are shorter together do as the ones before: their data is where those have left it.
SHORTEST_DECIDED_NS = 20_000
#: Shorter ones have to save this part of their time to be worth a second core.
SHARED_GAIN = 0.1


class Team:
    """`num_threads` threads, the caller's own counted. They end with `close`, or when the team is garbage collected.

    Between runs the others sleep. With `cores`, one for each thread, the caller's thread is pinned to the first of them
    and the others to the rest: on a busy machine, threads that meet often can else end up on one core. Raises
    `ValueError` for a number that is not in 1..16 and for cores that do not fit, and `NativeError` for cores that the
    system refuses.
    """

    def __init__(self, library: Library, num_threads: int, cores: Sequence[int] = ()) -> None:
        if not 1 <= num_threads <= MAX_THREADS:
            raise ValueError(f"threads {num_threads!r} is not in 1..{MAX_THREADS}")
        if cores and len(set(cores)) != num_threads:
            raise ValueError(f"cores {tuple(cores)!r}: name one core for each of {num_threads} threads")
        self.num_threads = num_threads
        memory = np.zeros(library.team_bytes(num_threads) + TEAM_ALIGNMENT, dtype=np.uint8)
        start = memory.ctypes.data
        #: Where the library's `KerfTeam` is, for the functions that take one.
        self.address = start + -start % TEAM_ALIGNMENT
        library.team_init(self.address, num_threads)
        # The threads hold the memory but not the team, so that the team can be collected while they sleep.
        threads = [
            threading.Thread(
                target=_work, args=(library, self.address, number, memory), name=f"kerf-{number}", daemon=True
            )
            for number in range(1, num_threads)
        ]
        for thread in threads:
            thread.start()
        # Also called at exit: no thread may look at memory that the ending interpreter frees.
        self._end = weakref.finalize(self, _stop, library, self.address, threads, memory)
        _teams.add(self)
        if cores:
            self._pin(threads, cores)

    def _pin(self, threads: Sequence[threading.Thread], cores: Sequence[int]) -> None:
        try:
            for thread, core in zip(threads, cores[1:], strict=True):
                assert thread.native_id is not None
                os.sched_setaffinity(thread.native_id, {core})
            os.sched_setaffinity(0, {cores[0]})
        except OSError as error:
            self.close()
            raise NativeError(f"threads cannot be pinned to the cores {tuple(cores)!r}: {error}") from None

    def close(self) -> None:
        """Stop the threads and wait for their end. Runs with a closed team are refused."""
        self._end()


def _work(library: Library, address: int, number: int, memory: NDArray[np.uint8]) -> None:
    library.team_work(address, number)


def _stop(library: Library, address: int, threads: Sequence[threading.Thread], memory: NDArray[np.uint8]) -> None:
    library.team_stop(address)
    for thread in threads:
        # Garbage may be collected on any thread.
        if thread is not threading.current_thread():
            thread.join()


_teams: weakref.WeakSet[Team] = weakref.WeakSet()


def _after_fork() -> None:
    """The threads are missing in a child process: refuse runs there instead of waiting for them for ever."""
    for team in list(_teams):
        team.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def available_cores() -> tuple[int, ...]:
    """The cores that the calling thread may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def limit_shares(
    steps: Sequence[Step], alone_ns: Sequence[float], shared_ns: Sequence[float], num_threads: int
) -> None:
    """Let one thread run the steps that are not faster on all: `alone_ns` and `shared_ns` are their times on both.

    What a step costs on several threads is mostly the way of its data from one core's cache to the other's, which no
    formula knows; so it is measured. Steps in a row whose images have the same size are decided together, since data
    that stays where it is costs nothing.
    """
    pays = False
    for _, run in itertools.groupby(range(len(steps)), lambda i: (steps[i].output_h, steps[i].output_w)):
        indices = list(run)
        alone, shared = sum(alone_ns[i] for i in indices), sum(shared_ns[i] for i in indices)
        if alone >= SHORTEST_DECIDED_NS:
            pays = shared < (1 - SHARED_GAIN) * alone or max(alone_ns[i] for i in indices) > LONGEST_ALONE_NS
        for i in indices:
            steps[i].max_parts = num_threads if pays else 1
