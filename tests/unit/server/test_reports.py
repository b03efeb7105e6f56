"""Reports: exactly once in the database, whatever arrives how often and how late."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import func, select

from device_agent.contracts import (
    Conditions,
    FailureReason,
    HeartbeatRequest,
    ReportBatch,
    Source,
    Verdict,
    VerdictReason,
    profile_id,
)
from server.models import LatencyRow, MeasurementFailureRow, MeasurementRow, ReportRow, SeriesRow
from server.states import TaskState
from tests.unit.server.server_lab import (
    PROFILE,
    RUNTIMES,
    ServerLab,
    failure,
    kernel_task,
    measurement,
    new_key,
    report_of,
)


def count(lab: ServerLab, table: type, **where: object) -> int:
    with lab.database.read() as session:
        return int(session.scalar(select(func.count()).select_from(table).filter_by(**where)) or 0)


class TestAccepted:
    def test_a_measurement_completes_its_task(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        (lease,) = lab.lease(agent)
        report = report_of(lease, measurement(1234.5))
        assert lab.report(agent, report) == ["accepted"]
        task = lab.task(task_id)
        assert (task.state, task.result_key, task.verdict) == (TaskState.SUCCEEDED, report.result_key, Verdict.TRUSTED)
        assert lab.source.measurement(task_id) == report.result

    def test_reporting_again_changes_nothing(self, lab: ServerLab) -> None:
        agent = lab.agent()
        lab.tasks(agent)
        (lease,) = lab.lease(agent)
        report = report_of(lease, measurement())
        assert lab.report(agent, report) == ["accepted"]
        assert lab.report(agent, report, report) == ["duplicate", "duplicate"]
        assert count(lab, MeasurementRow) == 1

    def test_a_second_result_of_one_attempt_is_late(self, lab: ServerLab) -> None:
        agent = lab.agent()
        lab.tasks(agent)
        (lease,) = lab.lease(agent)
        assert lab.report(agent, report_of(lease, measurement(1.0)), report_of(lease, measurement(2.0))) == [
            "accepted",
            "late",
        ]
        assert count(lab, ReportRow, status="accepted") == 1

    def test_the_roll_up_counts_each_accepted_measurement_once(self, lab: ServerLab) -> None:
        agent = lab.agent()
        search_id = lab.search(agent.device_id)
        for median_ns in (30.0, 10.0, 20.0):
            lab.source.request(agent.device_id, [kernel_task()], search_id, force=True)
            (lease,) = lab.lease(agent)
            report = report_of(lease, measurement(median_ns))
            lab.report(agent, report)
            lab.report(agent, report)
            search_id = lab.search(agent.device_id)
        with lab.database.read() as session:
            row = session.scalars(select(LatencyRow)).one()
        assert (row.num_measurements, row.median_ns, row.min_median_ns, row.max_median_ns) == (3, 20.0, 10.0, 30.0)


class TestLate:
    def test_an_older_attempt_completes_nothing_but_is_kept(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        (old,) = lab.lease(agent)
        lab.expire(task_id)
        (new,) = lab.lease(agent)
        assert lab.report(agent, report_of(old, measurement(1.0))) == ["late"]
        assert lab.task(task_id).state is TaskState.LEASED
        assert lab.report(agent, report_of(new, measurement(2.0))) == ["accepted"]
        assert lab.source.measurement(task_id).statistics.median_ns == 2.0
        assert count(lab, MeasurementRow, status="late") == 1
        with lab.database.read() as session:
            assert session.scalars(select(LatencyRow)).one().num_measurements == 1

    def test_a_report_past_the_lease_counts_while_nobody_took_the_task(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        (lease,) = lab.lease(agent)
        lab.expire(task_id)
        assert lab.report(agent, report_of(lease, measurement())) == ["accepted"]

    def test_the_task_of_another_device(self, lab: ServerLab) -> None:
        agent, thief = lab.agent(), lab.agent()
        (task_id,) = lab.tasks(agent)
        (lease,) = lab.lease(agent)
        assert lab.report(thief, report_of(lease, measurement())) == ["late"]
        assert lab.task(task_id).state is TaskState.LEASED
        assert count(lab, ReportRow) == 0

    def test_the_key_of_another_device(self, lab: ServerLab) -> None:
        first, second = lab.agent(), lab.agent()
        lab.tasks(first)
        lab.tasks(second)
        key = new_key()
        lab.report(first, report_of(lab.lease(first)[0], measurement(), key))
        body = ReportBatch(reports=(report_of(lab.lease(second)[0], measurement(), key),))
        assert lab.post("/v1/reports", body, second.token).status_code == 409


class TestFailure:
    @pytest.mark.parametrize("reason", [FailureReason.UNSUPPORTED, FailureReason.INVALID_TASK])
    def test_what_would_fail_again_is_not_tried_again(self, lab: ServerLab, reason: FailureReason) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        lab.report(agent, report_of(lab.lease(agent)[0], failure(reason, "no such operator")))
        task = lab.task(task_id)
        assert (task.state, task.failure_reason, task.failure_detail) == (TaskState.FAILED, reason, "no such operator")
        assert lab.source.results([task_id]) == {task_id: failure(reason, "no such operator")}

    def test_three_crashes_and_it_has_failed(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        for attempt in (1, 2, 3):
            (lease,) = lab.lease(agent)
            assert lease.attempt == attempt
            assert lab.report(agent, report_of(lease, failure(FailureReason.CRASHED))) == ["accepted"]
        assert lab.task(task_id).state is TaskState.FAILED
        assert count(lab, MeasurementFailureRow) == 3

    def test_a_shutdown_is_nobodys_failure(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        for _ in range(5):
            lab.report(agent, report_of(lab.lease(agent)[0], failure(FailureReason.AGENT_SHUTDOWN)))
        assert (lab.task(task_id).state, lab.task(task_id).failures) == (TaskState.PENDING, 0)

    def test_a_device_that_is_not_ready_is_asked_later(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        lab.report(agent, report_of(lab.lease(agent)[0], failure(FailureReason.DEVICE_NOT_READY, "78 degrees")))
        assert lab.lease(agent) == ()
        assert (lab.task(task_id).failures, lab.task(task_id).deferrals) == (0, 1)


class TestRejected:
    def test_contention_is_tried_again_and_the_last_one_stands(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        noise = measurement(verdict=Verdict.REJECTED, reasons=(VerdictReason.CONTENTION,))
        for _ in range(3):
            assert lab.report(agent, report_of(lab.lease(agent)[0], noise)) == ["accepted"]
        assert (lab.task(task_id).state, lab.task(task_id).verdict) == (TaskState.SUCCEEDED, Verdict.REJECTED)
        assert count(lab, MeasurementRow) == 3
        assert count(lab, LatencyRow) == 0

    def test_a_wrong_output_stays_wrong(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        wrong = measurement(verdict=Verdict.REJECTED, reasons=(VerdictReason.WRONG_OUTPUT,))
        lab.report(agent, report_of(lab.lease(agent)[0], wrong))
        assert lab.task(task_id).state is TaskState.SUCCEEDED


class TestProvenance:
    """Numbers of different keys never mix."""

    @pytest.mark.parametrize(
        ("wrong", "detail"),
        [
            (measurement(runtime="tflite"), "tflite"),
            (measurement(source=Source.SIMULATED), "simulated"),
            (measurement(source=Source.EMULATED), "emulated"),
            (measurement(source=Source.IMPORTED), "imported"),
        ],
    )
    def test_a_report_of_something_else_is_a_failure_of_the_agent(
        self, lab: ServerLab, wrong: object, detail: str
    ) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        (lease,) = lab.lease(agent)
        lab.report(agent, replace(report_of(lease, measurement()), result=wrong))
        assert count(lab, MeasurementRow) == 0
        with lab.database.read() as session:
            stored = session.scalars(select(MeasurementFailureRow)).one()
        assert stored.reason == "agent_error"
        assert detail in stored.detail
        assert lab.task(task_id).state is TaskState.PENDING

    def test_after_an_upgrade_the_key_is_that_of_what_was_measured(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        lab.report(agent, report_of(lab.lease(agent)[0], measurement(runtime_version="1.1")))
        assert lab.task(task_id).runtime_version == "1.1"
        # The device still says 1.0, so that is what a search asks for.
        assert lab.tasks(agent) != [task_id]

    @pytest.mark.parametrize(
        ("source", "changes"),
        [
            (Source.MEASURED, {}),
            (Source.EMULATED, {"emulated": True}),
            (Source.SIMULATED, {"simulated": True}),
            (Source.SIMULATED, {"simulated": True, "emulated": True}),
        ],
    )
    def test_a_device_reports_under_its_own_source_alone(
        self, lab: ServerLab, source: Source, changes: dict[str, bool]
    ) -> None:
        agent = lab.agent(profile=replace(PROFILE, **changes))
        for told in Source:
            (task_id,) = lab.tasks(agent)
            lab.make_ready(task_id)
            lab.report(agent, report_of(lab.lease(agent)[0], measurement(source=told)))
            assert (lab.task(task_id).state is TaskState.SUCCEEDED) is (told is source)
            if told is source:
                break
        with lab.database.read() as session:
            assert set(session.scalars(select(SeriesRow.source))) == {source}
            assert count(lab, LatencyRow) == 1

    def test_a_device_that_becomes_emulated_shares_nothing_with_what_it_was(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (before,) = lab.tasks(agent)
        (lease,) = lab.lease(agent)
        emulated = replace(PROFILE, emulated=True)
        heartbeat = HeartbeatRequest(
            profile=emulated, runtimes=RUNTIMES, conditions=Conditions(), agent_version="0.1.0"
        )
        assert lab.post("/v1/agents:heartbeat", heartbeat, agent.token).status_code == 200
        # What was measured before the change is measured again; what comes after it belongs to the new profile.
        lab.report(agent, report_of(lease, measurement()))
        assert lab.task(before).state is TaskState.PENDING
        lab.make_ready(before)
        lab.report(agent, report_of(lab.lease(agent)[0], measurement(source=Source.EMULATED)))
        with lab.database.read() as session:
            (row,) = session.scalars(select(SeriesRow)).all()
        assert (row.source, row.profile_id) == (Source.EMULATED, profile_id(emulated))
        assert lab.task(before).profile_id == profile_id(emulated)
        lab.post("/v1/agents:heartbeat", replace(heartbeat, profile=PROFILE), agent.token)
        assert lab.tasks(agent) != [before]
