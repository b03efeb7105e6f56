"""The lease loop against a server over HTTP: nothing lost, nothing counted twice, whatever goes wrong."""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from device_agent.agent import ARTIFACT_ATTEMPTS
from device_agent.contracts import FailureReason, Measurement, MeasurementFailure, encode
from device_agent.errors import CredentialsRefused, RequestRefused
from device_agent.held import HeldLease
from device_agent.outbox import Outbox
from device_agent.retry import BackoffPolicy
from tests.unit.device_agent.agent.agent_samples import failure, kernel_task, measurement, network_task, report
from tests.unit.device_agent.agent.fake_kerf_server import FakeServer
from tests.unit.device_agent.agent.running_agent import RunningAgent

StartAgent = Callable[..., RunningAgent]


def spool_of(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "state" / "spool" / "d1")


def results(server: FakeServer) -> list[Measurement | MeasurementFailure]:
    return [task.reports[0].result for task in server.tasks.values() if task.reports]


def hand_over(started: threading.Event, go_on: threading.Event) -> Callable[[RunningAgent], None]:
    """Make every task say when it runs, and wait for `go_on` or its interrupt."""

    def act(held: HeldLease, artifact: Path | None) -> Measurement | MeasurementFailure:
        started.set()
        while not go_on.wait(0.01):
            if held.interrupt.is_set():
                return failure("interrupted")
        return measurement()

    def prepare(agent: RunningAgent) -> None:
        agent.runner.action = act

    return prepare


def test_every_task_is_measured_and_reported_once(server: FakeServer, start_agent: StartAgent) -> None:
    for seed in range(11):
        server.add_task(kernel_task(seed))
    agent = start_agent(max_leases=4)
    server.wait_until(server.done(11))
    agent.drain()
    assert sorted(agent.runner.runs) == sorted(server.tasks)
    assert len(server.results) == 11
    assert not server.duplicates
    assert not server.late


def test_a_task_that_comes_during_the_long_poll_is_run(server: FakeServer, start_agent: StartAgent) -> None:
    start_agent()
    server.wait_until(lambda: "/v1/leases" in server.requests)
    server.add_task(kernel_task())
    server.wait_until(server.done(1))


def test_a_failure_is_reported_as_data(server: FakeServer, start_agent: StartAgent) -> None:
    server.add_task(kernel_task())
    start_agent(lambda agent: setattr(agent.runner, "action", lambda held, artifact: failure()))
    server.wait_until(server.done(1))
    assert results(server) == [failure()]


def test_a_bug_in_the_agent_is_reported_and_the_loop_goes_on(server: FakeServer, start_agent: StartAgent) -> None:
    server.add_task(kernel_task(0))
    server.add_task(kernel_task(1))

    def act(held: HeldLease, artifact: Path | None) -> Measurement:
        if held.lease.task_id == "t0000":
            raise KeyError("a bug")
        return measurement()

    start_agent(lambda agent: setattr(agent.runner, "action", act))
    server.wait_until(server.done(2))
    broken, sound = results(server)
    assert isinstance(broken, MeasurementFailure)
    assert broken.reason is FailureReason.AGENT_ERROR
    assert "a bug" in broken.detail
    assert isinstance(sound, Measurement)


def changed_task(**changes: object) -> dict[str, Any]:
    """A kernel task with other values, as a server of a later version may send it."""
    data: dict[str, Any] = encode(kernel_task())
    for path, value in changes.items():
        *above, name = path.split("__")
        functools.reduce(operator.getitem, above, data)[name] = value
    return data


FUTURE_TASKS = {
    "'spiral'": changed_task(kernel__pruning__scheme="spiral"),
    "'attention'": changed_task(kernel__op="attention"),
    "'float16'": changed_task(kernel__dtype="float16"),
    "'dilation'": changed_task(kernel__dilation=2),
    "'energy'": changed_task(setup__clock="energy"),
    "'onnx'": {**encode(network_task("0" * 64, 10)), "format": "onnx"},
    "'graph'": {"graph": "a new kind of task", "setup": {}},
}


