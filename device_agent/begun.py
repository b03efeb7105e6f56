"""Which task this agent is at, on the disk: an agent that is back after a crash knows by it which task brought it down.

A task runs in a child process, but some take the whole device along: they fill its memory, hang its driver, or reset
its board. Without this the server would lend such a task again and again, and what was lent with it would fail, too.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from device_agent.contracts import Lease

#: The file keeps its size, so that writing it needs no room on a full disk.
_SIZE_BYTES = 512


class BegunTask:
    """The one task in hand. `left_behind` is the one that the last process was at, if it did not end by itself.

    Raises `OSError` where the file cannot be made; later failures to write it only lose this knowledge.
    """

    def __init__(self, path: Path) -> None:
        self.left_behind = _read(path)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def begin(self, lease: Lease) -> None:
        """A task begins. When this returns, a crash of the device leaves it on the disk."""
        self._write({"task_id": lease.task_id})
        with contextlib.suppress(OSError):
            os.fdatasync(self._file)

    def end(self) -> None:
        """No task is in hand. It may be called from any thread."""
        self._write({})

    def brought_down(self, lease: Lease) -> bool:
        """Whether the agent or its device went down with this task in hand, and nobody was told of it yet.

        The lending may be another one by now: a board takes its time to come back, and its leases run out meanwhile.
        """
        return self.left_behind == lease.task_id

    def told(self) -> None:
        """What brought the agent down is reported: once for each time."""
        self.left_behind = None
        self.end()

    def _write(self, data: dict[str, object]) -> None:
        text = json.dumps(data).encode().ljust(_SIZE_BYTES)
        with contextlib.suppress(OSError):
            os.pwrite(self._file, text[:_SIZE_BYTES], 0)


def _read(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text())["task_id"])
    except (OSError, ValueError, KeyError, TypeError):
        # Nothing was begun, or the device went down while it wrote this: then nothing had begun either.
        return None
