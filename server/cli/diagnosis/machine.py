"""This machine: what is installed, its disk and database, and whether it can measure."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from device_agent import __version__
from server.cli.diagnosis.finding import Finding, broken, ok, unknown, warning
from server.schema import schema_status
from server.settings import Settings
from server.status import MIN_FREE_BYTES

#: Less, and a search's checkpoints and files may not fit.
LOW_FREE_BYTES = 1 << 30
#: A first look compiles the native library and opens each runtime in a process of its own.
PROBE_TIMEOUT_S = 300.0

#: Runtimes that searches need: measuring of pruned networks, and the dense baseline. Others are a choice.
_NEEDED = ("native", "tflite")
_RUNTIME_REMEDIES = {
    "native": "install a C++ compiler (g++ or clang) and install Kerf again, or use a wheel of `make wheels`",
    "tflite": "pip install 'kerf[agent]', or 'kerf[agent-legacy]' on boards that it does not cover",
}

#: Runs a command of the agent, given its arguments, and gives its standard output. Raises `OSError` or `ValueError`.
RunAgent = Callable[[Sequence[str]], str]


def run_agent(arguments: Sequence[str]) -> str:
    """`kerf-agent` in a process of its own: only the agent may import its parts. Exit code 1 has an output too."""
    # -P: a server.py in the current folder must not be taken for ours.
    command = [sys.executable, "-P", "-m", "device_agent", *arguments]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=PROBE_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"{' '.join(arguments)} took longer than {PROBE_TIMEOUT_S:.0f} s") from None
    if not done.stdout:
        raise ValueError(done.stderr.strip() or f"{' '.join(arguments)} ended with code {done.returncode}")
    return done.stdout


def machine_findings(settings: Settings, run: RunAgent = run_agent) -> Iterator[Finding]:
    """What there is to say about this machine, one thing after the other."""
    yield ok("kerf", f"{__version__} on Python {platform.python_version()}, {platform.machine()}")
    yield _torch()
    yield from _runtimes(run)
    yield from _conditions(run)
    yield _disk(settings.data_dir)
    yield _database(settings)


def _torch() -> Finding:
    try:
        return ok("torch", metadata.version("torch"))
    except metadata.PackageNotFoundError:
        return unknown("torch", "not installed", "where a worker is to run: pip install 'kerf[search]'")


def _runtimes(run: RunAgent) -> Iterator[Finding]:
    try:
        probed = json.loads(run(["probe", "--log-level", "error"]))
        runtimes: Sequence[Mapping[str, Any]] = probed["runtimes"]
    except (OSError, ValueError, KeyError) as error:
        yield broken("agent", f"`kerf-agent probe` fails: {error}", "install Kerf again; kerf-agent probe says more")
        return
    for runtime in runtimes:
        name, reason = runtime["name"], runtime.get("unavailable")
        if reason is None:
            yield ok(f"runtime {name}", f"{runtime['version']}, {runtime['isa']}")
        elif name in _NEEDED:
            yield broken(f"runtime {name}", str(reason), _RUNTIME_REMEDIES[name])
        else:
            yield unknown(f"runtime {name}", f"not here: {reason}")


def _conditions(run: RunAgent) -> Iterator[Finding]:
    """What `kerf-agent preflight` sees: governor, boost, heat, quotas, other load. Bad ones make figures noisy."""
    try:
        checks: Sequence[Mapping[str, Any]] = json.loads(run(["preflight", "--json", "--log-level", "error"]))
    except (OSError, ValueError) as error:
        yield unknown("conditions", f"`kerf-agent preflight` fails: {error}")
        return
    for check in checks:
        if check["ok"] is False:
            yield warning(check["name"], check["found"], check["remedy"] or "see docs/measuring.md")
        elif check["ok"]:
            yield ok(check["name"], check["found"])
        else:
            yield unknown(check["name"], check["found"], check["remedy"])


def _disk(folder: Path) -> Finding:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        return broken("data folder", f"{folder} cannot be written to", "set KERF_DATA_DIR to a folder that can")
    free_bytes = shutil.disk_usage(existing).free
    found = f"{free_bytes / 1e9:.1f} GB free at {folder}"
    remedy = "make room, or set KERF_DATA_DIR to a folder on another disk"
    if free_bytes < MIN_FREE_BYTES:
        return broken("data folder", found, remedy)
    return warning("data folder", found, remedy) if free_bytes < LOW_FREE_BYTES else ok("data folder", found)


def _database(settings: Settings) -> Finding:
    try:
        found = schema_status(settings)
    except (SQLAlchemyError, OSError) as error:
        first = str(error).splitlines()[0]
        return broken("database", f"does not answer: {first}", "start it, or correct KERF_DATABASE_URL")
    if found.schema is None:
        return unknown("database", f"none yet at {found.url}", "`kerf up` and `kerf db upgrade` make it")
    if not found.is_newest:
        return broken(
            "database",
            f"{found.url} has schema {found.schema}, the code needs {found.newest}",
            "run `kerf db upgrade`; if the database is of a newer Kerf, install that",
        )
    return ok("database", f"{found.url}, schema {found.schema}")