@pytest.mark.parametrize("named", FUTURE_TASKS)
def test_a_task_of_a_newer_server_fails_at_once_by_name_and_keeps_no_other_from_its_work(
    server: FakeServer, start_agent: StartAgent, named: str
) -> None:
    server.add_task(FUTURE_TASKS[named])  # type: ignore[arg-type]
    server.add_task(kernel_task())
    agent = start_agent()
    server.wait_until(server.done(2))
    agent.drain()
    assert agent.runner.runs == ["t0001"]
    refused, sound = results(server)
    assert isinstance(refused, MeasurementFailure)
    assert refused.reason is FailureReason.AGENT_OUTDATED
    assert named in refused.detail
    assert refused.detail.endswith(": upgrade the agent")
    assert isinstance(sound, Measurement)
    assert {task.attempt for task in server.tasks.values()} == {1}


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503},
        {"status": 429, "headers": {"retry-after": "0"}},
        {"status": 502, "body": b"<html>bad gateway</html>", "content_type": "text/html"},
        {"status": 404, "body": b"<html>no such host</html>", "content_type": "text/html"},
        {"status": 200, "body": b"<html>please log in to this network</html>", "content_type": "text/html"},
        {"drop": "before"},
        {"drop": "after"},
    ],
    ids=lambda fault: "-".join(str(v)[:20] for v in fault.values() if not isinstance(v, bytes)),
)
@pytest.mark.parametrize("path_end", ["/v1/leases", "/v1/reports"])
def test_a_passing_fault_loses_and_doubles_nothing(
    server: FakeServer, start_agent: StartAgent, path_end: str, fault: dict[str, object]
) -> None:
    server.fault(path_end, **fault)
    for seed in range(3):
        server.add_task(kernel_task(seed))
    agent = start_agent()
    server.wait_until(server.done(3))
    agent.drain()
    assert sorted(agent.runner.runs) == ["t0000", "t0001", "t0002"]
    assert len(server.results) == 3


def test_an_answer_lost_after_its_effect_makes_a_duplicate_that_counts_once(
    server: FakeServer, start_agent: StartAgent
) -> None:
    server.fault("/v1/reports", drop="after")
    server.add_task(kernel_task())
    start_agent()
    server.wait_until(lambda: bool(server.duplicates))
    assert len(server.results) == 1


def test_what_an_earlier_process_spooled_is_sent_first_and_not_measured_again(
    server: FakeServer, start_agent: StartAgent, tmp_path: Path
) -> None:
    """kill -9 after the measurement, before its report: the server still counts the lease as ours."""
    server.add_task(kernel_task())
    task = server.tasks["t0000"]
    task.state, task.attempt, task.lease_id = "LEASED", 1, "t0000-l1"
    spool_of(tmp_path).add(report("r1", lease_id="t0000-l1", attempt=1))
    agent = start_agent()
    server.wait_until(server.done(1))
    agent.drain()
    assert agent.runner.runs == []
    assert list(server.results) == ["r1"]
    assert len(spool_of(tmp_path)) == 0


def test_a_held_lease_without_a_spooled_report_is_measured_again(server: FakeServer, start_agent: StartAgent) -> None:
    """kill -9 during the measurement."""
    server.add_task(kernel_task())
    task = server.tasks["t0000"]
    task.state, task.attempt, task.lease_id = "LEASED", 1, "t0000-l1"
    agent = start_agent()
    server.wait_until(server.done(1))
    assert agent.runner.runs == ["t0000"]
    assert task.attempt == 1


def test_results_are_spooled_while_the_server_is_away(
    server: FakeServer, start_agent: StartAgent, tmp_path: Path
) -> None:
    for seed in range(3):
        server.add_task(kernel_task(seed))
    for _ in range(4):
        server.fault("/v1/reports", status=503)
    started, go_on = threading.Event(), threading.Event()
    agent = start_agent(hand_over(started, go_on))
    assert started.wait(10)
    go_on.set()
    server.wait_until(server.done(3))
    agent.drain()
    assert len(server.results) == 3
    assert len(spool_of(tmp_path)) == 0


def test_a_refused_report_is_kept_apart_and_reported_as_failed(
    server: FakeServer, start_agent: StartAgent, tmp_path: Path
) -> None:
    server.refused_results.add("measurement")
    server.add_task(kernel_task(0))
    server.add_task(kernel_task(1))
    start_agent()
    server.wait_until(server.done(2))
    assert [result.reason for result in results(server) if isinstance(result, MeasurementFailure)] == [
        FailureReason.AGENT_ERROR
    ] * 2
    assert len(list((tmp_path / "state/spool/d1/refused").glob("*.json"))) == 2


