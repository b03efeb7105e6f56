"""The lease lifecycle over HTTP: claim, ask again, renew, release, expire."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, update

from device_agent.contracts import KernelTask, RenewRequest
from server.fleet import leases, service
from server.fleet.retry import MAX_DEFERRALS
from server.models import MeasurementFailureRow, SearchRow, TaskRow
from server.searches.queries import CANCEL, steer
from server.states import TaskState
from tests.unit.server.plans import plan
from tests.unit.server.server_lab import ServerLab, measurement, report_of


class TestClaim:
    def test_nothing_to_do(self, lab: ServerLab) -> None:
        assert lab.lease(lab.agent()) == ()

    def test_a_lease_carries_the_task(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        (lease,) = lab.lease(agent)
        assert lease.task_id == task_id
        assert lease.attempt == 1
        assert isinstance(lease.task, KernelTask)
        assert 0 < lease.duration_s <= lab.settings.lease_duration_s
        assert lease.deadline_s > lease.task.setup.budget_s
        assert lab.task(task_id).state is TaskState.LEASED

    def test_no_more_than_asked_for(self, lab: ServerLab) -> None:
        agent = lab.agent()
        lab.tasks(agent, 5)
        assert len(lab.lease(agent, 3)) == 3

    def test_higher_priority_goes_first(self, lab: ServerLab) -> None:
        agent = lab.agent()
        ids = lab.tasks(agent, 3)
        with lab.database.write() as session:
            session.execute(update(TaskRow).where(TaskRow.id == ids[2]).values(priority=1))
        assert lab.lease(agent)[0].task_id == ids[2]

    def test_a_claim_reads_waiting_tasks_in_the_order_of_the_index(self, lab: ServerLab) -> None:
        statement = leases.claim_statement("device_1", 4, 60.0)
        with lab.database.read() as session:
            steps = plan(session, statement)
        assert "ix_measurement_task_ready" in steps
        assert not re.search(r"TEMP B-TREE|\bSort\b|SCAN measurement_task|Backward", steps), steps

    def test_tasks_of_other_devices_are_not_given_out(self, lab: ServerLab) -> None:
        first, second = lab.agent(), lab.agent()
        lab.tasks(first)
        assert lab.lease(second) == ()

    def test_asking_again_returns_what_is_held(self, lab: ServerLab) -> None:
        agent = lab.agent()
        lab.tasks(agent, 4)
        held = lab.lease(agent, 2)
        again = lab.lease(agent, 2)
        assert [(x.lease_id, x.attempt) for x in again] == [(x.lease_id, x.attempt) for x in held]

    def test_a_lease_that_is_fetched_again_and_again_is_not_prolonged_for_ever(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        for _ in range(leases.MAX_DELIVERIES):
            assert lab.lease(agent)
        before = lab.task(task_id).lease_expires_at
        assert lab.lease(agent)
        assert lab.task(task_id).lease_expires_at == before

    def test_a_disabled_device_gets_nothing_new_but_keeps_what_it_holds(self, lab: ServerLab) -> None:
        agent = lab.agent()
        lab.tasks(agent, 2)
        (held,) = lab.lease(agent)
        assert lab.post(f"/v1/devices/{agent.device_id}:disable", token=lab.admin).status_code == 200
        assert [x.lease_id for x in lab.lease(agent, 5)] == [held.lease_id]
        lab.report(agent, report_of(held, measurement()))
        assert lab.lease(agent, 5) == ()
        assert lab.post(f"/v1/devices/{agent.device_id}:enable", token=lab.admin).json()["state"] == "online"
        assert len(lab.lease(agent, 5)) == 1

    def test_a_deferred_task_waits(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        with lab.database.write() as session:
            session.execute(update(TaskRow).where(TaskRow.id == task_id).values(not_before=4e9))
        assert lab.lease(agent) == ()


class TestRaces:
    """On PostgreSQL, where claims really run at the same time."""

    @pytest.mark.parametrize("batch", [1, 3])
    def test_no_task_is_lent_twice(self, postgres_lab: ServerLab, batch: int) -> None:
        lab = postgres_lab
        agent = lab.agent()
        ids = lab.tasks(agent, 40)
        start = threading.Barrier(8)

        def claim_all(_: int) -> list[str]:
            start.wait()
            mine: list[str] = []
            while True:
                with lab.database.write() as session:
                    lent = leases.claim(session, agent.device_id, batch, 60.0)
                if not lent:
                    return mine
                assert len(lent) <= batch
                mine += [item.task_id for item in lent]

        with ThreadPoolExecutor(8) as pool:
            claimed = [task_id for part in pool.map(claim_all, range(8)) for task_id in part]
        assert sorted(claimed) == sorted(ids)

    def test_the_same_report_at_the_same_time_is_stored_once(self, postgres_lab: ServerLab) -> None:
        lab = postgres_lab
        agent = lab.agent()
        lab.tasks(agent, 3)
        reports = [report_of(lease, measurement()) for lease in lab.lease(agent, 3)]
        start = threading.Barrier(6)

        def send(index: int) -> list[str]:
            start.wait()
            # In both orders: locks are taken in one order all the same.
            return lab.report(agent, *(reports if index % 2 else reports[::-1]))

        with ThreadPoolExecutor(6) as pool:
            received = [status for part in pool.map(send, range(6)) for status in part]
        assert sorted(received) == ["accepted"] * 3 + ["duplicate"] * 15

    def test_a_report_and_an_expiry_at_the_same_time(self, postgres_lab: ServerLab) -> None:
        lab = postgres_lab
        agent = lab.agent()
        ids = lab.tasks(agent, 20)
        held = lab.lease(agent, 20)
        lab.expire(*ids)
        start = threading.Barrier(2)

        def reap(_: int) -> list[str]:
            start.wait()
            with lab.database.write() as session:
                leases.expire(session)
            return []

        def send(_: int) -> list[str]:
            start.wait()
            return [status for lease in held for status in lab.report(agent, report_of(lease, measurement()))]

        with ThreadPoolExecutor(2) as pool:
            reaping, sending = pool.submit(reap, 0), pool.submit(send, 0)
            reaping.result()
            received = sending.result()
        for lease, status in zip(held, received, strict=True):
            task = lab.task(lease.task_id)
            assert (task.state, task.attempt) == (
                (TaskState.SUCCEEDED, 1) if status == "accepted" else (TaskState.PENDING, 2)
            )


class TestRenew:
    def test_a_renewed_lease_lasts_longer(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        (lease,) = lab.lease(agent)
        lab.expire(task_id)
        response = lab.post(f"/v1/leases/{lease.lease_id}:renew", RenewRequest(attempt=1), agent.token)
        assert response.json() == {"duration_s": lab.settings.lease_duration_s, "cancel": False}
        assert (lab.task(task_id).lease_expires_at or 0) > 1e9

    def test_a_lease_that_went_to_another_attempt_is_refused(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        (lease,) = lab.lease(agent)
        lab.expire(task_id)
        lab.lease(agent)
        response = lab.post(f"/v1/leases/{lease.lease_id}:renew", RenewRequest(attempt=1), agent.token)
        assert response.status_code == 409
        assert response.json()["code"] == "lease_lost"

    def test_the_lease_of_another_device_is_refused(self, lab: ServerLab) -> None:
        agent, thief = lab.agent(), lab.agent()
        lab.tasks(agent)
        (lease,) = lab.lease(agent)
        url = f"/v1/leases/{lease.lease_id}:renew"
        assert lab.post(url, RenewRequest(attempt=1), thief.token).status_code == 409

    def test_the_agent_learns_that_nobody_wants_the_result(self, lab: ServerLab) -> None:
        agent = lab.agent()
        search_id = lab.search(agent.device_id)
        lab.tasks(agent, search_id=search_id)
        (lease,) = lab.lease(agent)
        with lab.database.write() as session:
            steer(session, search_id, CANCEL, "cancelled")
        response = lab.post(f"/v1/leases/{lease.lease_id}:renew", RenewRequest(attempt=1), agent.token)
        assert response.json()["cancel"] is True


class TestRelease:
    def test_the_task_is_free_again_and_no_attempt_is_lost(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        (lease,) = lab.lease(agent)
        url = f"/v1/leases/{lease.lease_id}:release"
        assert lab.post(url, RenewRequest(attempt=1), agent.token).status_code == 204
        task = lab.task(task_id)
        assert (task.state, task.attempt, task.failures) == (TaskState.PENDING, 2, 0)
        assert lab.post(url, RenewRequest(attempt=1), agent.token).status_code == 409

    def test_an_unwanted_task_is_cancelled(self, lab: ServerLab) -> None:
        agent = lab.agent()
        search_id = lab.search(agent.device_id)
        (task_id,) = lab.tasks(agent, search_id=search_id)
        (lease,) = lab.lease(agent)
        with lab.database.write() as session:
            steer(session, search_id, CANCEL, "cancelled")
        lab.post(f"/v1/leases/{lease.lease_id}:release", RenewRequest(attempt=1), agent.token)
        assert lab.task(task_id).state is TaskState.CANCELLED


class TestExpiry:
    def test_the_task_goes_to_the_next_attempt(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        (first,) = lab.lease(agent)
        lab.expire(task_id)
        (second,) = lab.lease(agent)
        assert (second.task_id, second.attempt) == (task_id, 2)
        assert second.lease_id != first.lease_id
        with lab.database.read() as session:
            stored = session.scalars(select(MeasurementFailureRow)).one()
        assert (stored.reason, stored.attempt) == ("lease_expired", 1)

    def test_an_unexpired_lease_stays(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        lab.lease(agent)
        service.reap(lab.client.app.state.context)  # type: ignore[attr-defined]
        assert lab.task(task_id).state is TaskState.LEASED

    def test_an_agent_that_was_away_uses_up_no_attempt(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        for _ in range(5):
            lab.lease(agent)
            lab.expire(task_id)
        (lease,) = lab.lease(agent)
        assert (lease.attempt, lab.task(task_id).failures) == (6, 0)

    def test_after_very_many_the_task_has_failed(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        for attempt in range(1, MAX_DEFERRALS + 1):
            (lease,) = lab.lease(agent)
            assert lease.attempt == attempt
            lab.expire(task_id)
        assert lab.lease(agent) == ()
        task = lab.task(task_id)
        assert (task.state, task.failure_reason) == (TaskState.FAILED, "lease_expired")
        assert task.finished_at is not None

    def test_an_expired_task_that_nobody_wants_is_cancelled(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        lab.lease(agent)
        with lab.database.write() as session:
            session.execute(update(SearchRow).values(state="cancelled"))
        lab.expire(task_id)
        assert lab.lease(agent) == ()
        assert lab.task(task_id).state is TaskState.CANCELLED
