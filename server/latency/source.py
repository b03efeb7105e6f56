"""Where a search gets its latencies from: tasks asked for, and what became of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from device_agent.contracts import (
    FailureReason,
    KernelSpec,
    KernelTask,
    Measurement,
    MeasurementFailure,
    Source,
    Statistics,
    Verdict,
    VerdictReason,
    decode,
    loads,
    setup_id,
)
from server.database import Database
from server.errors import NotFound
from server.fleet import quarantine
from server.latency.repository import (
    DRIFT_CHECK,
    RuntimeKey,
    Task,
    ensure_kernels,
    ensure_setups,
    existing_tasks,
    insert_failed_tasks,
    insert_tasks,
    new_task_row,
    raw_measurement,
    runtime_key,
    subject_id,
)
from server.models import KernelRow, MeasurementRow, SearchTaskRow, TaskRow
from server.searches.tasks import link_tasks
from server.states import TaskState

#: Identities in one IN list: below SQLite's limit of parameters.
_BATCH = 5000

#: What is measured and how: (subject, setup_id).
Pair = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskProgress:
    """How many of the asked tasks are in which state."""

    pending: int = 0
    leased: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def total(self) -> int:
        return self.pending + self.leased + self.succeeded + self.failed + self.cancelled

    @property
    def done(self) -> int:
        return self.succeeded + self.failed + self.cancelled

    @property
    def is_complete(self) -> bool:
        return self.done == self.total


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementSummary:
    """A measurement without its samples. `kernel` is None for a whole network."""

    task_id: str
    series_id: str
    result_key: str
    kernel: KernelSpec | None
    artifact_sha256: str | None
    source: Source
    runtime: str
    runtime_version: str
    runtime_sha256: str
    mode: str
    verdict: Verdict
    reasons: tuple[VerdictReason, ...]
    statistics: Statistics
    output_sha256: str
    memory_bytes: int | None

    @property
    def median_ns(self) -> float:
        return self.statistics.median_ns


class SqlLatencySource:
    """Asks devices for measurements through the task table. Each method is one short transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def request(
        self,
        device_id: str,
        tasks: Sequence[Task],
        search_id: str,
        *,
        force: bool = False,
        priority: int = 0,
    ) -> list[str]:
        """Ask for measurements; returns one task id for each of `tasks`, in their order.

        A task that already has a usable result under today's key (device profile, runtime version and binary,
        instruction set, agent version, setup), or that is waiting for any search, is shared, as is one that this
        runtime cannot do or does not survive. What is in quarantine fails without being tried. `force` measures again,
        once for each search. Asking again for the same is harmless and gives the same ids. Cores and governor are in a
        series' key, too, but only the measurement tells them.

        Raises `NotFound` for an unknown device, and `Unprocessable` where it lacks the runtime.
        """
        if not tasks:
            return []
        by_pair = {(subject_id(task), setup_id(task.setup)): task for task in tasks}
        with self._database.write() as session:
            keys = {r: runtime_key(session, device_id, r) for r in sorted({t.setup.runtime for t in tasks})}
            ensure_kernels(session, (t.kernel for t in tasks if isinstance(t, KernelTask)))
            ensure_setups(session, {setup_id(t.setup): t.setup for t in tasks}.values())
            chosen = _choose(session, keys, list(by_pair), search_id, force=force)
            missing = [pair for pair, row in chosen.items() if not row]
            made: set[str] = set()
            if missing:
                taken = {(row.subject, row.setup_id) for row in existing_tasks(session, keys, missing)}
                refused = {
                    name: quarantine.refused(session, key, (subject for subject, _ in missing))
                    for name, key in keys.items()
                }
                rows = [
                    new_task_row(
                        keys[by_pair[pair].setup.runtime],
                        by_pair[pair],
                        repeat=search_id if force or pair in taken else "",
                        priority=priority,
                    )
                    for pair in missing
                ]
                untried = [row for row in rows if row["subject"] in refused[row["runtime"]]]
                insert_tasks(session, [row for row in rows if row not in untried])
                insert_failed_tasks(session, [(row, refused[row["runtime"]][row["subject"]]) for row in untried])
                made = {row["id"] for row in rows}
                # Of two workers that ask at once one made the task, and the other finds it here.
                chosen |= _choose(session, keys, missing, search_id, force=force, made=made)
            found = {pair: row for pair, row in chosen.items() if row is not None}
            reopened = [row.id for row in found.values() if row.state is TaskState.CANCELLED]
            _reopen(session, reopened)
            for_this_search = made.union(reopened)
            link_tasks(session, search_id, {row.id: row.id not in for_this_search for row in found.values()})
            ids = {pair: row.id for pair, row in found.items()}
        return [ids[subject_id(task), setup_id(task.setup)] for task in tasks]

    def progress(self, task_ids: Sequence[str]) -> TaskProgress:
        """How far these tasks are."""
        counts: Counter[str] = Counter()
        with self._database.read() as session:
            for part in _batches(task_ids):
                query = select(TaskRow.state, func.count()).where(TaskRow.id.in_(part)).group_by(TaskRow.state)
                counts.update({state.value: count for state, count in session.execute(query)})
        return TaskProgress(**counts)

    def results(self, task_ids: Sequence[str]) -> dict[str, MeasurementSummary | MeasurementFailure]:
        """What became of the tasks; those that are not finished, or were cancelled, are left out."""
        results: dict[str, MeasurementSummary | MeasurementFailure] = {}
        with self._database.read() as session:
            for part in _batches(task_ids):
                query = (
                    select(MeasurementRow, KernelRow.spec)
                    .join(TaskRow, TaskRow.result_key == MeasurementRow.result_key)
                    .outerjoin(KernelRow, KernelRow.id == MeasurementRow.kernel_id)
                    .where(TaskRow.id.in_(part), TaskRow.state == TaskState.SUCCEEDED)
                )
                for row, spec in session.execute(query):
                    results[row.task_id] = summary(row, spec)
                failed = select(TaskRow.id, TaskRow.failure_reason, TaskRow.failure_detail).where(
                    TaskRow.id.in_(part), TaskRow.state == TaskState.FAILED
                )
                for task_id, reason, detail in session.execute(failed):
                    results[task_id] = MeasurementFailure(reason=FailureReason(str(reason)), detail=detail or "")
        return results

    def measurement(self, task_id: str) -> Measurement:
        """The whole measurement that completed a task, with samples, outputs and times of operators."""
        with self._database.read() as session:
            key = session.execute(select(TaskRow.result_key).where(TaskRow.id == task_id)).scalar_one_or_none()
            text = raw_measurement(session, key) if key else None
        if text is None:
            raise NotFound(f"task {task_id!r} has no measurement: wait until it has succeeded")
        return loads(Measurement, text)


