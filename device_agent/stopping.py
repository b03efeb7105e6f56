"""How an agent is asked to stop: the first SIGTERM or SIGINT drains, the second stops at once."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from device_agent.log import log_event

logger = logging.getLogger(__name__)


class PollInterrupted(BaseException):
    """A stop signal came while the main thread waited for the server.

    A `BaseException`, so that no library on the way takes it for a failure of its own.
    """


class StopRequest:
    """Whether and how this agent should stop. Its methods may be called from any thread."""

    def __init__(self) -> None:
        #: Finish the task in hand, give the rest back, deliver, end.
        self.drain = threading.Event()
        #: End now. What is on the disk stays there.
        self.abort = threading.Event()
        self._signals = 0
        self._interruptible = False
        self._on_abort: list[Callable[[], None]] = []

    def on_abort(self, action: Callable[[], None]) -> None:
        """Run `action` when an abort is asked for; it must be quick."""
        self._on_abort.append(action)

    def ask_drain(self) -> None:
        """Ask the agent to end after the task in hand."""
        self.drain.set()

    def ask_abort(self) -> None:
        """Ask the agent to end now."""
        self.abort.set()
        self.ask_drain()
        for action in self._on_abort:
            action()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a stop signal raise `PollInterrupted` inside this block (in the main thread only).

        A signal that came before raises at once. `drain` may be set a moment after the exception: wait for it.
        """
        self._interruptible = True
        try:
            if self._signals or self.drain.is_set():
                raise PollInterrupted
            yield
        finally:
            self._interruptible = False

    @contextmanager
    def signals_handled(self) -> Iterator[None]:
        """Turn SIGTERM and SIGINT into requests until the block ends. Main thread only.

        The handler itself takes no lock: it runs between two instructions of the main thread, which may hold that very
        lock. It counts, writes a byte to a pipe, and a thread does the rest.
        """
        read_end, write_end = os.pipe()

        def handle(number: int, frame: FrameType | None) -> None:
            self._signals += 1
            os.write(write_end, b"s")
            if self._interruptible:
                self._interruptible = False
                raise PollInterrupted

        def watch() -> None:
            while os.read(read_end, 1) == b"s":
                if self.drain.is_set():
                    log_event(logger, logging.WARNING, "stopping_at_once")
                    self.ask_abort()
                else:
                    log_event(logger, logging.INFO, "draining", hint="a second signal stops at once")
                    self.ask_drain()

        watcher = threading.Thread(target=watch, name="stop-signals", daemon=True)
        watcher.start()
        previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            os.write(write_end, b"q")
            watcher.join()
            os.close(read_end)
            os.close(write_end)
