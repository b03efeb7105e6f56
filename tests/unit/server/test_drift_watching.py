"""Drift checks against the real server: made while a device is idle, judged once, and cleared by what agrees again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import func, select, update

from device_agent.contracts import (
    Conditions,
    HeartbeatRequest,
    KernelTask,
    Measurement,
    MeasuringSetup,
    RenewAnswer,
    RenewRequest,
    Verdict,
    loads,
)
from device_agent.simulation.device import SimulatedDevice
from device_agent.simulation.scenario import DeviceGroup, Heat, Noise
from server.context import Context
from server.fleet import watching
from server.latency import drift
from server.latency.drift import NUM_SENTINELS
from server.models import DriftCheckRow, LatencyRow, MeasurementRow, SeriesRow, TaskRow
from server.states import DriftOutcome, TaskState
from tests.unit.server.server_lab import PROFILE, RUNTIMES, LabAgent, ServerLab, kernel_task, measurement, report_of

NUM_KERNELS = 8
HOUR_S = 3600.0


def context_of(lab: ServerLab, interval_s: float = 600.0) -> Context:
    context: Context = lab.client.app.state.context  # type: ignore[attr-defined]
    return replace(context, settings=replace(context.settings, drift_interval_s=interval_s))


def pass_hour(lab: ServerLab) -> None:
    """Let the database's clock run on by an hour."""
    with lab.database.write() as session:
        for column in (SeriesRow.first_at, DriftCheckRow.created_at, MeasurementRow.created_at):
            session.execute(update(column.class_).values({column: column - HOUR_S}))


def measured(lab: ServerLab, agent: LabAgent, count: int = NUM_KERNELS) -> None:
    lab.tasks(agent, count)
    answer(lab, agent)


def answer(lab: ServerLab, agent: LabAgent, factor: float = 1.0, **changes: object) -> int:
    """Measure all that waits; a kernel takes 1000 ns for each input channel, times `factor`. Returns how many."""
    leases = lab.lease(agent, 50)
    for lease in leases:
        assert isinstance(lease.task, KernelTask)
        taken = measurement(1000.0 * lease.task.kernel.in_channels * factor, **changes)  # type: ignore[arg-type]
        assert lab.report(agent, report_of(lease, taken)) == ["accepted"]
    return len(leases)


def checks(lab: ServerLab) -> list[DriftCheckRow]:
    with lab.database.read() as session:
        return list(session.scalars(select(DriftCheckRow).order_by(DriftCheckRow.id)))


def series_id(lab: ServerLab) -> str:
    with lab.database.read() as session:
        return session.scalars(select(SeriesRow.id)).one()


def device(lab: ServerLab, agent: LabAgent) -> dict[str, object]:
    found: dict[str, object] = lab.get(f"/v1/devices/{agent.device_id}").json()
    return found


def checked(lab: ServerLab, agent: LabAgent, factor: float) -> DriftOutcome | None:
    """One whole check an hour later, in which kernels take `factor` times as long."""
    pass_hour(lab)
    watching.watch(context_of(lab))
    assert answer(lab, agent, factor) == NUM_SENTINELS
    watching.watch(context_of(lab))
    return checks(lab)[-1].outcome


