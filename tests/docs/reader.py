"""Does what a page says: its blocks of commands, in order, in one folder, with real processes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from kerf import Client
from tests.docs.blocks import ROOT, Block, simple_commands

#: A search that trains takes minutes on a busy machine.
BLOCK_TIMEOUT_S = 1800.0
START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 60.0
#: Commands that run until they are stopped -> what they print, or log, once they work.
SERVICES = {
    ("kerf", "up"): "Kerf runs at",
    ("kerf", "worker"): "",
    ("kerf-agent", "fleet"): "simulated devices work for",
}
#: What starts without a word is taken to work once it has lived for so long.
SILENT_START_S = 5.0


class Reader:
    """One reader of one page. `values` are what stands for the words in capitals, asked for when they are met."""

    def __init__(self, folder: Path, values: Mapping[str, Callable[[Reader], str]]) -> None:
        self.folder = folder
        self._values = values
        self.port = _free_port()
        # Nothing of this machine's user, and nothing that the tests were started with.
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("KERF_")},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "XDG_DATA_HOME": str(folder / "share"),
            "KERF_AGENT_STATE_DIR": str(folder / "agent"),
            "KERF_TUNING_CACHE": "0",
            "KERF_PORT": str(self.port),
            "COLUMNS": "160",
        }
        self._services: list[tuple[str, subprocess.Popen[bytes]]] = []
        for name in ("examples", "constraints", "Makefile"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "kerf").symlink_to(ROOT)

    def use(self, server: str, token: str) -> None:
        """Talk to this server from now on."""
        self.environment |= {"KERF_SERVER": server, "KERF_TOKEN": token}

    @property
    def client(self) -> Client:
        token = self.environment.get("KERF_TOKEN")
        if token is None:
            token = (self.folder / "share" / "kerf" / "user.token").read_text(encoding="utf-8")
        return Client(self.environment["KERF_SERVER"], token)

    def follow(self, block: Block) -> str:
        """Run a block as a reader would; returns what it printed. Raises `AssertionError` where a command fails."""
        printed, waiting = "", ""
        for line in _logical_lines(self.filled(block.text)):
            service = next((s for words in simple_commands(line) if (s := tuple(words[:2])) in SERVICES), None)
            if service is None:
                waiting += line + "\n"
                continue
            printed += self._run(block, waiting)
            waiting = ""
            self._start(line, service)
        return printed + self._run(block, waiting)

    def filled(self, text: str) -> str:
        """The text with values for the words in capitals, and with this reader's own port."""
        text = text.replace("http://HOST:8321", f"http://127.0.0.1:{self.port}").replace("8321", str(self.port))
        if "KERF_SERVER" in self.environment:
            text = text.replace(f"http://127.0.0.1:{self.port}", self.environment["KERF_SERVER"])
        # Tests listen on this machine only.
        text = text.replace("0.0.0.0", "127.0.0.1")
        return re.sub(r"\b[A-Z][A-Z_]+\b", self._value, text)

    def _value(self, match: re.Match[str]) -> str:
        make = self._values.get(match[0])
        return match[0] if make is None else make(self)

    def _run(self, block: Block, script: str) -> str:
        if not list(simple_commands(script)):
            return ""
        with contextlib.ExitStack() as stack:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            stack.callback(_end, process)
            told, _ = process.communicate(timeout=BLOCK_TIMEOUT_S)
        assert process.returncode == 0, f"{block.where}: ended with {process.returncode}:\n{script}\n{told}"
        return told

    def _start(self, line: str, service: tuple[str, ...]) -> None:
        log = self.folder / f"service-{len(self._services)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-c", line],
                cwd=self.folder,
                env={**self.environment, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._services.append((line, process))
        sign, started = SERVICES[service], time.monotonic()
        while True:
            assert process.poll() is None, f"`{line}` ended with {process.returncode}:\n{log.read_text()}"
            waited_s = time.monotonic() - started
            if (sign and sign in log.read_text()) or (not sign and waited_s > SILENT_START_S):
                break
            assert waited_s < START_TIMEOUT_S, f"`{line}` does not start:\n{log.read_text()}"
            time.sleep(0.1)
        if service == ("kerf", "up"):
            self.environment["KERF_SERVER"] = f"http://127.0.0.1:{self.port}"
            # Its own user's, which the client finds.
            self.environment.pop("KERF_TOKEN", None)

    def close(self) -> None:
        """Stop what the page started, the last first, as Ctrl-C would. Raises `AssertionError` unless it ends well."""
        ends = []
        for line, process in reversed(self._services):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                ends.append((line, process.wait(STOP_TIMEOUT_S)))
            except subprocess.TimeoutExpired:
                _end(process)
                ends.append((line, -signal.SIGKILL))
        assert all(code in (0, -signal.SIGTERM) for _, code in ends), ends


@contextlib.contextmanager
def reading(folder: Path, values: Mapping[str, Callable[[Reader], str]]) -> Iterator[Reader]:
    """A reader who stops all that a page started, also where a command fails."""
    reader = Reader(folder, values)
    try:
        yield reader
    except BaseException:
        with contextlib.suppress(AssertionError):
            reader.close()
        raise
    reader.close()


def _logical_lines(text: str) -> list[str]:
    return text.replace("\\\n", " ").splitlines()


def _end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
