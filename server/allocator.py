"""What the C library keeps of freed memory.

glibc gives threads heaps of their own, up to eight a core, and each stays as large as the most that was ever needed in
it. SQLite sorts in memory outside of Python's own heap: one page that sorts 50 MB, opened some twenty times, came to
1.2 GiB in a server whose threads take turns.
"""

from __future__ import annotations

import ctypes
import os

#: glibc's number for what MALLOC_ARENA_MAX sets (mallopt(3)).
_M_ARENA_MAX = -8
#: Threads wait for each other where they allocate at once; most of what a server does holds Python's lock anyway.
_MAX_HEAPS = 2
_SET_BY_USER = ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")


def share_heaps() -> bool:
    """Let all threads that start from now on share two heaps. False where the C library has no such setting, or the
    environment already says something about it.
    """
    if any(name in os.environ for name in _SET_BY_USER):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    return set_option is not None and bool(set_option(_M_ARENA_MAX, _MAX_HEAPS))
