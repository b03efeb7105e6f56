"""Asking devices for measurements and waiting for them, as one unit of a stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from device_agent.contracts import KernelTask, MeasurementFailure, Source, Verdict, kernel_id
from server.fleet.devices import DeviceState, device_state
from server.fleet.repository import get_device
from server.latency.repository import Task
from server.latency.series import why_mixed
from server.latency.source import MeasurementSummary, SqlLatencySource
from server.states import JobStage
from server.worker.run import SearchFailed, SearchRun

POLL_INTERVAL_S = 0.25

#: How many failures an error lists; the rest are in GET /v1/measurements.
_SHOWN_FAILURES = 3

#: What the user can do about a device that does no work.
_REMEDY = {DeviceState.OFFLINE: "start its agent", DeviceState.DISABLED: "enable it"}

Outcome = MeasurementSummary | MeasurementFailure


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one device is asked for. All its measurements have one source, which is `source` where that is given."""

    device_id: str
    tasks: Sequence[Task]
    source: Source | None = None


def measure(run: SearchRun, stage: JobStage, orders: Sequence[Order], note: str) -> list[list[tuple[str, Outcome]]]:
    """Have all `orders` measured, all devices at the same time; one (task id, outcome) a task, in their order.

    A REJECTED measurement is taken once more before it is returned as it is. Tasks that a pause or a crash left behind
    are found again. Raises `RunInterrupted` while waiting, and `SearchFailed` where a device turned from a real into an
    emulated one or back.
    """
    latencies = SqlLatencySource(run.database)
    ids = [latencies.request(order.device_id, order.tasks, run.search_id) for order in orders]
    outcomes = _wait(run, latencies, stage, orders, ids, note)
    rejected = [[i for i, task_id in enumerate(own) if _is_rejected(outcomes[task_id])] for own in ids]
    if any(rejected):
        again = [
            latencies.request(order.device_id, [order.tasks[i] for i in places], run.search_id, force=True)
            for order, places in zip(orders, rejected, strict=True)
        ]
        outcomes |= _wait(run, latencies, stage, orders, again, f"{note}, {sum(map(len, rejected))} of them again")
        for own, places, repeated in zip(ids, rejected, again, strict=True):
            for i, task_id in zip(places, repeated, strict=True):
                own[i] = task_id
    for order, own in zip(orders, ids, strict=True):
        name = run.device_names[order.device_id]
        check_one_source(name, (outcomes[task_id] for task_id in own), order.source)
    return [[(task_id, outcomes[task_id]) for task_id in own] for own in ids]


def check_one_source(device: str, outcomes: Iterable[Outcome], source: Source | None) -> None:
    """Raise `SearchFailed` unless all measurements of a device have one source, and that is `source` if given."""
    found = {outcome.source for outcome in outcomes if isinstance(outcome, MeasurementSummary)}
    if source is not None:
        found.add(source)
    if len(found) > 1:
        names = " and ".join(sorted(found))
        raise SearchFailed(
            f"the device {device!r} gave both {names} latencies to this search, which never mix: submit the search "
            "again on the device as it is now"
        )


def usable(
    run: SearchRun, tasks: Sequence[KernelTask], outcomes: Sequence[tuple[str, Outcome]], where: str
) -> tuple[list[tuple[KernelTask, MeasurementSummary]], list[str]]:
    """The kernels that a latency table may use. Those that failed or were rejected are told, and why is returned."""
    found, left_out = [], []
    for task, (_, outcome) in zip(tasks, outcomes, strict=True):
        if isinstance(outcome, MeasurementFailure):
            why = f"{outcome.reason.value} ({outcome.detail})"
        elif outcome.verdict is Verdict.REJECTED:
            why = f"rejected ({', '.join(r.value for r in outcome.reasons)})"
        else:
            found.append((task, outcome))
            continue
        left_out.append(f"{describe(task)}: {why}")
        run.message(f"left out of the latency table{where}: {left_out[-1]}")
    return found, left_out


