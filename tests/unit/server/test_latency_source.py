"""What a worker asks for: tasks are shared and reused by their key, and never measured twice without need."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import func, select, update

from device_agent.contracts import (
    Conditions,
    FailureReason,
    HeartbeatRequest,
    MeasurementFailure,
    MeasuringSetup,
    NetworkFormat,
    NetworkTask,
    RuntimeInfo,
    Verdict,
    VerdictReason,
)
from server.errors import NotFound, Unprocessable
from server.latency.source import MeasurementSummary, TaskProgress
from server.models import SearchRow, TaskRow
from server.searches.tasks import cancel_unwanted_tasks
from server.states import JobState, TaskState
from tests.unit.server.server_lab import (
    PROFILE,
    RUNTIMES,
    SETUP,
    LabAgent,
    ServerLab,
    failure,
    kernel_task,
    measurement,
    new_key,
    report_of,
)

NETWORK = NetworkTask(
    artifact_sha256="ef" * 32, artifact_bytes=10, format=NetworkFormat.PACKED, input_shape=(1, 8, 8), setup=SETUP
)


def measure(lab: ServerLab, agent: LabAgent, **kwargs: object) -> None:
    (lease,) = lab.lease(agent)
    lab.report(agent, report_of(lease, measurement(**kwargs)))  # type: ignore[arg-type]


def sparse_runtime(**changes: object) -> RuntimeInfo:
    return RuntimeInfo(name="tflite-sparse", version="2.0", binary_sha256="ef" * 32, **changes)  # type: ignore[arg-type]


class TestRequest:
    def test_one_id_for_each_task_in_order(self, lab: ServerLab) -> None:
        agent = lab.agent()
        tasks = [kernel_task(1), NETWORK, kernel_task(2), kernel_task(1)]
        ids = lab.source.request(agent.device_id, tasks, lab.search(agent.device_id))
        assert ids[0] == ids[3]
        assert len(set(ids)) == 3
        assert lab.task(ids[1]).artifact_sha256 == NETWORK.artifact_sha256
        assert [lab.task(i).kernel_id is None for i in ids] == [False, True, False, False]

    def test_nothing_asked_nothing_made(self, lab: ServerLab) -> None:
        assert lab.source.request("device_0", [], "search_0") == []

    def test_another_setup_or_kernel_is_another_task(self, lab: ServerLab) -> None:
        agent = lab.agent()
        variants = [kernel_task(1), kernel_task(2), kernel_task(1, replace(SETUP, budget_s=9.0))]
        assert len(set(lab.source.request(agent.device_id, variants, lab.search(agent.device_id)))) == 3

    def test_many_at_once(self, lab: ServerLab) -> None:
        agent = lab.agent()
        tasks = [kernel_task(i + 1) for i in range(1500)]
        ids = lab.source.request(agent.device_id, tasks, lab.search(agent.device_id))
        assert len(set(ids)) == 1500
        assert lab.source.progress(ids) == TaskProgress(pending=1500)

    def test_unknown_device_or_runtime(self, lab: ServerLab) -> None:
        with pytest.raises(NotFound, match="device_0"):
            lab.source.request("device_0", [kernel_task()], "search_0")
        agent = lab.agent()
        search_id = lab.search(agent.device_id)
        tflite = kernel_task(1, MeasuringSetup(runtime="tflite"))
        with pytest.raises(Unprocessable, match="no wheel for this platform"):
            lab.source.request(agent.device_id, [tflite], search_id)
        with lab.database.read() as session:
            assert session.scalar(select(func.count()).select_from(TaskRow)) == 0

    @pytest.mark.parametrize(
        ("sparse", "words"),
        [
            ({"sparse_1x1": False, "unavailable": "zeros are multiplied: use aarch64"}, "zeros are multiplied"),
            ({"sparse_1x1": False}, "measure on an aarch64 device that has it, or name another runtime"),
            ({"sparse_1x1": None}, "was not seen to take XNNPACK's sparse path"),
        ],
    )
    def test_a_sparse_kernel_on_a_device_without_the_sparse_path(
        self, lab: ServerLab, sparse: dict[str, object], words: str
    ) -> None:
        """The probe's answer may change with any start of the agent: each announcement counts from then on."""
        task = kernel_task(1, MeasuringSetup(runtime="tflite-sparse"))
        key = new_key()
        agent = lab.agent(agent_key=key, runtimes=(*RUNTIMES, sparse_runtime(**sparse)))
        search_id = lab.search(agent.device_id)
        with pytest.raises(Unprocessable, match=words) as refusal:
            lab.source.request(agent.device_id, [task], search_id)
        assert refusal.value.code == "runtime_unavailable"
        with lab.database.read() as session:
            assert session.scalar(select(func.count()).select_from(TaskRow)) == 0

        able = HeartbeatRequest(
            conditions=Conditions(),
            profile=PROFILE,
            runtimes=(*RUNTIMES, sparse_runtime(sparse_1x1=True)),
            agent_version="0.1.0",
        )
        lab.post("/v1/agents:heartbeat", able, agent.token)
        assert lab.source.request(agent.device_id, [task], search_id)
        lab.agent(agent_key=key, runtimes=(*RUNTIMES, sparse_runtime(**sparse)))
        with pytest.raises(Unprocessable, match=words):
            lab.source.request(agent.device_id, [kernel_task(2, task.setup)], search_id)

    def test_two_workers_at_once_make_one_task(self, lab: ServerLab) -> None:
        agent = lab.agent()
        searches = [lab.search(agent.device_id) for _ in range(4)]
        tasks = [kernel_task(i + 1) for i in range(30)]
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda s: lab.source.request(agent.device_id, tasks, s), searches))
        assert all(answer == answers[0] for answer in answers)


