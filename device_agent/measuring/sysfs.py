"""Reading single values from /proc and /sys. Whatever cannot be read is None; nothing here raises.

Sensors may fail with EIO, EAGAIN or EACCES at any time, and hold bytes that are no text.
"""

from __future__ import annotations

from pathlib import Path


def read_text(path: Path) -> str | None:
    """The text of a file without the spaces around it."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def first_number(path: Path) -> float | None:
    """The number that a file begins with."""
    text = read_text(path)
    if not text:
        return None
    try:
        return float(text.split()[0])
    except ValueError:
        return None


def first_integer(path: Path) -> int | None:
    """Likewise, as a whole number."""
    value = first_number(path)
    return None if value is None else int(value)
