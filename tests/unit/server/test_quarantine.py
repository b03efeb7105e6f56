"""What takes its devices down each time is not tried again, until somebody pardons it."""

from __future__ import annotations

import dataclasses

import pytest
from sqlalchemy import update

from device_agent.contracts import FailureReason, KernelSpec, KernelTask, Lease, kernel_id
from server.context import TOKEN_COOKIE
from server.models import TaskRow
from server.states import TaskState
from server.worker.run import SearchFailed
from tests.unit.server.dashboard.test_dashboard_pages import text_of
from tests.unit.server.server_lab import SETUP, LabAgent, ServerLab, failure, kernel_task, report_of
from tests.unit.server.worker_lab import WorkerLab, quick_search

TASK = kernel_task(1)
SUBJECT = kernel_id(TASK.kernel)


def ask(lab: ServerLab, agent: LabAgent, task: KernelTask = TASK) -> str:
    """The task that a new search is given."""
    (task_id,) = lab.source.request(agent.device_id, [task], lab.search(agent.device_id))
    return task_id


def take_down(
    lab: ServerLab, agent: LabAgent, reason: FailureReason = FailureReason.CRASHED, task: KernelTask = TASK
) -> str:
    """All attempts fail."""
    task_id = ask(lab, agent, task)
    for _ in range(3):
        lab.make_ready(task_id)
        (lease,) = lab.lease(agent)
        lab.report(agent, report_of(lease, failure(reason)))
    assert lab.task(task_id).state is TaskState.FAILED
    return task_id


@pytest.mark.parametrize("reason", [FailureReason.CRASHED, FailureReason.TIMED_OUT])
def test_the_device_that_it_took_down_is_not_asked_again(lab: ServerLab, reason: FailureReason) -> None:
    agent, other = lab.agent(device_name="a"), lab.agent(device_name="b")
    first = take_down(lab, agent, reason)
    assert ask(lab, agent) == first
    assert lab.task(ask(lab, other)).state is TaskState.PENDING


def test_another_setup_does_not_help(lab: ServerLab) -> None:
    agent = lab.agent(device_name="a")
    take_down(lab, agent)
    task = lab.task(ask(lab, agent, kernel_task(1, dataclasses.replace(SETUP, budget_s=9.0))))
    assert (task.state, task.failure_reason) == (TaskState.FAILED, "quarantined")
    assert "3 times on 'a'" in str(task.failure_detail)
    assert f"kerf latency pardon {SUBJECT}" in str(task.failure_detail)


def test_after_two_devices_no_other_is_asked(lab: ServerLab) -> None:
    for name in ("a", "b"):
        take_down(lab, lab.agent(device_name=name))
    newcomer = lab.agent(device_name="c")
    assert lab.task(ask(lab, newcomer)).failure_reason == "quarantined"
    assert lab.lease(newcomer) == ()
    # The next search is told the same, of its own task.
    assert lab.task(ask(lab, newcomer)).failure_reason == "quarantined"


def test_other_kernels_and_passing_failures_are_not_held_back(lab: ServerLab) -> None:
    for name in ("a", "b"):
        take_down(lab, lab.agent(device_name=name), FailureReason.RESOURCE_EXHAUSTED)
    agent = lab.agent(device_name="c")
    assert lab.task(ask(lab, agent)).state is TaskState.PENDING


def test_it_is_listed_and_pardoned(lab: ServerLab) -> None:
    agent = lab.agent(device_name="a")
    take_down(lab, agent)
    (item,) = lab.get("/v1/quarantine").json()["items"]
    assert (item["subject"], item["is_everywhere"]) == (SUBJECT, False)
    assert [(c["device_name"], c["failures"], c["reason"]) for c in item["casualties"]] == [("a", 3, "crashed")]
    assert lab.post(f"/v1/quarantine/{SUBJECT}:pardon", token=lab.admin).json() == {"subject": SUBJECT, "tasks": 1}
    assert lab.get("/v1/quarantine").json()["items"] == []
    assert lab.post(f"/v1/quarantine/{SUBJECT}:pardon", token=lab.admin).status_code == 404
    assert lab.task(ask(lab, agent)).state is TaskState.PENDING


def test_a_page_says_why_and_how_it_is_let_out(sqlite_lab: ServerLab) -> None:
    first, second = (sqlite_lab.agent(device_name=name) for name in ("board <a>", "board b"))
    sqlite_lab.client.cookies.set(TOKEN_COOKIE, sqlite_lab.user)

    def page() -> str:
        answer = sqlite_lab.client.get("/quarantine")
        assert answer.status_code == 200
        return answer.text

    assert "Nothing is in quarantine" in page()
    task_id = take_down(sqlite_lab, first)
    text = text_of(page())
    assert "conv 3×3, 1 → 16 channels" in text
    assert "native 1.0 : not tried on board <a>" in text
    assert "crashed 3 times it went wrong" in text
    assert f"kerf latency pardon {SUBJECT}" in text
    take_down(sqlite_lab, second, FailureReason.TIMED_OUT)
    text = text_of(page())
    assert "not tried on any device with it" in text
    assert "board b hung 3 times" in text
    assert 'href="/quarantine"' in sqlite_lab.client.get("/queue").text
    # A network has no kernel's words, and shows its file.
    with sqlite_lab.database.write() as session:
        values = {"kernel_id": None, "artifact_sha256": "ab" * 32, "subject": "network_1"}
        session.execute(update(TaskRow).where(TaskRow.id == task_id).values(**values))
    text = text_of(page())
    assert "whole network abababababab" in text
    assert "kerf latency pardon network_1" in text
    with sqlite_lab.database.write() as session:
        session.execute(update(TaskRow).values(pardoned_at=1.0))
    assert "Nothing is in quarantine" in page()


def test_the_list_is_paged(lab: ServerLab) -> None:
    agent = lab.agent(device_name="a")
    for channels in (1, 2, 3):
        take_down(lab, agent, task=kernel_task(channels))
    first = lab.get("/v1/quarantine?limit=2").json()
    second = lab.get(f"/v1/quarantine?limit=2&cursor={first['next']}").json()
    subjects = [item["subject"] for page in (first, second) for item in page["items"]]
    assert subjects == sorted(kernel_id(kernel_task(n).kernel) for n in (1, 2, 3))
    assert second["next"] is None
    assert lab.get("/v1/quarantine?cursor=YQ").status_code == 400


@pytest.mark.parametrize("channels", [None, (16, 4)], ids=["all dense ones", "one between others"])
def test_a_search_that_cannot_do_without_a_kernel_that_crashes_names_it(
    sqlite_lab: ServerLab, monkeypatch: pytest.MonkeyPatch, channels: tuple[int, int] | None
) -> None:
    def is_deadly(kernel: KernelSpec) -> bool:
        is_it = channels in (None, (kernel.in_channels, kernel.out_channels))
        return is_it and kernel.pruning.density == 1.0

    worker = WorkerLab(sqlite_lab)
    measured = worker._measured

    def crashing(lease: Lease) -> object:
        if isinstance(lease.task, KernelTask) and is_deadly(lease.task.kernel):
            return failure(FailureReason.CRASHED, "died by SIGSEGV")
        return measured(lease)

    monkeypatch.setattr(worker, "_measured", crashing)
    search_id = worker.submit(quick_search("crashing"))
    with pytest.raises(SearchFailed, match=r"lacks kernels .* crashed \(died by SIGSEGV\).* What cannot be predicted"):
        worker.run(search_id)