class TestSchedule:
    def test_off_by_default(self, lab: ServerLab) -> None:
        agent = lab.agent()
        measured(lab, agent)
        pass_hour(lab)
        watching.watch(lab.client.app.state.context)  # type: ignore[attr-defined]
        assert checks(lab) == []

    def test_each_interval_once_with_the_setup_of_the_series(self, lab: ServerLab) -> None:
        agent = lab.agent()
        measured(lab, agent)
        watching.watch(context_of(lab))
        assert checks(lab) == []  # the series is younger than the interval
        pass_hour(lab)
        for _ in range(3):
            watching.watch(context_of(lab))
        (check,) = checks(lab)
        tasks = [lab.task(task_id) for task_id in check.task_ids]
        assert len({task.kernel_id for task in tasks}) == NUM_SENTINELS
        with lab.database.read() as session:
            series = session.get_one(SeriesRow, check.series_id)
        assert {task.setup_id for task in tasks} == {series.setup_id}
        assert answer(lab, agent) == NUM_SENTINELS
        for _ in range(2):
            watching.watch(context_of(lab))
        (check,) = checks(lab)
        assert check.outcome is DriftOutcome.AGREES
        pass_hour(lab)
        watching.watch(context_of(lab))
        assert checks(lab)[1].kernel_ids == check.kernel_ids  # the same sentinels each time

    def test_not_on_a_busy_absent_or_upgraded_device(self, lab: ServerLab) -> None:
        agent = lab.agent()
        measured(lab, agent)
        pass_hour(lab)
        waiting = lab.source.request(agent.device_id, [kernel_task(100)], lab.search(agent.device_id))
        watching.watch(context_of(lab))
        assert checks(lab) == []
        assert answer(lab, agent) == len(waiting)
        lab.post(f"/v1/devices/{agent.device_id}:disable", token=lab.admin)
        watching.watch(context_of(lab))
        assert checks(lab) == []
        lab.post(f"/v1/devices/{agent.device_id}:enable", token=lab.admin)
        upgraded = HeartbeatRequest(
            profile=PROFILE, runtimes=RUNTIMES, conditions=Conditions(), agent_version="0.2.0", spooled_reports=0
        )
        lab.post("/v1/agents:heartbeat", upgraded, agent.token)
        watching.watch(context_of(lab))
        assert checks(lab) == []

    def test_too_few_kernels_make_no_check(self, lab: ServerLab) -> None:
        agent = lab.agent()
        measured(lab, agent, 2)
        pass_hour(lab)
        watching.watch(context_of(lab))
        assert checks(lab) == []

    def test_searches_come_first_and_share_nothing_with_a_check(self, lab: ServerLab) -> None:
        agent = lab.agent()
        measured(lab, agent)
        pass_hour(lab)
        watching.watch(context_of(lab))
        (check,) = checks(lab)
        spec = loads_kernel(lab, check.kernel_ids[0])
        shared, fresh = lab.source.request(agent.device_id, [spec, kernel_task(99)], lab.search(agent.device_id))
        assert shared not in check.task_ids
        assert lab.task(shared).state is TaskState.SUCCEEDED
        (first,) = lab.lease(agent)
        assert first.task_id == fresh


def loads_kernel(lab: ServerLab, kernel_id: str) -> KernelTask:
    kernels = {lab_task.kernel_id: lab_task for lab_task in all_tasks(lab)}
    return kernel_task(kernels[kernel_id].task["kernel"]["in_channels"])


def all_tasks(lab: ServerLab) -> list[TaskRow]:
    with lab.database.read() as session:
        return list(session.scalars(select(TaskRow)))