def test_a_lost_lease_stops_the_child_and_reports_nothing(server: FakeServer, start_agent: StartAgent) -> None:
    server.lease_duration_s = 0.4
    server.add_task(kernel_task())
    started, never = threading.Event(), threading.Event()
    agent = start_agent(hand_over(started, never))
    assert started.wait(10)
    with server.changed:
        task = server.tasks["t0000"]
        task.attempt, task.lease_id = task.attempt + 1, "someone-elses"
        task.state = "ELSEWHERE"
    server.wait_until(lambda: any(path.endswith(":renew") for path in server.requests))
    server.wait_until(lambda: server.requests[-1] == "/v1/leases")
    agent.drain()
    assert not server.results


def test_a_cancelled_task_stops_the_child_and_is_given_back(server: FakeServer, start_agent: StartAgent) -> None:
    server.lease_duration_s = 0.4
    server.cancel_tasks.add(server.add_task(kernel_task()))
    started, never = threading.Event(), threading.Event()
    start_agent(hand_over(started, never))
    server.wait_until(lambda: bool(server.released))
    assert not server.results


def test_a_lease_is_renewed_while_its_task_runs(server: FakeServer, start_agent: StartAgent) -> None:
    server.lease_duration_s = 1.0
    server.add_task(kernel_task())
    started, go_on = threading.Event(), threading.Event()
    start_agent(hand_over(started, go_on))
    server.wait_until(lambda: sum(path.endswith(":renew") for path in server.requests) >= 3)
    go_on.set()
    server.wait_until(server.done(1))
    assert server.tasks["t0000"].attempt == 1


def test_a_late_report_is_delivered_and_forgotten(server: FakeServer, start_agent: StartAgent, tmp_path: Path) -> None:
    server.add_task(kernel_task())
    started, go_on = threading.Event(), threading.Event()
    agent = start_agent(hand_over(started, go_on))
    assert started.wait(10)
    server.expire_leases()
    go_on.set()
    server.wait_until(server.done(1))
    agent.drain()
    assert [late.attempt for late in server.late] == [1]
    assert [r.attempt for r in server.tasks["t0000"].reports] == [2]
    assert len(spool_of(tmp_path)) == 0


def test_drain_finishes_the_task_in_hand_and_gives_the_rest_back(
    server: FakeServer, start_agent: StartAgent, tmp_path: Path
) -> None:
    for seed in range(4):
        server.add_task(kernel_task(seed))
    started, go_on = threading.Event(), threading.Event()
    agent = start_agent(hand_over(started, go_on))
    assert started.wait(10)
    agent.stop.ask_drain()
    go_on.set()
    agent.join()
    assert agent.error is None
    assert [task.state for task in server.tasks.values()] == ["DONE", "PENDING", "PENDING", "PENDING"]
    assert len(server.released) == 3
    assert len(spool_of(tmp_path)) == 0


def test_abort_stops_the_child_and_keeps_the_spool(server: FakeServer, start_agent: StartAgent, tmp_path: Path) -> None:
    server.add_task(kernel_task(0))
    server.add_task(kernel_task(1))
    for _ in range(50):
        server.fault("/v1/reports", status=503)
    second, never = threading.Event(), threading.Event()

    def act(held: HeldLease, artifact: Path | None) -> Measurement | MeasurementFailure:
        if held.lease.task_id == "t0000":
            return measurement()
        second.set()
        held.interrupt.wait(30)
        return failure("interrupted")

    agent = start_agent(lambda agent: setattr(agent.runner, "action", act))
    assert second.wait(10)
    agent.stop.ask_abort()
    agent.join()
    del never
    assert len(spool_of(tmp_path)) == 1
    assert not server.results


def test_a_revoked_token_ends_the_agent_and_keeps_the_spool(
    server: FakeServer, start_agent: StartAgent, tmp_path: Path
) -> None:
    server.add_task(kernel_task())
    started, go_on = threading.Event(), threading.Event()
    agent = start_agent(hand_over(started, go_on))
    assert started.wait(10)
    server.token = "kerf_a_another"
    go_on.set()
    agent.join()
    assert isinstance(agent.error, CredentialsRefused)
    assert len(spool_of(tmp_path)) == 1


