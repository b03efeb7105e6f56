"""The states of tasks and searches, and which may follow which. Nothing else decides that."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

S = TypeVar("S", bound=StrEnum)


class DriftOutcome(StrEnum):
    """What a drift check of a series found."""

    AGREES = "agrees"
    DRIFTED = "drifted"
    #: Too few sentinels were measured under the series' key. An alarm stays as it was.
    INCONCLUSIVE = "inconclusive"


class TaskState(StrEnum):
    """A measuring task.

    PENDING -> LEASED -> SUCCEEDED | FAILED
       ^         |
       +---------+  lease expired, given back, or a result that another attempt may better
    PENDING | LEASED -> CANCELLED -> PENDING  nobody wants it; wanted again
    """

    PENDING = "pending"
    LEASED = "leased"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self in (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED)


class JobState(StrEnum):
    """A search job.

    PENDING -> RUNNING -> COMPLETED | FAILED
    PENDING -> PAUSED;  RUNNING -> PAUSING -> PAUSED -> PENDING
    PENDING | PAUSED -> CANCELLED;  RUNNING | PAUSING -> CANCELLING -> CANCELLED
    RUNNING -> PENDING: the worker puts it back, to be picked up again
    """

    PENDING = "pending"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        return self in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)

    @property
    def has_worker(self) -> bool:
        """Whether a worker is, or should be, at it."""
        return self in (JobState.RUNNING, JobState.PAUSING, JobState.CANCELLING)


class JobStage(StrEnum):
    """What a search is doing, in order. Values are added, never removed."""

    PREPARING = "preparing"
    PROFILING = "profiling"
    SEARCHING = "searching"
    TRAINING = "training"
    EXPORTING = "exporting"
    VERIFYING = "verifying"
    DONE = "done"


JOB_TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.PENDING: frozenset({JobState.RUNNING, JobState.PAUSED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset(
        {JobState.PENDING, JobState.PAUSING, JobState.CANCELLING, JobState.COMPLETED, JobState.FAILED}
    ),
    JobState.PAUSING: frozenset({JobState.PAUSED, JobState.CANCELLING, JobState.COMPLETED, JobState.FAILED}),
    JobState.PAUSED: frozenset({JobState.PENDING, JobState.CANCELLED}),
    JobState.CANCELLING: frozenset({JobState.CANCELLED}),
    JobState.CANCELLED: frozenset(),
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset(),
}

TASK_TRANSITIONS: Mapping[TaskState, frozenset[TaskState]] = {
    TaskState.PENDING: frozenset({TaskState.LEASED, TaskState.CANCELLED, TaskState.FAILED}),
    TaskState.LEASED: frozenset({TaskState.PENDING, TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED}),
    TaskState.SUCCEEDED: frozenset(),
    TaskState.FAILED: frozenset(),
    TaskState.CANCELLED: frozenset({TaskState.PENDING}),
}


def sources(transitions: Mapping[S, frozenset[S]], target: S) -> tuple[S, ...]:
    """The states from which `target` may be entered, for the WHERE of an UPDATE."""
    return tuple(state for state, nexts in transitions.items() if target in nexts)
