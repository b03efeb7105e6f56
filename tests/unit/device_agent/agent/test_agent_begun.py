"""What an agent knows after it was killed in the middle of a task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from device_agent.begun import BegunTask
from device_agent.contracts import FailureReason, MeasurementFailure
from tests.unit.device_agent.agent.agent_samples import kernel_task, lease
from tests.unit.device_agent.agent.fake_kerf_server import FakeServer
from tests.unit.device_agent.agent.running_agent import RunningAgent


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "task.begun"


def test_a_task_that_was_in_hand_is_known_in_every_lending_until_it_is_told(path: Path) -> None:
    BegunTask(path).begin(lease("l1", task_id="t1"))
    after = BegunTask(path)
    assert after.brought_down(lease("l1", task_id="t1"))
    assert after.brought_down(lease("l2", task_id="t1", attempt=2))
    assert not after.brought_down(lease("l3", task_id="t2"))
    after.told()
    assert not after.brought_down(lease("l2", task_id="t1", attempt=2))
    assert BegunTask(path).left_behind is None


def test_a_task_that_ended_is_forgotten(path: Path) -> None:
    begun = BegunTask(path)
    begun.begin(lease())
    begun.end()
    assert BegunTask(path).left_behind is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"lease_id": "l"}', b"3", b"\xff" * 512])
def test_a_file_that_is_no_such_says_nothing(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert BegunTask(path).left_behind is None


def test_the_task_that_brought_the_agent_down_fails_and_its_neighbour_is_measured(
    server: FakeServer, start_agent: Callable[..., RunningAgent], tmp_path: Path
) -> None:
    for number in range(2):
        server.add_task(kernel_task(number))
        task = server.tasks[f"t000{number}"]
        task.state, task.attempt, task.lease_id = "LEASED", 1, f"t000{number}-l1"
    (tmp_path / "state").mkdir()
    BegunTask(tmp_path / "state" / "task.begun").begin(lease(task_id="t0000"))
    agent = start_agent()
    server.wait_until(server.done(2))
    agent.drain()
    assert agent.runner.runs == ["t0001"]
    (report,) = server.tasks["t0000"].reports
    assert isinstance(report.result, MeasurementFailure)
    assert report.result.reason is FailureReason.CRASHED


def test_a_full_disk_is_waited_for_and_loses_nothing(
    server: FakeServer, start_agent: Callable[..., RunningAgent], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add_task(kernel_task())
    monkeypatch.setattr("device_agent.agent.SPOOL_RETRY_S", 0.01)
    tried = []

    def full(path: Path, content: bytes) -> None:
        tried.append(path)
        if len(tried) <= 5:
            raise OSError(28, "No space left on device")
        monkeypatch.undo()
        write(path, content)

    import device_agent.outbox

    write = device_agent.outbox.write_atomically
    monkeypatch.setattr(device_agent.outbox, "write_atomically", full)
    agent = start_agent()
    server.wait_until(server.done(1))
    agent.drain()
    assert len(tried) == 6
    assert agent.runner.runs == ["t0000"]
    assert agent.error is None