def summary(row: MeasurementRow, spec: dict[str, Any] | None) -> MeasurementSummary:
    """The measurement that completed a task; one that was imported completes none."""
    assert row.task_id is not None
    assert row.statistics is not None
    assert row.output_sha256 is not None
    return MeasurementSummary(
        task_id=row.task_id,
        series_id=row.series_id,
        result_key=row.result_key,
        kernel=None if spec is None else decode(KernelSpec, spec),
        artifact_sha256=row.artifact_sha256,
        source=row.source,
        runtime=row.runtime,
        runtime_version=row.runtime_version,
        runtime_sha256=row.runtime_sha256,
        mode=row.mode,
        verdict=row.verdict,
        reasons=tuple(VerdictReason(r) for r in row.reasons),
        statistics=decode(Statistics, row.statistics),
        output_sha256=row.output_sha256,
        memory_bytes=row.memory_bytes,
    )


def _choose(
    session: Session,
    keys: Mapping[str, RuntimeKey],
    pairs: Sequence[Pair],
    search_id: str,
    *,
    force: bool,
    made: Set[str] = frozenset(),
) -> dict[Pair, TaskRow | None]:
    """The task that answers each (subject, setup) pair for this search, where there is one: of those `made` for it
    now, too.
    """
    rows: dict[Pair, list[TaskRow]] = defaultdict(list)
    # What watches for drift must be measured for that alone: it is not shared in either direction.
    found = [row for row in existing_tasks(session, keys, pairs) if not row.repeat.startswith(DRIFT_CHECK)]
    for row in found:
        rows[row.subject, row.setup_id].append(row)
    mine = made | set(session.scalars(select(SearchTaskRow.task_id).where(SearchTaskRow.search_id == search_id)))
    outdated = set() if force else _outdated(session, keys, found)
    return {pair: _pick(rows[pair], mine, outdated, search_id, force=force) for pair in pairs}


def _outdated(session: Session, keys: Mapping[str, RuntimeKey], rows: Sequence[TaskRow]) -> set[str]:
    """The finished tasks whose measurement is of another series than one of today would be, as far as that is known
    before measuring: another agent or instruction set measured them.
    """
    completed = {row.result_key: row for row in rows if row.result_key is not None}
    outdated = set()
    for part in _batches(list(completed)):
        query = select(MeasurementRow.result_key, MeasurementRow.agent_version, MeasurementRow.isa)
        for result_key, agent_version, isa in session.execute(query.where(MeasurementRow.result_key.in_(part))):
            row = completed[result_key]
            key = keys[row.runtime]
            if (agent_version, isa) != (key.agent_version, key.isa):
                outdated.add(row.id)
    return outdated


def _pick(
    rows: Sequence[TaskRow], mine: Set[str], outdated: Set[str], search_id: str, *, force: bool
) -> TaskRow | None:
    """The best of the tasks with one key: what this search was given before, a usable result that is not `outdated`,
    one that waits, a failure that another attempt would only repeat, one that was cancelled. Of equals, the latest.
    """
    if force:
        return next((row for row in rows if row.repeat == search_id), None)
    tests = (
        lambda row: row.id in mine or row.repeat == search_id,
        lambda row: row.state is TaskState.SUCCEEDED and row.verdict is not Verdict.REJECTED and row.id not in outdated,
        lambda row: row.state in (TaskState.PENDING, TaskState.LEASED),
        lambda row: row.state is TaskState.FAILED and FailureReason(row.failure_reason).is_lasting,
        quarantine.is_deadly,
        lambda row: row.state is TaskState.CANCELLED,
    )
    for test in tests:
        fitting = [row for row in rows if test(row)]
        if fitting:
            return fitting[-1]
    return None


def _reopen(session: Session, task_ids: Sequence[str]) -> None:
    if task_ids:
        session.execute(
            update(TaskRow)
            .where(TaskRow.id.in_(task_ids), TaskRow.state == TaskState.CANCELLED)
            .values(state=TaskState.PENDING, attempt=TaskRow.attempt + 1, failures=0, deferrals=0, finished_at=None)
            .execution_options(synchronize_session=False)
        )


def _batches(task_ids: Sequence[str]) -> list[Sequence[str]]:
    distinct = list(dict.fromkeys(task_ids))
    return [distinct[i : i + _BATCH] for i in range(0, len(distinct), _BATCH)]