def test_a_refused_lease_request_ends_the_agent(server: FakeServer, start_agent: StartAgent) -> None:
    server.fault("/v1/leases", status=422, body=b'{"title": "wire version", "detail": "upgrade the agent"}')
    agent = start_agent()
    agent.join()
    assert isinstance(agent.error, RequestRefused)
    assert "upgrade the agent" in str(agent.error)


def test_a_disabled_device_takes_nothing_until_it_is_enabled(server: FakeServer, start_agent: StartAgent) -> None:
    server.drain = True
    server.heartbeat_interval_s = 1.0
    server.add_task(kernel_task())
    agent = start_agent()
    server.wait_until(lambda: bool(server.heartbeats))
    asked = server.requests.count("/v1/leases")
    server.wait_until(lambda: len(server.heartbeats) >= 2)
    assert server.requests.count("/v1/leases") <= asked + 1
    assert agent.runner.runs == []
    server.drain = False
    server.wait_until(server.done(1))


def test_a_hot_device_waits_instead_of_failing_its_tasks(
    server: FakeServer, start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_agent.agent.READY_POLL_INTERVAL_S", 0.02)
    server.add_task(kernel_task())
    agent = start_agent(lambda agent: setattr(agent, "not_ready", "the processor is at 90 degrees"))
    server.wait_until(lambda: bool(server.heartbeats))
    assert "/v1/leases" not in server.requests
    agent.not_ready = None
    server.wait_until(server.done(1))


def test_a_network_task_gets_its_artifact(server: FakeServer, start_agent: StartAgent) -> None:
    content = b"network" * 1000
    server.add_task(network_task(server.add_artifact(content), len(content)))
    seen: list[bytes] = []

    def act(held: HeldLease, artifact: Path | None) -> Measurement:
        assert artifact is not None
        seen.append(artifact.read_bytes())
        return measurement()

    start_agent(lambda agent: setattr(agent.runner, "action", act))
    server.wait_until(server.done(1))
    assert seen == [content]


def test_an_artifact_that_does_not_exist_fails_the_task(server: FakeServer, start_agent: StartAgent) -> None:
    server.add_task(network_task("0" * 64, 10))
    agent = start_agent()
    server.wait_until(server.done(1))
    (result,) = results(server)
    assert isinstance(result, MeasurementFailure)
    assert result.reason is FailureReason.ARTIFACT_UNAVAILABLE
    assert agent.runner.runs == []


def test_a_server_that_is_away_while_an_artifact_is_fetched_fails_no_task(
    server: FakeServer, start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_agent.agent.BackoffPolicy", lambda base_s, cap_s: BackoffPolicy(base_s=0.0, cap_s=0.0))
    content = b"network" * 1000
    digest = server.add_artifact(content)
    server.add_task(network_task(digest, len(content)))
    for _ in range(3 * ARTIFACT_ATTEMPTS):
        server.fault(f"/v1/artifacts/sha256/{digest}", drop="before")
    agent = start_agent()
    server.wait_until(server.done(1))
    (result,) = results(server)
    assert isinstance(result, Measurement)
    assert len(agent.runner.runs) == 1
    assert not server.faults


def test_an_artifact_that_stays_broken_or_away_fails_the_task(
    server: FakeServer, start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_agent.agent.BackoffPolicy", lambda base_s, cap_s: BackoffPolicy(base_s=0.0, cap_s=0.0))
    content = b"network" * 1000
    server.add_task(network_task(server.add_artifact(content), len(content) - 1))
    start_agent()
    server.wait_until(server.done(1))
    (result,) = results(server)
    assert isinstance(result, MeasurementFailure)
    assert result.reason is FailureReason.ARTIFACT_UNAVAILABLE
    assert sum(path.startswith("/v1/artifacts/") for path in server.requests) == ARTIFACT_ATTEMPTS

    monkeypatch.setattr("device_agent.agent.ARTIFACT_OUTAGE_S", -1.0)
    digest = server.add_artifact(content)
    server.fault(f"/v1/artifacts/sha256/{digest}", status=503)
    server.add_task(network_task(digest, len(content)))
    server.wait_until(server.done(2))
    assert [type(r) for r in results(server)] == [MeasurementFailure] * 2
