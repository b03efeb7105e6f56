"""A whole fleet of simulated devices against the real server: noise, crashes and lost connections, and nothing lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from device_agent.contracts import MeasurementFailure, ReportStatus, Source, dumps
from device_agent.simulation.scenario import DeviceGroup, Faults, Heat, Link, Noise, Scenario
from server.latency.source import MeasurementSummary
from server.models import ReportRow
from tests.integration.running_site import TIMEOUT_S, Site, kernel_task

NUM_TASKS = 12


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    running = Site(tmp_path)
    yield running
    running.close()


def test_a_fleet_measures_in_spite_of_its_faults(site: Site, tmp_path: Path) -> None:
    scenario = Scenario(
        seed=5,
        groups=(
            DeviceGroup(name="phone", count=2, noise=Noise(sample=0.01), link=Link(online_s=1.0, offline_s=0.3)),
            DeviceGroup(name="board", core="board", faults=Faults(crash=0.2), heat=Heat(load_celsius=30.0)),
        ),
    )
    path = tmp_path / "fleet.json"
    path.write_text(dumps(scenario))
    site.start_server()
    site.start_fleet(path, 3)
    devices = site.devices()
    assert sorted(devices) == ["board-1", "phone-1", "phone-2"]
    asked = {name: site.ask([kernel_task(seed) for seed in range(NUM_TASKS)], devices[name]) for name in devices}
    medians = {}
    for name, task_ids in asked.items():
        site.wait_for(task_ids)
        results = site.source.results(task_ids)
        taken = [r for r in results.values() if isinstance(r, MeasurementSummary)]
        assert {r.source for r in taken} == {Source.SIMULATED}
        # A crash is tried again; three in a row are a failure, which is a result as well.
        assert len(taken) + sum(isinstance(r, MeasurementFailure) for r in results.values()) == NUM_TASKS
        assert len(taken) >= NUM_TASKS - 2
        medians[name] = {r.median_ns for r in taken}
    assert medians["phone-1"] != medians["phone-2"]  # the same kernels and the same noise, but other devices
    with site.database.read() as session:
        accepted = select(func.count()).select_from(ReportRow).where(ReportRow.status == ReportStatus.ACCEPTED)
        doubled = accepted.group_by(ReportRow.task_id, ReportRow.attempt).having(func.count() > 1)
        assert session.execute(doubled).all() == []
    assert site.agent is not None
    site.agent.send_signal(signal.SIGTERM)
    assert site.agent.wait(TIMEOUT_S) == 0, site.log("fleet")