class TestReuse:
    def test_a_waiting_task_is_shared(self, lab: ServerLab) -> None:
        agent = lab.agent()
        assert lab.tasks(agent) == lab.tasks(agent)

    @pytest.mark.parametrize("verdict", [Verdict.TRUSTED, Verdict.NOISY])
    def test_a_usable_measurement_is_reused(self, lab: ServerLab, verdict: Verdict) -> None:
        agent = lab.agent()
        first = lab.tasks(agent)
        measure(lab, agent, verdict=verdict)
        assert lab.tasks(agent) == first
        assert lab.lease(agent) == ()

    def test_a_rejected_one_is_measured_again_for_the_next_search(self, lab: ServerLab) -> None:
        agent = lab.agent()
        search_id = lab.search(agent.device_id)
        (first,) = lab.tasks(agent, search_id=search_id)
        measure(lab, agent, verdict=Verdict.REJECTED, reasons=(VerdictReason.WRONG_OUTPUT,))
        # The same search has its answer, also after its worker was killed and asks again.
        assert lab.tasks(agent, search_id=search_id) == [first]
        (second,) = lab.tasks(agent)
        assert second != first
        measure(lab, agent)
        assert lab.tasks(agent) == [second]

    def test_what_cannot_be_run_is_not_asked_again_but_bad_luck_is(self, lab: ServerLab) -> None:
        agent = lab.agent()
        outcomes = {FailureReason.UNSUPPORTED: True, FailureReason.CRASHED: True, FailureReason.AGENT_OUTDATED: False}
        for place, (reason, is_reused) in enumerate(outcomes.items()):
            task = kernel_task(100 + place)
            first = lab.source.request(agent.device_id, [task], lab.search(agent.device_id))
            while lab.task(first[0]).state is not TaskState.FAILED:
                lab.report(agent, report_of(lab.lease(agent)[0], failure(reason)))
            second = lab.source.request(agent.device_id, [task], lab.search(agent.device_id))
            assert (second == first) is is_reused

    def test_force_measures_again_once_for_each_search(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (first,) = lab.tasks(agent)
        measure(lab, agent)
        search_id = lab.search(agent.device_id)
        forced = [lab.source.request(agent.device_id, [kernel_task(1)], search_id, force=True) for _ in range(2)]
        assert forced[0] == forced[1] != [first]

    def test_a_new_runtime_or_profile_is_a_new_key(self, lab: ServerLab) -> None:
        agent = lab.agent()
        heartbeat = HeartbeatRequest(
            conditions=Conditions(),
            profile=PROFILE,
            runtimes=(RuntimeInfo(name="native", version="1.0", binary_sha256="cd" * 32),),
            agent_version="0.1.0",
        )
        ids = lab.tasks(agent)
        lab.post("/v1/agents:heartbeat", heartbeat, agent.token)
        ids += lab.tasks(agent)
        lab.post("/v1/agents:heartbeat", replace(heartbeat, profile=replace(PROFILE, os_build="6.2")), agent.token)
        ids += lab.tasks(agent)
        assert len(set(ids)) == 3

    def test_a_cancelled_task_is_opened_again(self, lab: ServerLab) -> None:
        agent = lab.agent()
        search_id = lab.search(agent.device_id)
        (task_id,) = lab.tasks(agent, search_id=search_id)
        with lab.database.write() as session:
            session.execute(update(SearchRow).where(SearchRow.id == search_id).values(state=JobState.CANCELLED))
            cancel_unwanted_tasks(session, search_id)
        assert lab.task(task_id).state is TaskState.CANCELLED
        assert lab.tasks(agent) == [task_id]
        assert (lab.task(task_id).state, lab.task(task_id).attempt) == (TaskState.PENDING, 2)


class TestResults:
    def test_measurements_and_failures(self, lab: ServerLab) -> None:
        agent = lab.agent()
        ids = lab.tasks(agent, 4)
        first, second, _ = lab.lease(agent, 3)
        lab.report(agent, report_of(first, measurement(7.0)))
        lab.report(agent, report_of(second, failure(FailureReason.UNSUPPORTED, "too large")))
        progress = lab.source.progress(ids)
        assert progress == TaskProgress(pending=1, leased=1, succeeded=1, failed=1)
        assert (progress.total, progress.done, progress.is_complete) == (4, 2, False)
        results = lab.source.results(ids)
        assert set(results) == {first.task_id, second.task_id}
        summary, failed = results[first.task_id], results[second.task_id]
        assert isinstance(summary, MeasurementSummary)
        assert (summary.median_ns, summary.verdict) == (7.0, Verdict.TRUSTED)
        assert summary.kernel == first.task.kernel  # type: ignore[union-attr]
        assert failed == MeasurementFailure(reason=FailureReason.UNSUPPORTED, detail="too large")

    def test_no_measurement_yet(self, lab: ServerLab) -> None:
        agent = lab.agent()
        (task_id,) = lab.tasks(agent)
        with pytest.raises(NotFound, match=task_id):
            lab.source.measurement(task_id)


class TestSeriesOfTasks:
    """What would be of another series is measured again, as far as that is known beforehand."""

    def upgrade(self, lab: ServerLab, agent: LabAgent, agent_version: str, isa: str = "neon") -> None:
        runtimes = (replace(RUNTIMES[0], isa=isa), *RUNTIMES[1:])
        request = HeartbeatRequest(
            profile=PROFILE, runtimes=runtimes, conditions=Conditions(), agent_version=agent_version, spooled_reports=0
        )
        assert lab.post("/v1/agents:heartbeat", request, agent.token).status_code == 200

    @pytest.mark.parametrize(("agent_version", "isa"), [("0.2.0", "neon"), ("0.1.0", "sve")])
    def test_another_agent_or_instruction_set_measures_again(
        self, lab: ServerLab, agent_version: str, isa: str
    ) -> None:
        agent = lab.agent()
        first = lab.search(agent.device_id)
        (old,) = lab.source.request(agent.device_id, [kernel_task()], first)
        measure(lab, agent)
        assert lab.source.request(agent.device_id, [kernel_task()], lab.search(agent.device_id)) == [old]
        self.upgrade(lab, agent, agent_version, isa)
        (new,) = lab.source.request(agent.device_id, [kernel_task()], lab.search(agent.device_id))
        assert new != old
        # A search keeps what it was given.
        assert lab.source.request(agent.device_id, [kernel_task()], first) == [old]
        (lease,) = lab.lease(agent)
        today = replace(measurement().provenance, agent_version=agent_version, isa=isa)
        lab.report(agent, report_of(lease, replace(measurement(), provenance=today)))
        # The next one shares what was measured under today's key.
        assert lab.source.request(agent.device_id, [kernel_task()], lab.search(agent.device_id)) == [new]
