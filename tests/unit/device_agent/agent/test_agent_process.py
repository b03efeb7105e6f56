"""`kerf-agent` as a real process: signals, kill -9, memory."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from device_agent.contracts import Measurement, MeasuringSetup, TaskReport, loads
from tests.process_state import is_running
from tests.unit.device_agent.agent.agent_samples import kernel_task
from tests.unit.device_agent.agent.fake_kerf_server import CODE, FakeServer

ROOT = Path(__file__).resolve().parents[4]
#: The promise of the issue.
MAX_IDLE_RSS_KIB = 60 * 1024

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(server: FakeServer, tmp_path: Path) -> Iterator[Start]:
    """Start `kerf-agent run` as a simulated device, on one state directory."""
    processes: list[subprocess.Popen[bytes]] = []

    def start_process(
        *flags: str, log: Path = tmp_path / "agent.log", simulated: bool = True
    ) -> subprocess.Popen[bytes]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("KERF_")}
        command = [sys.executable, "-m", "device_agent.cli", "run", "--state-dir", str(tmp_path / "state")]
        command += ["--server", server.url, *(["--simulated"] if simulated else []), *flags]
        # argparse takes the last --server.
        with log.open("ab") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, stderr=file, stdout=file, env={**environment, "KERF_AGENT_CODE": CODE}
            )
        processes.append(process)
        return process

    yield start_process
    for process in processes:
        process.kill()
        process.wait()


def spooled(tmp_path: Path) -> list[TaskReport]:
    return [loads(TaskReport, path.read_bytes()) for path in (tmp_path / "state/spool/d1").glob("*.json")]


def test_enrols_measures_and_drains(server: FakeServer, start: Start, tmp_path: Path) -> None:
    for seed in range(3):
        server.add_task(kernel_task(seed, "simulated"))
    process = start()
    server.wait_until(server.done(3))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert len(server.enrolments) == 1
    assert server.enrolments[0].profile.simulated
    credentials = tmp_path / "state/credentials.json"
    assert credentials.stat().st_mode & 0o777 == 0o600
    assert server.token in credentials.read_text()
    log = (tmp_path / "agent.log").read_text()
    assert server.token not in log
    assert CODE not in log
    (line,) = [line for line in log.splitlines() if "event=task_measured" in line and "task_id=t0000 " in line]
    assert "device_id=d1" in line
    assert "kernel_id=k_" in line


def test_sigterm_ends_an_idle_long_poll_at_once(server: FakeServer, start: Start) -> None:
    """The poll would last two seconds more; a stop must not wait for thirty on a real server."""
    process = start()
    server.wait_until(lambda: "/v1/leases" in server.requests)
    polls = server.requests.count("/v1/leases")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert server.requests.count("/v1/leases") <= polls + 1


def silent_server() -> socket.socket:
    """Accepts connections and never answers."""
    return socket.create_server(("127.0.0.1", 0))


def test_sigterm_ends_an_agent_whose_server_hangs(start: Start) -> None:
    with silent_server() as silent:
        process = start("--server", f"http://127.0.0.1:{silent.getsockname()[1]}")
        connection, _ = silent.accept()
        connection.recv(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_second_signal_stops_at_once_in_the_middle_of_a_task(
    server: FakeServer, start: Start, tmp_path: Path
) -> None:
    setup = MeasuringSetup(runtime="native", budget_s=600.0, min_warmup_s=500.0)
    server.add_task(dataclasses.replace(kernel_task(), setup=setup))
    process = start(simulated=False)
    server.wait_until(lambda: server.tasks["t0000"].state == "LEASED", 60)
    children = wait_for_children(process.pid)
    process.send_signal(signal.SIGTERM)
    wait_for_line(tmp_path / "agent.log", "event=draining")  # Two pending signals of one kind are one.
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert not any(is_running(child) for child in children)


def test_kill_9_leaves_no_measuring_child_behind(server: FakeServer, start: Start) -> None:
    setup = MeasuringSetup(runtime="native", budget_s=600.0, min_warmup_s=500.0)
    server.add_task(dataclasses.replace(kernel_task(), setup=setup))
    process = start(simulated=False)
    server.wait_until(lambda: server.tasks["t0000"].state == "LEASED", 60)
    (child,) = wait_for_children(process.pid)
    wait_until_armed(child)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(child)


def wait_for_line(log: Path, text: str) -> None:
    deadline = time.monotonic() + 30
    while text not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)


def wait_for_children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    deadline = time.monotonic() + 30
    while not (children := path.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert children, "the agent started no child"
    return [int(child) for child in children]


def wait_until_armed(child: int) -> None:
    """Until the child has read its job and loaded numpy: from before that, it dies with its parent."""
    deadline = time.monotonic() + 30
    while "numpy" not in Path(f"/proc/{child}/maps").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("kills", [3])
def test_kill_9_at_any_moment_loses_and_doubles_nothing(
    server: FakeServer, start: Start, tmp_path: Path, kills: int
) -> None:
    """Killed after some results, and once while a report is on the disk but its receipt is lost."""
    for seed in range(24):
        server.add_task(kernel_task(seed, "simulated"))
    server.fault("/v1/reports", drop="after")
    for kill in range(kills):
        process = start("--max-leases", "4")
        server.wait_until(server.done(4 * kill + 2))
        process.kill()
        process.wait()
    finished_before = {report.result_key for report in spooled(tmp_path)}
    process = start("--max-leases", "4")
    server.wait_until(server.done(24))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert len(server.enrolments) == 1
    assert finished_before <= set(server.results)
    assert all(len(task.reports) == 1 for task in server.tasks.values())
    assert all(isinstance(task.reports[0].result, Measurement) for task in server.tasks.values())
    assert not server.late
    assert not spooled(tmp_path)


def test_a_refused_token_is_replaced_with_the_code(server: FakeServer, start: Start) -> None:
    """The server's database was lost: the agent that was given a code comes back by itself."""
    process = start()
    server.wait_until(lambda: "/v1/leases" in server.requests)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    server.token = "kerf_a_afterwards0123456789"
    server.add_task(kernel_task(0, "simulated"))
    start()
    server.wait_until(server.done(1))
    assert len(server.enrolments) == 2
    assert len({enrolment.agent_key for enrolment in server.enrolments}) == 1


def test_a_wrong_code_ends_the_agent_with_its_own_status(server: FakeServer, start: Start, tmp_path: Path) -> None:
    server.codes.clear()
    process = start()
    assert process.wait(30) == 77
    assert "enrol it again" in (tmp_path / "agent.log").read_text()
    assert not (tmp_path / "state/credentials.json").exists()


def test_two_agents_cannot_share_a_state_directory(server: FakeServer, start: Start, tmp_path: Path) -> None:
    start()
    server.wait_until(lambda: "/v1/leases" in server.requests)
    second = start(log=tmp_path / "second.log")
    assert second.wait(30) == 1
    assert "another kerf-agent uses" in (tmp_path / "second.log").read_text()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_an_idle_agent_is_small(server: FakeServer, start: Start) -> None:
    process = start(simulated=False)
    server.wait_until(lambda: server.requests.count("/v1/leases") >= 2 and bool(server.heartbeats), 60)
    status = Path(f"/proc/{process.pid}/status").read_text()
    rss_kib = int(status.split("VmRSS:")[1].split()[0])
    assert rss_kib < MAX_IDLE_RSS_KIB
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    assert "numpy" not in maps
    assert "litert" not in maps
