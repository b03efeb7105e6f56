"""Kernels and networks that take their process or their device down each time, and are not tried again.

Nothing is stored for it: it follows from tasks that failed, and ends when these are pardoned. A subject is in
quarantine on a device where all attempts of a task of it crashed or ran past their deadline, whatever the setup; and on
every device with the same runtime once that is so of `MIN_DEVICES`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Select, select, tuple_, update
from sqlalchemy.orm import Session

from device_agent.contracts import FailureReason, MeasurementFailure
from server.columns import now_s
from server.errors import NotFound
from server.latency.repository import RuntimeKey
from server.models import DeviceRow, TaskRow
from server.states import TaskState

#: So many devices are enough to tell a bad kernel from a bad device.
MIN_DEVICES = 2

#: What ends a process or hangs a device, as opposed to a refusal.
DEADLY = (FailureReason.CRASHED, FailureReason.TIMED_OUT)

#: Identities in one IN list: below SQLite's limit of parameters.
_BATCH = 5000

#: Subject, runtime, its version and the hash of its binary: what is in quarantine.
GroupKey = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Casualty:
    """A task that was given up on a device."""

    device_id: str
    device_name: str
    failures: int
    reason: FailureReason
    detail: str
    finished_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """A subject that one runtime does not survive, and what it did, the earliest first."""

    key: GroupKey
    kernel_id: str | None
    artifact_sha256: str | None
    casualties: tuple[Casualty, ...]

    @property
    def device_ids(self) -> tuple[str, ...]:
        """The devices that it took down, each once."""
        return tuple(dict.fromkeys(c.device_id for c in self.casualties))

    @property
    def is_everywhere(self) -> bool:
        """Whether no device with this runtime is asked."""
        return len(self.device_ids) >= MIN_DEVICES

    def holds_on(self, device_id: str) -> bool:
        """Whether this device is not asked."""
        return self.is_everywhere or device_id in self.device_ids

    @property
    def told(self) -> str:
        """Why, and what to do, in a sentence."""
        counts: dict[str, int] = defaultdict(int)
        for casualty in self.casualties:
            counts[casualty.device_name] += casualty.failures
        where = " and ".join(f"{count} times on {name!r}" for name, count in counts.items())
        last = self.casualties[-1]
        return (
            f"it is in quarantine, as it {_DID[last.reason]} {where} ({last.detail}); "
            f"`kerf latency pardon {self.key[0]}` has it tried again"
        )


_DID = {FailureReason.CRASHED: "crashed", FailureReason.TIMED_OUT: "hung"}


def refused(session: Session, key: RuntimeKey, subjects: Iterable[str]) -> dict[str, MeasurementFailure]:
    """Those of the subjects that are not to be tried on the device of `key`, and why."""
    wanted, found = sorted(set(subjects)), {}
    for start in range(0, len(wanted), _BATCH):
        query = _casualties().where(
            TaskRow.subject.in_(wanted[start : start + _BATCH]),
            TaskRow.runtime == key.runtime,
            TaskRow.runtime_version == key.runtime_version,
            TaskRow.runtime_sha256 == key.runtime_sha256,
        )
        for item in _grouped(session, query):
            if item.holds_on(key.device_id):
                found[item.key[0]] = MeasurementFailure(reason=FailureReason.QUARANTINED, detail=item.told)
    return found


def list_quarantined(session: Session, *, after: GroupKey | None, limit: int) -> list[Quarantined]:
    """What is in quarantine, in the order of the keys."""
    columns = (TaskRow.subject, TaskRow.runtime, TaskRow.runtime_version, TaskRow.runtime_sha256)
    groups = select(*columns).where(*_DEADLY_TASK).distinct().order_by(*columns).limit(limit)
    if after is not None:
        groups = groups.where(tuple_(*columns) > tuple_(*after))
    keys = [(row[0], row[1], row[2], row[3]) for row in session.execute(groups)]
    found = {
        item.key: item for item in _grouped(session, _casualties().where(TaskRow.subject.in_([k[0] for k in keys])))
    }
    return [found[key] for key in keys]


def pardon(session: Session, subject: str) -> int:
    """Let a subject be tried again, on every device; returns how many tasks were pardoned.

    Raises `NotFound` where it is not in quarantine.
    """
    pardoned = session.execute(
        update(TaskRow)
        .where(*_DEADLY_TASK, TaskRow.subject == subject)
        .values(pardoned_at=now_s())
        .returning(TaskRow.id)
        .execution_options(synchronize_session=False)
    ).all()
    if not pardoned:
        raise NotFound(f"{subject!r} is not in quarantine: `kerf latency quarantine` lists what is")
    return len(pardoned)


def is_deadly(row: TaskRow) -> bool:
    """Whether this task was given up because its subject took its process or device down each time."""
    return row.state is TaskState.FAILED and row.failure_reason in {r.value for r in DEADLY} and row.pardoned_at is None


_DEADLY_TASK = (
    TaskRow.state == TaskState.FAILED,
    TaskRow.failure_reason.in_([reason.value for reason in DEADLY]),
    TaskRow.pardoned_at.is_(None),
)


def _casualties() -> Select[TaskRow, str]:
    return (
        select(TaskRow, DeviceRow.name)
        .join(DeviceRow, DeviceRow.id == TaskRow.device_id)
        .where(*_DEADLY_TASK)
        .order_by(TaskRow.finished_at, TaskRow.id)
    )


def _grouped(session: Session, query: Select[TaskRow, str]) -> Sequence[Quarantined]:
    rows: Mapping[GroupKey, list[tuple[TaskRow, str]]] = defaultdict(list)
    for row, name in session.execute(query):
        rows[row.subject, row.runtime, row.runtime_version, row.runtime_sha256].append((row, name))
    return [
        Quarantined(
            key=key,
            kernel_id=group[0][0].kernel_id,
            artifact_sha256=group[0][0].artifact_sha256,
            casualties=tuple(
                Casualty(
                    device_id=row.device_id,
                    device_name=name,
                    failures=row.failures,
                    reason=FailureReason(str(row.failure_reason)),
                    detail=row.failure_detail or "",
                    finished_at=row.finished_at or 0.0,
                )
                for row, name in group
            ),
        )
        for key, group in rows.items()
    ]
