"""Asking the device for measurements and waiting for them, as one unit of a stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from device_agent.contracts import KernelTask, MeasurementFailure, Source, Verdict, kernel_id
from server.latency.repository import Task
from server.latency.source import MeasurementSummary, SqlLatencySource
from server.states import JobStage
from server.worker.run import SearchFailed, SearchRun

POLL_INTERVAL_S = 0.25

#: How many failures an error lists; the rest are in GET /v1/measurements.
_SHOWN_FAILURES = 3

Outcome = MeasurementSummary | MeasurementFailure


def measure(
    run: SearchRun, stage: JobStage, tasks: Sequence[Task], note: str, *, source: Source | None = None
) -> list[tuple[str, Outcome]]:
    """Have `tasks` measured on the job's device; one (task id, outcome) for each, in their order.

    A REJECTED measurement is taken once more before it is returned as it is. Tasks that a pause or a crash left behind
    are found again. All measurements have one source, which is `source` where that is given. Raises `RunInterrupted`
    while waiting, and `SearchFailed` where the device turned from a real into an emulated one or back.
    """
    latencies = SqlLatencySource(run.database)
    ids = latencies.request(run.claim.device_id, tasks, run.search_id)
    outcomes = _wait(run, latencies, stage, ids, note)
    rejected = [i for i, task_id in enumerate(ids) if _is_rejected(outcomes[task_id])]
    if rejected:
        again = latencies.request(run.claim.device_id, [tasks[i] for i in rejected], run.search_id, force=True)
        outcomes |= _wait(run, latencies, stage, again, f"{note}, {len(rejected)} of them again")
        for i, task_id in zip(rejected, again, strict=True):
            ids[i] = task_id
    check_one_source((outcomes[task_id] for task_id in ids), source)
    return [(task_id, outcomes[task_id]) for task_id in ids]


def check_one_source(outcomes: Iterable[Outcome], source: Source | None) -> None:
    """Raise `SearchFailed` unless all measurements have the same source, and that is `source` if given."""
    found = {outcome.source for outcome in outcomes if isinstance(outcome, MeasurementSummary)}
    if source is not None:
        found.add(source)
    if len(found) > 1:
        names = " and ".join(sorted(found))
        raise SearchFailed(
            f"the device gave both {names} latencies to this search, which never mix: submit the search again on the "
            "device as it is now"
        )


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
    run: SearchRun, source: SqlLatencySource, stage: JobStage, ids: Sequence[str], note: str
) -> dict[str, Outcome]:
    while True:
        progress = source.progress(ids)
        run.progress(stage, progress.done, progress.total, note)
        if progress.is_complete:
            break
        run.wait(POLL_INTERVAL_S)
    outcomes = source.results(ids)
    missing = [task_id for task_id in ids if task_id not in outcomes]
    if missing:
        raise SearchFailed(f"{len(missing)} measuring tasks were cancelled under the search: submit it again")
    return outcomes


def _is_rejected(outcome: Outcome) -> bool:
    return isinstance(outcome, MeasurementSummary) and outcome.verdict is Verdict.REJECTED
