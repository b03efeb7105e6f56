"""A file that somebody else made, read in a process with limits on memory and time.

What parses it may be C code, and the file may have been made to break it or to fill the memory: it then takes that
process down, and not the one that asked. `run_limited` starts `python -m MODULE`, which ends in `answer_request`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.errors import SearchError

#: Files that are read at once: each may take the memory that its limits allow.
MAX_AT_ONCE = 2
_free_places = threading.BoundedSemaphore(MAX_AT_ONCE)
#: Variables that may hold passwords of the database, keys of tokens and of object stores: no file is worth those.
_SECRETIVE = ("KERF_", "AWS_", "AZURE_", "GOOGLE_", "PG", "RAY_AUTH")
#: How a child is told its limits.
_LIMITS_VARIABLE = "KERF_CHILD_LIMITS"


class BrokenOff(SearchError):
    """A child process gave no answer: it ran too long, took too much memory, or was taken down. The text names the
    file and the remedy.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a child process may take: memory beyond that of its libraries, and time."""

    memory_bytes: int
    timeout_s: int


def run_limited(module: str, request: Mapping[str, Any], path: Path, limits: Limits) -> dict[str, Any]:
    """What `python -m module` answers to `request` about the file `path`, which errors call by its name alone.

    Raises:
        BrokenOff: There is no answer within the limits.
    """
    if not _free_places.acquire(timeout=limits.timeout_s):
        raise BrokenOff(f"{path.name} was not checked, as others are being checked: try again later")
    try:
        return _answer_of(module, request, path, limits)
    finally:
        _free_places.release()


def _answer_of(module: str, request: Mapping[str, Any], path: Path, limits: Limits) -> dict[str, Any]:
    # One thread: the libraries' pools would each reserve memory of their own.
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(_SECRETIVE)},
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        _LIMITS_VARIABLE: f"{limits.memory_bytes} {limits.timeout_s}",
    }
    try:
        ended = subprocess.run(
            # -P: a module in the current folder must not be taken for one of a library.
            [sys.executable, "-P", "-m", module],
            input=json.dumps(dict(request)),
            capture_output=True,
            text=True,
            timeout=limits.timeout_s,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BrokenOff(f"{path.name} could not be checked within {limits.timeout_s} s: make it smaller") from None
    try:
        answer: dict[str, Any] = json.loads(ended.stdout)
    except ValueError:
        raise BrokenOff(
            f"{path.name} broke the check off (exit {ended.returncode}), as a damaged file does: make it again"
        ) from None
    if "too_large" in answer:
        raise BrokenOff(f"{path.name} takes more than {limits.memory_bytes >> 30} GiB to read: make it smaller")
    if "error" in answer:
        answer["error"] = str(answer["error"]).replace(f"{path.parent}{os.sep}", "")
    return answer


def answer_request(
    answer: Callable[[dict[str, Any]], dict[str, Any]], prepare: Callable[[dict[str, Any]], None] | None = None
) -> None:
    """The child's part: read the request from standard input, set the limits, write the answer to standard output.

    `prepare` comes before the limits: it imports libraries that take much memory by themselves.
    """
    memory_bytes, timeout_s = map(int, os.environ[_LIMITS_VARIABLE].split())
    request = json.load(sys.stdin)
    if prepare is not None:
        prepare(request)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = _mapped_bytes() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (timeout_s, timeout_s))
    try:
        found = answer(request)
    except MemoryError:
        found = {"too_large": True}
    json.dump(found, sys.stdout)


def _mapped_bytes() -> int:
    """The address space that this process has taken; libraries for GPUs alone map gigabytes. 0 where nothing tells."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        return 0
    return pages * resource.getpagesize()
