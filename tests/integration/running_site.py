"""A real server and a real agent as processes, and the database between: what tests of both together start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sqlalchemy import func, insert, select

from device_agent.contracts import Activation, KernelSpec, KernelTask, MeasuringSetup, NetworkTask, Op, encode
from search.domain.config import parse_config
from server.accounts.service import mint_enrolment_code
from server.accounts.tokens import SecretHasher
from server.database import Database, upgrade
from server.ids import new_id
from server.latency.source import SqlLatencySource
from server.models import DeviceRow, SearchRow
from server.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
SETUP = MeasuringSetup(runtime="simulated")
#: Of a search that no worker takes up.
CONFIG = encode(
    parse_config(
        {
            "name": "test",
            "model": {"architecture": "small_cnn"},
            "dataset": {"name": "digits"},
            "space": {"channels": {}},
        }
    )
)
TIMEOUT_S = 60.0


def kernel_task(seed: int, setup: MeasuringSetup = SETUP) -> KernelTask:
    kernel = KernelSpec(
        op=Op.CONV2D, in_channels=8, out_channels=8, input_h=8, input_w=8, kernel_h=3, kernel_w=3, padding=1,
        activation=Activation.RELU, seed=seed,
    )  # fmt: skip
    return KernelTask(kernel=kernel, setup=setup)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.02)


class Site:
    """A server and an agent as processes, and the database between."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self.settings = Settings(data_dir=directory / "data")
        self.settings.data_dir.mkdir(parents=True)
        upgrade(self.settings)
        self.database = Database.from_settings(self.settings)
        self.source = SqlLatencySource(self.database)
        self.hasher = SecretHasher.from_file(self.settings.key_file)
        self.make_code()
        self._processes: list[subprocess.Popen[bytes]] = []
        self.server: subprocess.Popen[bytes] | None = None
        self.agent: subprocess.Popen[bytes] | None = None

    def make_code(self) -> None:
        """A code for agents that are started from now on. It is good for one enrolment."""
        with self.database.write() as session:
            self.code = mint_enrolment_code(session, self.hasher)[0]

    def start_server(self, **environment: str) -> None:
        self.server = self._start(
            ["uvicorn", "--factory", "server.app:create_app", "--port", str(self._port), "--log-level", "warning",
             "--timeout-graceful-shutdown", "5"],
            {
                "KERF_DATA_DIR": str(self.settings.data_dir),
                "KERF_LEASE_WAIT_S": "1",
                "KERF_POLL_INTERVAL_S": "0.05",
                "KERF_HEARTBEAT_INTERVAL_S": "1",
                **environment,
            },
            "server",
        )  # fmt: skip

    def start_agent(
        self, *flags: str, python: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        """The agent of this source tree, or the one that another `python` finds under `environment`."""
        self.agent = self._start(
            ["device_agent", "run", "--server", self.url, "--state-dir", str(self._directory / "agent"), *flags],
            {"KERF_AGENT_CODE": self.code},
            "agent",
            python=python,
            inherited=environment,
        )

    def start_simulated_agent(self) -> None:
        self.start_agent("--simulated", "--max-leases", "4")

    def start_fleet(self, scenario: Path, count: int) -> None:
        """A fleet of `count` simulated devices; all of them have enrolled when this returns."""
        with self.database.write() as session:
            code = mint_enrolment_code(session, self.hasher, max_uses=count)[0]
        flags = ["--server", self.url, "--code", code, "--state-dir", str(self._directory / "fleet")]
        self.agent = self._start(["device_agent", "fleet", str(scenario), *flags], {}, "fleet")
        wait_until(lambda: len(self.devices()) == count, "the fleet enrols")

    def devices(self) -> dict[str, str]:
        """The ids of all devices by their names."""
        with self.database.read() as session:
            return {row.name: row.id for row in session.execute(select(DeviceRow.name, DeviceRow.id))}

    def kill(self, process: subprocess.Popen[bytes] | None) -> None:
        assert process is not None
        process.kill()
        process.wait()

    def log(self, name: str) -> str:
        return (self._directory / f"{name}.log").read_text()

    @property
    def device_id(self) -> str:
        with self.database.read() as session:
            return str(session.execute(select(DeviceRow.id)).scalar_one())

    def has_device(self) -> bool:
        with self.database.read() as session:
            return session.scalar(select(func.count()).select_from(DeviceRow)) == 1

    def ask(self, tasks: Sequence[KernelTask | NetworkTask], device_id: str | None = None) -> list[str]:
        """Ask for measurements as a search does: the only device, or the one that is named."""
        if device_id is None:
            wait_until(self.has_device, "the agent enrols")
            device_id = self.device_id
        search_id = new_id("search")
        with self.database.write() as session:
            session.execute(
                insert(SearchRow).values(
                    id=search_id, name="test", device_id=device_id, config=CONFIG, created_by="test"
                )
            )
        return self.source.request(device_id, tasks, search_id)

    def done(self, task_ids: Sequence[str]) -> int:
        return self.source.progress(task_ids).done

    def wait_for(self, task_ids: Sequence[str], count: int | None = None, timeout_s: float = TIMEOUT_S) -> None:
        wanted = len(task_ids) if count is None else count
        wait_until(lambda: self.done(task_ids) >= wanted, f"{wanted} tasks", timeout_s)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self.database.dispose()

    def _start(
        self,
        module: list[str],
        environment: dict[str, str],
        name: str,
        *,
        python: Path | None = None,
        inherited: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        if inherited is None:
            inherited = {k: v for k, v in os.environ.items() if not k.startswith("KERF_")}
        with (self._directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [python or sys.executable, "-m", *module],
                cwd=ROOT if python is None else self._directory,
                env={**inherited, **environment},
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)
        return process
