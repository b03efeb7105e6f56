"""Device minutes and cache hits of a search, counted from what is stored."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from search.domain.result import MeasuringEffort
from server.accounts.service import Scope
from server.columns import now_s
from server.dashboard.searches import effort_tile
from server.models import MeasurementRow, SearchRow
from server.searches.effort import measuring_efforts, total_effort
from server.searches.tasks import cancel_unwanted_tasks
from server.states import JobState
from tests.unit.server.server_lab import LabAgent, ServerLab, kernel_task, measurement, report_of


def efforts(lab: ServerLab, search_id: str) -> dict[str, MeasuringEffort]:
    with lab.database.read() as session:
        return measuring_efforts(session, search_id)


def measure(lab: ServerLab, agent: LabAgent, count: int, duration_s: float) -> None:
    leases = lab.lease(agent, count)
    assert len(leases) == count
    lab.report(agent, *(report_of(lease, measurement(7.0)) for lease in leases))
    with lab.database.write() as session:
        tasks = [lease.task_id for lease in leases]
        session.execute(update(MeasurementRow).where(MeasurementRow.task_id.in_(tasks)).values(duration_s=duration_s))


def cancel(lab: ServerLab, search_id: str) -> None:
    with lab.database.write() as session:
        values = {"state": JobState.CANCELLED, "finished_at": now_s()}
        session.execute(update(SearchRow).where(SearchRow.id == search_id).values(**values))
        cancel_unwanted_tasks(session, search_id)


def test_minutes_count_for_the_search_that_had_it_measured(lab: ServerLab) -> None:
    agent = lab.agent()
    first, second = lab.search(agent.device_id), lab.search(agent.device_id)
    lab.source.request(agent.device_id, [kernel_task(8), kernel_task(16)], first)
    measure(lab, agent, 2, 30.0)
    # One measured, one that waits for the first search, one of its own.
    lab.source.request(agent.device_id, [kernel_task(24)], first)
    lab.source.request(agent.device_id, [kernel_task(8), kernel_task(24), kernel_task(32)], second)
    measure(lab, agent, 2, 12.0)
    # Asking again, as after a restart, changes nothing.
    lab.source.request(agent.device_id, [kernel_task(8), kernel_task(24), kernel_task(32)], second)
    assert efforts(lab, first) == {
        agent.device_id: MeasuringEffort(measurements=3, cache_hits=0, device_minutes=pytest.approx(1.2))
    }
    assert efforts(lab, second) == {
        agent.device_id: MeasuringEffort(measurements=3, cache_hits=2, device_minutes=pytest.approx(0.2))
    }


def test_repeated_measurements_are_the_searchs_own(lab: ServerLab) -> None:
    agent = lab.agent()
    lab.tasks(agent)
    measure(lab, agent, 1, 60.0)
    search_id = lab.search(agent.device_id)
    lab.tasks(agent, search_id=search_id)
    lab.source.request(agent.device_id, [kernel_task(1)], search_id, force=True)
    measure(lab, agent, 1, 60.0)
    assert efforts(lab, search_id)[agent.device_id] == MeasuringEffort(
        measurements=2, cache_hits=1, device_minutes=pytest.approx(1.0)
    )


def test_what_a_cancelled_search_left_waiting_counts_for_who_opens_it(lab: ServerLab) -> None:
    agent = lab.agent()
    first, second = lab.search(agent.device_id), lab.search(agent.device_id)
    lab.tasks(agent, search_id=first)
    cancel(lab, first)
    lab.tasks(agent, search_id=second)
    measure(lab, agent, 1, 60.0)
    with lab.database.write() as session:
        # The clock of the test may not have moved on between the two.
        session.execute(update(MeasurementRow).values(created_at=MeasurementRow.created_at + 1.0))
    assert efforts(lab, first)[agent.device_id].device_minutes == 0.0
    assert efforts(lab, second)[agent.device_id] == MeasuringEffort(
        measurements=1, cache_hits=0, device_minutes=pytest.approx(1.0)
    )


def test_devices_are_told_apart_and_add_up(lab: ServerLab) -> None:
    agents = [lab.agent(), lab.agent()]
    search_id = lab.search(agents[0].device_id)
    for agent, minutes in zip(agents, (1.0, 2.0), strict=True):
        lab.source.request(agent.device_id, [kernel_task(8)], search_id)
        measure(lab, agent, 1, 60.0 * minutes)
    found = efforts(lab, search_id)
    assert [found[agent.device_id].device_minutes for agent in agents] == pytest.approx([1.0, 2.0])
    assert total_effort(found.values()) == MeasuringEffort(measurements=2, cache_hits=0, device_minutes=3.0)
    assert total_effort(()) == MeasuringEffort(measurements=0, cache_hits=0, device_minutes=0.0)


def test_the_api_shows_it_for_one_search(lab: ServerLab) -> None:
    agent = lab.agent()
    search_id = lab.search(agent.device_id)
    lab.tasks(agent, 2, search_id=search_id)
    token = lab.user_token(Scope.READ)
    shown = lab.get(f"/v1/searches/{search_id}", token).json()
    assert shown["measuring"] == {agent.device_id: {"measurements": 2, "cache_hits": 0, "device_minutes": 0.0}}
    assert [item["measuring"] for item in lab.get("/v1/searches", token).json()["items"]] == [None]


def test_the_dashboards_tile() -> None:
    efforts = [
        MeasuringEffort(measurements=20, cache_hits=5, device_minutes=1.25),
        MeasuringEffort(measurements=10, cache_hits=2, device_minutes=0.25),
    ]
    tile = effort_tile(efforts, is_over=True)
    assert (tile.label, tile.value) == ("Device time", "1 min 30 s")
    assert tile.note == "7 of 30 measurements from the database"
    few = effort_tile([MeasuringEffort(measurements=1, cache_hits=0, device_minutes=0.02)], is_over=True)
    assert few.value == "1.2 s"
    assert effort_tile([], is_over=False).note == "nothing was asked of the device yet"
    assert effort_tile([], is_over=True).note == "nothing was asked of the device"