def version_of(found: MeasurementSummary) -> str:
    """The runtime's version and binary, as a latency table has them."""
    return f"{found.runtime_version}+{found.runtime_sha256[:16]}"


def warn_mixed(run: SearchRun, kernels: Sequence[MeasurementSummary], where: str) -> None:
    """Say so where kernels that earlier searches measured are of another series than those measured now: a task is
    shared by what can be asked for, and cores, governor and agent show only in what came back.
    """
    with run.database.read() as session:
        mixed = why_mixed(session, (kernel.series_id for kernel in kernels))
    if mixed is not None:
        run.message(f"the latency table{where} joins {mixed}: `kerf latency compare` shows what that means")


def require_success(what: str, tasks: Sequence[Task], outcomes: Sequence[tuple[str, Outcome]]) -> None:
    """Raise `SearchFailed` with the reasons where any of the tasks failed."""
    failed = [(t, o) for t, (_, o) in zip(tasks, outcomes, strict=True) if isinstance(o, MeasurementFailure)]
    if not failed:
        return
    shown = "; ".join(f"{describe(t)}: {o.reason.value} ({o.detail})" for t, o in failed[:_SHOWN_FAILURES])
    faults = Counter(o.reason.fault for _, o in failed)
    where = ", ".join(f"{n} by the {fault}" for fault, n in sorted(faults.items()))
    raise SearchFailed(f"{len(failed)} of {len(tasks)} measurements of {what} failed ({where}): {shown}")


def describe(task: Task) -> str:
    """A task in a few words."""
    if isinstance(task, KernelTask):
        k = task.kernel
        return (
            f"{k.op.value} {k.in_channels}->{k.out_channels} {k.kernel_h}x{k.kernel_w} at {k.input_h}x{k.input_w}, "
            f"{k.pruning.scheme.value} {k.pruning.density:g} ({kernel_id(k)[:10]})"
        )
    return f"{task.format.value} network {task.artifact_sha256[:10]}"


def _wait(
    run: SearchRun,
    source: SqlLatencySource,
    stage: JobStage,
    orders: Sequence[Order],
    ids: Sequence[Sequence[str]],
    note: str,
) -> dict[str, Outcome]:
    """Wait for the tasks `ids` of each order. Who waits is told which devices it is for, if they are away."""
    told: set[str] = set()
    done: int | None = None
    while True:
        progress = [source.progress(own) for own in ids]
        before, done = done, sum(p.done for p in progress)
        if before is not None and done > before:
            run.got_further()
        is_open = [order.device_id for order, p in zip(orders, progress, strict=True) if not p.is_complete]
        away = absent_devices(run, is_open)
        for name, state in away.items():
            if name not in told:
                run.message(
                    f"waiting for the device {name!r}, which is {state}: {_REMEDY[state]}, or cancel the search"
                )
        told = set(away)
        waits = "".join(f"; waits for {name!r}, which is {state}" for name, state in away.items())
        run.progress(stage, done, sum(p.total for p in progress), f"{note}{waits}")
        if not is_open:
            break
        run.wait(POLL_INTERVAL_S)
    every = [task_id for own in ids for task_id in own]
    outcomes = source.results(every)
    missing = [task_id for task_id in every if task_id not in outcomes]
    if missing:
        raise SearchFailed(f"{len(missing)} measuring tasks were cancelled under the search: submit it again")
    return outcomes


def absent_devices(run: SearchRun, device_ids: Sequence[str]) -> dict[str, DeviceState]:
    """Those of the devices that do no work now, by name."""
    found: dict[str, DeviceState] = {}
    with run.database.read() as session:
        for device_id in device_ids:
            status = get_device(session, device_id)
            state = device_state(status, run.settings.heartbeat_interval_s)
            if state is not DeviceState.ONLINE:
                found[status.row.name] = state
    return found


def _is_rejected(outcome: Outcome) -> bool:
    return isinstance(outcome, MeasurementSummary) and outcome.verdict is Verdict.REJECTED
