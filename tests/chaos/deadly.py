"""A kernel that kills its agent every time, and one that freezes its device: searches go on without them."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from device_agent.contracts import FailureReason
from search.domain.config import SearchConfig
from server.models import KernelRow, SearchRow, SearchTaskRow, TaskRow
from server.states import JobState, TaskState
from tests.chaos.campaign import TASK_S, Campaign
from tests.chaos.faults import Fault
from tests.chaos.processes import wait_until
from tests.chaos.unsteady_agent import Disturbance

TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlyFindings:
    """How searches with deadly kernels ended, by name; and what of it is wrong, which should be nothing."""

    ends: dict[str, str]
    wrong: tuple[str, ...]


def deadly_kernels(campaign: Campaign, config: SearchConfig, agents: tuple[str, ...], newcomer: str) -> DeadlyFindings:
    """Search on each of `agents` and then on `newcomer`, with two kernels that none of them survives.

    The first devices find that out, each after its attempts; the newcomer is told, and dies of neither.
    """
    stack = campaign.stack
    with stack.database.read() as session:
        kernels = list(session.scalars(select(KernelRow.id).order_by(KernelRow.id)))
    deadly, hanging = kernels[len(kernels) // 3], kernels[2 * len(kernels) // 3]
    wrong: list[str] = []
    ends: dict[str, str] = {}
    for name in (*agents, newcomer):
        if name not in stack.processes:
            stack.add_agent(name)
        stack.disturb(name, Disturbance(task_s=TASK_S, deadly=(deadly,), hanging=(hanging,)))
        wait_until((stack.state_dir / name / "credentials.json").exists, f"{name} to enrol")
        before = len(stack.deaths(name)), stack.watchdog_resets
        search = f"deadly on {name}"
        campaign.submit(search, config, name)
        wait_until(lambda search=search: campaign.is_over(search), f"{search} to end", TIMEOUT_S)
        died, hung = len(stack.deaths(name)) - before[0], stack.watchdog_resets - before[1]
        for fault, count in ((Fault.DEADLY_TASK, died - hung), (Fault.HANGING_TASK, hung)):
            for _ in range(count):
                campaign.log.add(fault, name)
        ends[search], found = _end(campaign, search, (deadly, hanging))
        wrong += found
        if name == newcomer and died:
            wrong.append(f"{name} died {died} times of kernels that others had died of")
    return DeadlyFindings(ends=ends, wrong=tuple(wrong))


def _end(campaign: Campaign, name: str, kernels: tuple[str, str]) -> tuple[str, list[str]]:
    with campaign.stack.database.read() as session:
        search = session.scalars(select(SearchRow).where(SearchRow.name == name)).one()
        wanted = select(SearchTaskRow.task_id).where(SearchTaskRow.search_id == search.id)
        tasks = session.scalars(select(TaskRow).where(TaskRow.id.in_(wanted))).all()
    wrong = []
    for task in tasks:
        expected = TaskState.FAILED if task.kernel_id in kernels else TaskState.SUCCEEDED
        if task.state is not expected:
            wrong.append(f"{name}: {task.kernel_id} is {task.state.value} ({task.failure_reason})")
        elif task.state is TaskState.FAILED and task.failure_reason not in (
            FailureReason.CRASHED.value,
            FailureReason.QUARANTINED.value,
        ):
            wrong.append(f"{name}: {task.kernel_id} failed by {task.failure_reason}")
    if search.state is JobState.FAILED and not any(kernel[:10] in (search.error or "") for kernel in kernels):
        wrong.append(f"{name} failed without naming a kernel: {search.error}")
    return search.state.value + (f": {search.error}" if search.error else ""), wrong
