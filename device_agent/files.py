"""Files that must be whole or absent, whenever the power fails."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

#: Names of files that are being written; a crash may leave them behind.
TEMPORARY_SUFFIX = ".partial"


def write_atomically(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write `content` to `path` so that a crash at any moment leaves the old file or the new one.

    The file and then its directory are flushed to the disk before this returns. Raises `OSError`, and then leaves no
    temporary file.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporary_files(directory: Path) -> None:
    """Delete what an earlier process was writing into `directory` when it was killed."""
    for path in directory.glob(f"*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)


def private_directory(path: Path) -> Path:
    """Create `path` and its parents; only this user may look into it. Returns it."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path
