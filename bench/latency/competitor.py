"""Processes that take a core away, for showing what they do to measurements."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

#: Copies 8 MB back and forth for ever: takes its core and the caches. Says when it has begun.
_SCRIPT = """
import os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {int(sys.argv[1])})
a, b = bytearray(8 << 20), bytearray(8 << 20)
print("busy", flush=True)
while True:
    a[:] = b
    b[:] = a
"""


@contextmanager
def competing_on(cores: Sequence[int]) -> Iterator[None]:
    """One busy process on each of `cores` while this is open."""
    with ExitStack() as stack:
        for core in cores:
            process = subprocess.Popen([sys.executable, "-c", _SCRIPT, str(core)], stdout=subprocess.PIPE)
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout is not None
            stack.enter_context(process.stdout)
            process.stdout.readline()
        yield