class TestAlarm:
    def test_raised_kept_and_cleared(self, lab: ServerLab) -> None:
        agent = lab.agent()
        measured(lab, agent)
        assert checked(lab, agent, 1.01) is DriftOutcome.AGREES
        assert device(lab, agent)["drifted_series"] == []
        # A drift that lasts does not become the rule that it is judged by.
        for _ in range(4):
            assert checked(lab, agent, 1.3) is DriftOutcome.DRIFTED
        assert device(lab, agent)["drifted_series"] == [series_id(lab)]
        raised = [check.alarm_since for check in checks(lab)[1:]]
        assert raised[0] is not None
        assert len(set(raised)) == 1  # since the first of them
        assert checked(lab, agent, 1.0) is DriftOutcome.AGREES
        assert checks(lab)[-1].alarm_since is None
        assert device(lab, agent)["drifted_series"] == []

    def test_what_cannot_be_judged_leaves_the_alarm(self, lab: ServerLab) -> None:
        agent = lab.agent()
        measured(lab, agent)
        assert checked(lab, agent, 1.3) is DriftOutcome.DRIFTED
        pass_hour(lab)
        watching.watch(context_of(lab))
        # The runtime was upgraded meanwhile: figures of another series say nothing about this one.
        answer(lab, agent, 1.0, runtime_version="1.1")
        watching.watch(context_of(lab))
        assert checks(lab)[-1].outcome is DriftOutcome.INCONCLUSIVE
        assert device(lab, agent)["drifted_series"] == [checks(lab)[0].series_id]

    def test_a_check_is_judged_once(self, lab: ServerLab) -> None:
        agent = lab.agent()
        measured(lab, agent)
        pass_hour(lab)
        watching.watch(context_of(lab))
        answer(lab, agent)
        with lab.database.read() as session:
            (check,) = drift.finished_checks(session, max_age_s=HOUR_S)
            found = drift.judged(session, check)
        outcomes = []
        for _ in range(2):  # two servers found it finished
            with lab.database.write() as session:
                outcomes.append(drift.close_check(session, check, found))
        assert outcomes == [DriftOutcome.AGREES, None]
        with lab.database.read() as session:
            counts = dict(session.execute(select(LatencyRow.kernel_id, LatencyRow.num_measurements)).all())
            total = session.scalar(select(func.count()).select_from(MeasurementRow))
        assert total == NUM_KERNELS + NUM_SENTINELS == sum(counts.values())
        assert all(counts[kernel] == 2 for kernel in check.kernel_ids)

    def test_a_lease_of_a_check_is_wanted_until_it_closes(self, lab: ServerLab) -> None:
        agent = lab.agent()
        measured(lab, agent)
        pass_hour(lab)
        watching.watch(context_of(lab))
        (lease,) = lab.lease(agent)

        def renewed() -> bool:
            response = lab.post(f"/v1/leases/{lease.lease_id}:renew", RenewRequest(attempt=lease.attempt), agent.token)
            return loads(RenewAnswer, response.content).cancel

        assert renewed() is False
        with lab.database.write() as session:
            session.execute(update(DriftCheckRow).values(created_at=1.0))  # the device was away for days
        watching.watch(context_of(lab, interval_s=0.0))
        (check,) = checks(lab)
        assert check.outcome is DriftOutcome.INCONCLUSIVE
        states = {lab.task(task_id).state for task_id in check.task_ids}
        assert states == {TaskState.LEASED, TaskState.CANCELLED}
        assert renewed() is True


class TestSimulatedDevice:
    SETUP = MeasuringSetup(runtime="simulated", budget_s=0.5)

    @pytest.mark.parametrize(("speed", "outcome"), [(1.0, DriftOutcome.AGREES), (0.6, DriftOutcome.DRIFTED)])
    def test_heat_is_seen(self, sqlite_lab: ServerLab, speed: float, outcome: DriftOutcome) -> None:
        """A board whose surroundings grow hot until it lowers its clock; and the same heat without any effect."""
        lab = sqlite_lab
        cool = DeviceGroup(name="board", core="board", noise=Noise(sample=0.01, process=0.01))
        board = SimulatedDevice(cool, 1, seed=3)
        heat = Heat(ambient_celsius=85.0, throttle_celsius=80.0 if speed < 1 else 200.0, throttled_speed=speed)
        hot = SimulatedDevice(replace(cool, heat=heat), 1, seed=4)
        agent = lab.agent(profile=board.profile(PROFILE), runtimes=(board.runtime,))
        tasks = [kernel_task(8 * (i + 1), self.SETUP) for i in range(NUM_KERNELS)]

        def work(simulated: SimulatedDevice) -> None:
            for _ in range(5):  # rejected ones are tried again
                for lease in lab.lease(agent, 50):
                    taken = simulated.run_task(lease.task, attempt=lease.attempt)
                    assert isinstance(taken, Measurement)
                    same = replace(
                        taken.provenance,
                        runtime_version=board.runtime.version,
                        agent_version="0.1.0",
                        governor="simulated",
                    )
                    lab.report(agent, report_of(lease, replace(taken, provenance=same)))
                lab.make_ready(*[task.id for task in all_tasks(lab)])

        lab.source.request(agent.device_id, tasks, lab.search(agent.device_id))
        work(board)
        pass_hour(lab)
        watching.watch(context_of(lab))
        work(hot)
        watching.watch(context_of(lab))
        (check,) = checks(lab)
        assert check.outcome is outcome, check.findings
        with lab.database.read() as session:
            verdicts = set(
                session.scalars(select(MeasurementRow.verdict).where(MeasurementRow.task_id.in_(check.task_ids)))
            )
        assert (Verdict.REJECTED in verdicts) == (speed < 1)
