"""Server, worker and one agent on this machine, as the three separate processes that they are anywhere else."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kerf import Client
from server.accounts.service import ensure_local_admin_token
from server.accounts.tokens import write_private
from server.database import Database, upgrade
from server.settings import Settings

#: A first start compiles templates and opens the database; on a loaded 2-core machine it took 9 s.
START_TIMEOUT_S = 90.0
#: An agent whose package came without the kernels compiles them at its first start, and says so in its log.
COMPILE_TIMEOUT_S = 3600.0
_COMPILING = "event=compiling_kernels"
#: Longer than the server's own graceful time-out (5 s) and than one kernel measurement.
STOP_TIMEOUT_S = 20.0


class StackError(Exception):
    """A process of the local stack did not start or died. The text names its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackOptions:
    """Where the stack lives and what runs in it. `port` 0 takes a free one."""

    state_dir: Path
    host: str = "127.0.0.1"
    port: int = 0
    with_agent: bool = True
    simulated: bool = False


@dataclass(slots=True)
class LocalStack:
    """A running stack. Use `running_stack`; `check` raises `StackError` when a process has died."""

    url: str
    token: str = field(repr=False)
    state_dir: Path
    commands: dict[str, list[str]] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def client(self) -> Client:
        return Client(self.url, self.token)

    def start(self, name: str) -> None:
        """Start the process `name` ("server", "worker" or "agent"), again after it ended. Its log is appended to."""
        # The stack serves the person who starts it: the dashboard asks them for no token, unless they want it to.
        environment = {"KERF_OPEN_DASHBOARD": "1", **os.environ, "KERF_DATA_DIR": str(self.state_dir)}
        with (self.state_dir / "logs" / f"{name}.log").open("ab") as log:
            # A session of its own: Ctrl-C in the terminal reaches only us, and we stop the processes in order.
            self.processes[name] = subprocess.Popen(
                self.commands[name],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def check(self) -> None:
        for name, process in self.processes.items():
            code = process.poll()
            if code is not None:
                log = self.state_dir / "logs" / f"{name}.log"
                raise StackError(f"the {name} ended with code {code}; its log is {log}\n{_tail(log)}")

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds. Raises `StackError` after `START_TIMEOUT_S` (an agent that compiles has more
        time), or when a process has died.
        """
        start, timeout_s = time.monotonic(), START_TIMEOUT_S
        while not condition():
            self.check()
            if time.monotonic() > start + timeout_s:
                if timeout_s < COMPILE_TIMEOUT_S and self._agent_compiles():
                    timeout_s = COMPILE_TIMEOUT_S
                    continue
                raise StackError(f"waited {timeout_s:.0f} s for {what}; see the logs in {self.state_dir / 'logs'}")
            time.sleep(0.1)

    def _agent_compiles(self) -> bool:
        return "agent" in self.processes and _COMPILING in _tail(self.state_dir / "logs" / "agent.log")

    def stop(self) -> None:
        """Stop the agent first, so that it can hand back what it holds, and the server last."""
        for name in ("agent", "worker", "server"):
            process = self.processes.get(name)
            if process is None or process.poll() is not None:
                continue
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def running_stack(options: StackOptions) -> Iterator[LocalStack]:
    """Start server, worker and agent, wait until they are ready, and stop them cleanly at the end.

    Raises `StackError` where one of them does not start.
    """
    options.state_dir.mkdir(parents=True, exist_ok=True)
    (options.state_dir / "logs").mkdir(exist_ok=True)
    settings = local_settings(options.state_dir)
    upgrade(settings)
    database = Database.from_settings(settings)
    try:
        token = ensure_local_admin_token(database, settings)
    finally:
        database.dispose()
    port = options.port or _free_port(options.host)
    stack = LocalStack(url=_url(options.host, port), token=token, state_dir=options.state_dir)
    with _terminated_as_interrupted(), _known_address(settings.local_address_file, stack.url):
        try:
            _start_all(stack, options, port)
            yield stack
        finally:
            stack.stop()


@contextlib.contextmanager
def _known_address(path: Path, url: str) -> Iterator[None]:
    """Clients that are told no server go to this one, and show the local token to no other. At the end they go again
    where they went before: a `kerf up` may still run there.
    """
    earlier = path.read_text(encoding="utf-8") if path.is_file() else ""
    write_private(path, url)
    try:
        yield
    finally:
        # The first one stays known, and so does one that another stack wrote meanwhile.
        if earlier and path.read_text(encoding="utf-8").strip() == url:
            write_private(path, earlier.strip())


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends this process like Ctrl-C, through the clean-up: its default would leave the stack running."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def local_settings(state_dir: Path) -> Settings:
    """The settings of a stack in `state_dir`: its database is a SQLite file there unless the environment names one."""
    return Settings.from_env(data_dir=state_dir)


def _start_all(stack: LocalStack, options: StackOptions, port: int) -> None:
    # -P: a server.py in the current folder must not be taken for ours.
    python = [sys.executable, "-P", "-m"]
    stack.commands["server"] = [*python, "server.cli", "server", "--host", options.host, "--port", str(port)]
    stack.commands["worker"] = [*python, "server.cli", "worker"]
    stack.start("server")
    with stack.client() as client:
        stack.wait_for("the server to answer", client.status.is_ready)
        earlier = _worker_ids(client)
        stack.start("worker")
        if options.with_agent:
            agent = [
                *python,
                "device_agent.cli",
                "run",
                "--server",
                stack.url,
                "--code",
                client.devices.create_enrolment_code()["code"],
            ]
            agent += ["--name", "local", "--state-dir", str(options.state_dir / "agent")]
            stack.commands["agent"] = [*agent, "--simulated"] if options.simulated else agent
            stack.start("agent")
            stack.wait_for("the agent to come online", lambda: _is_any_online(client))
        # One that was killed is listed for a while: only one that is new is ours.
        stack.wait_for("the worker to report", lambda: not _worker_ids(client) <= earlier)


def _worker_ids(client: Client) -> set[str]:
    return {worker["id"] for worker in client.workers.list()}


def _is_any_online(client: Client) -> bool:
    return any(device["state"] == "online" for device in client.devices.list())


def _end_with_parent() -> None:
    """Runs in the child: SIGTERM when the parent dies, however it does. A killed `kerf up` leaves nothing behind."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM, 0, 0, 0)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _tail(log: Path, lines: int = 15) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
