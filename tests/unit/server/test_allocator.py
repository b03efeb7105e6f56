"""Heaps that glibc keeps, in processes of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from server.allocator import share_heaps

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")

_THREADS = 8
_COUNT_HEAPS = f"""
import ctypes, sys, threading
from server.allocator import share_heaps

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
print(share_heaps())
all_are_there = threading.Barrier({_THREADS})
def allocate():
    all_are_there.wait()
    libc.malloc(ctypes.c_size_t(100_000))
    all_are_there.wait()
threads = [threading.Thread(target=allocate) for _ in range({_THREADS})]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.stdout.flush()
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def heaps(**environment: str) -> tuple[bool, int]:
    """What `share_heaps` said, and how many heaps threads came to that were there at once."""
    kept = {name: value for name, value in os.environ.items() if name not in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")}
    command = [sys.executable, "-c", _COUNT_HEAPS]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True)
    said, _, figures = done.stdout.partition("\n")
    return said == "True", figures.count("<heap nr=")


def test_threads_share_two_heaps() -> None:
    assert heaps() == (True, 2)


def test_what_the_environment_says_is_kept() -> None:
    assert heaps(MALLOC_ARENA_MAX="5") == (False, 5)


def test_other_c_libraries_have_no_such_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    monkeypatch.setattr("server.allocator.ctypes.CDLL", lambda _: object())
    assert not share_heaps()
