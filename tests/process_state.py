"""What the kernel says of a process, this test's child or not."""

from __future__ import annotations

from pathlib import Path


def state_of(pid: int) -> str | None:
    """Its letter in /proc/PID/stat (proc(5)): R, S, D, T, Z ...; None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return None


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    return state_of(pid) not in (None, "Z")
