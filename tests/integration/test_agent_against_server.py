"""The real agent against the real server: processes of their own, HTTP between them, kill -9 at will.

This test plays the worker: it asks for measurements through the database, as searches do.
"""

from __future__ import annotations

import hashlib
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from device_agent.contracts import FailureReason, MeasuringSetup, NetworkFormat, NetworkTask, Source
from device_agent.formats.packed import write_packed
from device_agent.synthesis import kernel_plan, kernel_plan_tensors
from server.artifacts.store import ArtifactStore
from server.fleet.repository import set_enabled
from server.latency.source import MeasurementSummary
from server.models import DeviceRow, SearchRow, TaskRow, TokenRow
from server.states import JobState, TaskState
from tests.chaos.ledger import reported_failures, settle
from tests.integration.running_site import SETUP, TIMEOUT_S, Site, kernel_task, wait_until


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    running = Site(tmp_path)
    yield running
    running.close()


def test_kernels_and_networks_are_measured(site: Site) -> None:
    site.start_server()
    site.start_simulated_agent()
    kernel = kernel_task(99).kernel
    network = write_packed(kernel_plan(kernel), kernel_plan_tensors(kernel))
    sha256 = ArtifactStore(site.settings.artifacts_dir).put_bytes(site.database, network, created_by="test")
    assert sha256 == hashlib.sha256(network).hexdigest()
    network_task = NetworkTask(
        artifact_sha256=sha256,
        artifact_bytes=len(network),
        format=NetworkFormat.PACKED,
        input_shape=(8, 8, 8),
        setup=SETUP,
    )
    task_ids = site.ask([*(kernel_task(seed) for seed in range(6)), network_task])
    site.wait_for(task_ids)
    results = site.source.results(task_ids)
    assert len(results) == 7
    for result in results.values():
        assert isinstance(result, MeasurementSummary), result
        assert result.source is Source.SIMULATED
        assert result.median_ns > 0
    whole = site.source.measurement(task_ids[-1])
    assert len(whole.outputs) == 1
    assert len(whole.outputs[0]) == 8 * 8 * 8
    assert site.agent is not None
    site.agent.send_signal(signal.SIGTERM)
    assert site.agent.wait(TIMEOUT_S) == 0


def test_kill_9_of_agent_and_server_loses_and_doubles_nothing(site: Site) -> None:
    site.start_server()
    site.start_simulated_agent()
    task_ids = site.ask([kernel_task(seed) for seed in range(40)])
    for count in (5, 18):
        site.wait_for(task_ids, count)
        site.kill(site.agent)
        site.start_simulated_agent()
        site.wait_for(task_ids, count + 5)
        site.kill(site.server)
        site.start_server()
    site.wait_for(task_ids)
    results = site.source.results(task_ids)
    assert all(isinstance(result, MeasurementSummary) for result in results.values())
    with site.database.read() as session:
        states = set(session.scalars(select(TaskRow.state)))
        devices = session.scalar(select(func.count()).select_from(DeviceRow))
    found = settle(site.database, (), ())
    assert (found.lost, found.duplicated) == ((), ())
    assert found.accepted == len(task_ids), "each task has exactly one accepted measurement"
    # Of a task in hand when the agent was killed: that it may have brought the agent down.
    assert reported_failures(site.database) <= Counter({FailureReason.CRASHED: 2})
    assert states == {TaskState.SUCCEEDED}
    assert devices == 1


def test_what_was_measured_while_the_server_was_away_arrives_later(site: Site) -> None:
    """The agent holds leases when the server dies: it measures them, keeps the results, and delivers."""
    site.start_server()
    site.start_simulated_agent()
    task_ids = site.ask([kernel_task(seed) for seed in range(200)])
    site.wait_for(task_ids, 20)
    site.kill(site.server)
    wait_until(lambda: "event=server_not_available" in site.log("agent"), "the agent notices")
    site.start_server()
    site.wait_for(task_ids)
    assert len(site.source.results(task_ids)) == 200


def test_a_real_kernel_is_timed_in_a_child(site: Site) -> None:
    site.start_server()
    site.start_agent()
    setup = MeasuringSetup(runtime="native", budget_s=0.2, ci_half_width=0.5)
    wait_until(site.has_device, "the agent enrols")
    with site.database.read() as session:
        runtimes = session.execute(select(DeviceRow.runtimes)).scalar_one()
    native = next(runtime for runtime in runtimes if runtime["name"] == "native")
    if native["unavailable"]:
        pytest.skip(f"the native runtime is not there: {native['unavailable']}")
    (task_id,) = site.ask([kernel_task(1, setup)])
    site.wait_for([task_id])
    result = site.source.results([task_id])[task_id]
    assert isinstance(result, MeasurementSummary), result
    assert result.source is Source.MEASURED
    assert result.runtime == "native"
    assert site.source.measurement(task_id).blocks


def test_a_disabled_device_gets_no_work(site: Site) -> None:
    site.start_server()
    site.start_simulated_agent()
    wait_until(site.has_device, "the agent enrols")
    with site.database.write() as session:
        set_enabled(session, site.device_id, False)
    wait_until(lambda: "event=paused_by_server" in site.log("agent"), "the agent pauses")
    task_ids = site.ask([kernel_task(seed) for seed in range(3)])
    with site.database.write() as session:
        set_enabled(session, site.device_id, True)
    assert site.done(task_ids) == 0
    site.wait_for(task_ids)


def test_a_revoked_token_ends_the_agent(site: Site) -> None:
    site.start_server()
    site.start_simulated_agent()
    wait_until(lambda: "event=started" in site.log("agent"), "the agent starts")
    site.kill(site.agent)
    with site.database.write() as session:
        session.execute(update(TokenRow).values(revoked_at=1.0))
    site.code = ""
    site.start_simulated_agent()
    assert site.agent is not None
    assert site.agent.wait(TIMEOUT_S) == 77
    assert "enrol it again" in site.log("agent")


def test_a_new_code_brings_a_device_back_as_itself(site: Site) -> None:
    site.start_server()
    site.start_simulated_agent()
    wait_until(lambda: "event=started" in site.log("agent"), "the agent starts")
    with site.database.write() as session:
        session.execute(update(TokenRow).values(revoked_at=1.0))
    assert site.agent is not None
    assert site.agent.wait(TIMEOUT_S) == 77
    site.make_code()
    site.start_simulated_agent()
    wait_until(lambda: site.log("agent").count("event=enrolled") == 2, "the agent enrols again")
    task_ids = site.ask([kernel_task(1)])
    site.wait_for(task_ids)


def test_a_task_that_nobody_wants_any_more_is_stopped(site: Site) -> None:
    """The agent learns it when it renews the lease, and is free for other work."""
    site.start_server(KERF_LEASE_DURATION_S="2")
    site.start_agent()
    long = MeasuringSetup(runtime="native", budget_s=600.0, min_warmup_s=500.0)
    (task_id,) = site.ask([kernel_task(1, long)])
    wait_until(lambda: site.source.progress([task_id]).leased == 1, "the task is leased")
    with site.database.write() as session:
        session.execute(update(SearchRow).values(state=JobState.CANCELLED))
    wait_until(lambda: site.source.progress([task_id]).cancelled == 1, "the agent gives the task back")
    task_ids = site.ask([kernel_task(2, MeasuringSetup(runtime="native", budget_s=0.1))])
    site.wait_for(task_ids)
