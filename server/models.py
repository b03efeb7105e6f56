"""The tables. Times are seconds since 1970 by the database's clock; identities are text."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Boolean, Double, ForeignKey, Index, Integer, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from device_agent.contracts import ReportStatus, Source, Verdict
from server.columns import Base, BigInt, CompressedText, enum_column, now_s
from server.states import DriftOutcome, JobStage, JobState, TaskState

#: "task_" and 32 hex digits, or a SHA-256 with a prefix: all identities fit.
Id = String(80)


class DeviceRow(Base):
    """A device under an agent. Its token is in `token`; `agent_key_hash` recognises an agent that enrols again.

    None as `agent_key_hash`: the device has no agent, and its figures were imported. `enrolment_code_id` is the code
    that let the agent in last.
    """

    __tablename__ = "device"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    agent_key_hash: Mapped[str | None] = mapped_column(String(64), unique=True)
    enrolment_code_id: Mapped[str | None] = mapped_column(Id)
    profile_id: Mapped[str] = mapped_column(Id)
    profile: Mapped[dict[str, Any]] = mapped_column(JSON)
    runtimes: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    conditions: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    agent_version: Mapped[str] = mapped_column(String(64))
    enabled: Mapped[bool] = mapped_column(Boolean, default=True)
    spooled_reports: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[float] = mapped_column(Double, default=now_s())
    last_seen_at: Mapped[float] = mapped_column(Double, default=now_s())


class ProfileRow(Base):
    """A hardware description that a device ever had: measurements name it long after the device has another one."""

    __tablename__ = "device_profile"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    profile: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Double, default=now_s())


class TokenRow(Base):
    """A bearer token, as its HMAC. An agent's token has a device."""

    __tablename__ = "token"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str] = mapped_column(String(200))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    device_id: Mapped[str | None] = mapped_column(Id, ForeignKey("device.id"), index=True)
    created_at: Mapped[float] = mapped_column(Double, default=now_s())
    last_used_at: Mapped[float | None] = mapped_column(Double)
    expires_at: Mapped[float | None] = mapped_column(Double)
    revoked_at: Mapped[float | None] = mapped_column(Double)


class EnrolmentCodeRow(Base):
    """A code that lets `max_uses` agents enrol."""

    __tablename__ = "enrolment_code"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    code_hash: Mapped[str] = mapped_column(String(64), unique=True)
    max_uses: Mapped[int] = mapped_column(Integer)
    uses: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[float] = mapped_column(Double, default=now_s())
    expires_at: Mapped[float] = mapped_column(Double)


class KernelRow(Base):
    """A kernel that was ever asked for; the columns are copies from `spec`, to filter by."""

    __tablename__ = "kernel"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    op: Mapped[str] = mapped_column(String(32), index=True)
    in_channels: Mapped[int] = mapped_column(Integer)
    out_channels: Mapped[int] = mapped_column(Integer)
    input_h: Mapped[int] = mapped_column(Integer)
    input_w: Mapped[int] = mapped_column(Integer)
    kernel_h: Mapped[int] = mapped_column(Integer)
    kernel_w: Mapped[int] = mapped_column(Integer)
    stride: Mapped[int] = mapped_column(Integer)
    scheme: Mapped[str] = mapped_column(String(32))
    density: Mapped[float] = mapped_column(Double)
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Double, default=now_s())

    __table_args__ = (
        # What curves over channels and densities are looked up by. With all that can be filtered by, and the identity,
        # it answers filters that do not begin with an operator without reading the table.
        Index(
            "ix_kernel_shape",
            "op",
            "kernel_h",
            "stride",
            "input_h",
            "in_channels",
            "out_channels",
            "scheme",
            "density",
            "id",
        ),
    )


class SetupRow(Base):
    """A way of measuring that was ever asked for, or that imported figures came from."""

    __tablename__ = "measuring_setup"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    setup: Mapped[dict[str, Any]] = mapped_column(JSON)


class TaskRow(Base):
    """One thing to measure on one device, and the lease on it.

    `subject` is the kernel's identity, or that of a network's bytes and inputs. With device, profile, setup and the
    runtime's version and binary it is the key under which searches share a task; `repeat` is empty, or the search
    that asked to measure again. `attempt` fences: it grows whenever a lease ends without completing the task.
    """

    __tablename__ = "measurement_task"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    device_id: Mapped[str] = mapped_column(Id, ForeignKey("device.id"))
    profile_id: Mapped[str] = mapped_column(Id)
    subject: Mapped[str] = mapped_column(Id)
    kernel_id: Mapped[str | None] = mapped_column(Id, ForeignKey("kernel.id"), index=True)
    artifact_sha256: Mapped[str | None] = mapped_column(String(64))
    setup_id: Mapped[str] = mapped_column(Id, ForeignKey("measuring_setup.id"))
    runtime: Mapped[str] = mapped_column(String(64))
    runtime_version: Mapped[str] = mapped_column(String(64))
    runtime_sha256: Mapped[str] = mapped_column(String(64))
    repeat: Mapped[str] = mapped_column(Id, default="")
    task: Mapped[dict[str, Any]] = mapped_column(JSON)
    state: Mapped[TaskState] = mapped_column(enum_column(TaskState), default=TaskState.PENDING)
    priority: Mapped[int] = mapped_column(Integer, default=0)
    attempt: Mapped[int] = mapped_column(Integer, default=1)
    #: Attempts that failed for a reason that counts, and times the device was not ready or went away.
    failures: Mapped[int] = mapped_column(Integer, default=0)
    deferrals: Mapped[int] = mapped_column(Integer, default=0)
    not_before: Mapped[float] = mapped_column(Double, default=0.0)
    lease_id: Mapped[str | None] = mapped_column(Id)
    lease_expires_at: Mapped[float | None] = mapped_column(Double)
    #: How often the agent was given the present lease; a lease that is fetched again and again ends.
    deliveries: Mapped[int] = mapped_column(Integer, default=0)
    #: The report that completed the task, and what it said.
    result_key: Mapped[str | None] = mapped_column(Id)
    verdict: Mapped[Verdict | None] = mapped_column(enum_column(Verdict))
    failure_reason: Mapped[str | None] = mapped_column(String(32))
    failure_detail: Mapped[str | None] = mapped_column(Text)
    #: When a failure ceased to count against the subject: see `server.fleet.quarantine`.
    pardoned_at: Mapped[float | None] = mapped_column(Double)
    created_at: Mapped[float] = mapped_column(Double, default=now_s())
    finished_at: Mapped[float | None] = mapped_column(Double)

    __table_args__ = (
        UniqueConstraint(
            "device_id",
            "profile_id",
            "subject",
            "setup_id",
            "runtime_version",
            "runtime_sha256",
            "repeat",
            name="uq_measurement_task_key",
        ),
        Index(
            "ix_measurement_task_ready",
            "device_id",
            # In the order in which tasks are lent: a claim reads as many entries as it takes tasks.
            priority.desc(),
            "id",
            sqlite_where=text("state = 'pending'"),
            postgresql_where=text("state = 'pending'"),
        ),
        Index(
            "ix_measurement_task_leased",
            "device_id",
            "lease_expires_at",
            sqlite_where=text("state = 'leased'"),
            postgresql_where=text("state = 'leased'"),
        ),
        Index(
            "ix_measurement_task_failed",
            "subject",
            sqlite_where=text("state = 'failed'"),
            postgresql_where=text("state = 'failed'"),
        ),
    )


class ReportRow(Base):
    """A report of an agent, by the key that makes repeating it harmless."""

    __tablename__ = "report"
    result_key: Mapped[str] = mapped_column(Id, primary_key=True)
    task_id: Mapped[str] = mapped_column(Id, ForeignKey("measurement_task.id"))
    device_id: Mapped[str] = mapped_column(Id, ForeignKey("device.id"))
    lease_id: Mapped[str] = mapped_column(Id)
    attempt: Mapped[int] = mapped_column(Integer)
    status: Mapped[ReportStatus] = mapped_column(enum_column(ReportStatus))
    created_at: Mapped[float] = mapped_column(Double, default=now_s())

    __table_args__ = (
        Index(
            "uq_report_accepted",
            "task_id",
            "attempt",
            unique=True,
            sqlite_where=text("status = 'accepted'"),
            postgresql_where=text("status = 'accepted'"),
        ),
    )


class SeriesRow(Base):
    """Measurements that may be compared and modelled together: all that has one provenance on one device.

    The columns up to `source` are the key, and `id` is their hash (`server.latency.series`). `num_measurements` and
    `last_at` are kept in the transactions that add measurements.
    """

    __tablename__ = "latency_series"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    device_id: Mapped[str] = mapped_column(Id, ForeignKey("device.id"), index=True)
    profile_id: Mapped[str] = mapped_column(Id, ForeignKey("device_profile.id"))
    setup_id: Mapped[str] = mapped_column(Id, ForeignKey("measuring_setup.id"))
    runtime: Mapped[str] = mapped_column(String(64))
    runtime_version: Mapped[str] = mapped_column(String(64))
    runtime_sha256: Mapped[str] = mapped_column(String(64))
    isa: Mapped[str] = mapped_column(String(64))
    threads: Mapped[int] = mapped_column(Integer)
    affinity: Mapped[list[int]] = mapped_column(JSON)
    governor: Mapped[str | None] = mapped_column(String(64))
    agent_version: Mapped[str] = mapped_column(String(64))
    source: Mapped[Source] = mapped_column(enum_column(Source))
    num_measurements: Mapped[int] = mapped_column(Integer, default=0)
    first_at: Mapped[float] = mapped_column(Double, default=now_s())
    last_at: Mapped[float] = mapped_column(Double, default=now_s())


class ImportRow(Base):
    """A file of latencies that was imported; the file itself is the artifact `file_sha256`."""

    __tablename__ = "latency_import"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    device_id: Mapped[str] = mapped_column(Id, ForeignKey("device.id"), index=True)
    file_name: Mapped[str] = mapped_column(String(200))
    file_sha256: Mapped[str] = mapped_column(String(64))
    mapping: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    num_rows: Mapped[int] = mapped_column(Integer)
    created_by: Mapped[str] = mapped_column(Id)
    created_at: Mapped[float] = mapped_column(Double, default=now_s())


class MeasurementRow(Base):
    """A measurement's provenance, statistics and verdict. The samples are in `measurement_raw`.

    One that was imported has `import_id`, and `import_key`, which makes importing it again harmless; no task, no
    samples, and no statistics but the median where the file had no more.
    """

    __tablename__ = "measurement"
    result_key: Mapped[str] = mapped_column(Id, primary_key=True)
    task_id: Mapped[str | None] = mapped_column(Id, ForeignKey("measurement_task.id"), index=True)
    series_id: Mapped[str] = mapped_column(Id, ForeignKey("latency_series.id"), index=True)
    import_id: Mapped[str | None] = mapped_column(Id, ForeignKey("latency_import.id"))
    import_key: Mapped[str | None] = mapped_column(Id, unique=True)
    device_id: Mapped[str] = mapped_column(Id, ForeignKey("device.id"))
    profile_id: Mapped[str] = mapped_column(Id)
    kernel_id: Mapped[str | None] = mapped_column(Id, ForeignKey("kernel.id"))
    artifact_sha256: Mapped[str | None] = mapped_column(String(64))
    setup_id: Mapped[str] = mapped_column(Id)
    status: Mapped[ReportStatus] = mapped_column(enum_column(ReportStatus))
    source: Mapped[Source] = mapped_column(enum_column(Source))
    runtime: Mapped[str] = mapped_column(String(64))
    runtime_version: Mapped[str] = mapped_column(String(64))
    runtime_sha256: Mapped[str] = mapped_column(String(64))
    isa: Mapped[str] = mapped_column(String(64))
    threads: Mapped[int] = mapped_column(Integer)
    mode: Mapped[str] = mapped_column(String(16))
    governor: Mapped[str | None] = mapped_column(String(64))
    affinity: Mapped[list[int]] = mapped_column(JSON)
    agent_version: Mapped[str] = mapped_column(String(64))
    verdict: Mapped[Verdict] = mapped_column(enum_column(Verdict))
    reasons: Mapped[list[str]] = mapped_column(JSON)
    median_ns: Mapped[float] = mapped_column(Double)
    ci95_low_ns: Mapped[float | None] = mapped_column(Double)
    ci95_high_ns: Mapped[float | None] = mapped_column(Double)
    statistics: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    before: Mapped[dict[str, Any]] = mapped_column(JSON)
    after: Mapped[dict[str, Any]] = mapped_column(JSON)
    output_sha256: Mapped[str | None] = mapped_column(String(64))
    memory_bytes: Mapped[int | None] = mapped_column(BigInt)
    duration_s: Mapped[float] = mapped_column(Double)
    created_at: Mapped[float] = mapped_column(Double, default=now_s())

    __table_args__ = (
        # Result keys are in the order of time: the latest of a device, or of a kernel in a series, end its part.
        Index("ix_measurement_device_latest", "device_id", "result_key"),
        Index("ix_measurement_kernel_latest", "kernel_id", "series_id", "result_key"),
    )


class MeasurementRawRow(Base):
    """The whole measurement as it came, samples included; apart, so that queries stay light."""

    __tablename__ = "measurement_raw"
    result_key: Mapped[str] = mapped_column(Id, ForeignKey("report.result_key"), primary_key=True)
    measurement: Mapped[str] = mapped_column(CompressedText)


class MeasurementFailureRow(Base):
    """A failed attempt, late ones and the server's own (an expired lease) included."""

    __tablename__ = "measurement_failure"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    task_id: Mapped[str] = mapped_column(Id, ForeignKey("measurement_task.id"), index=True)
    attempt: Mapped[int] = mapped_column(Integer)
    status: Mapped[ReportStatus] = mapped_column(enum_column(ReportStatus))
    reason: Mapped[str] = mapped_column(String(32))
    detail: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Double, default=now_s())


class LatencyRow(Base):
    """The roll-up of usable kernel measurements that latency queries read, kept in the same transaction as the
    measurements themselves: one row for each series, kernel and mode. `median_ns` is of the latest one.
    """

    __tablename__ = "latency"
    series_id: Mapped[str] = mapped_column(Id, ForeignKey("latency_series.id"), primary_key=True)
    kernel_id: Mapped[str] = mapped_column(Id, ForeignKey("kernel.id"), primary_key=True, index=True)
    mode: Mapped[str] = mapped_column(String(16), primary_key=True)
    result_key: Mapped[str] = mapped_column(Id, ForeignKey("measurement.result_key"))
    verdict: Mapped[Verdict] = mapped_column(enum_column(Verdict))
    median_ns: Mapped[float] = mapped_column(Double)
    ci95_low_ns: Mapped[float | None] = mapped_column(Double)
    ci95_high_ns: Mapped[float | None] = mapped_column(Double)
    num_measurements: Mapped[int] = mapped_column(Integer)
    min_median_ns: Mapped[float] = mapped_column(Double)
    max_median_ns: Mapped[float] = mapped_column(Double)
    updated_at: Mapped[float] = mapped_column(Double, default=now_s())


class DriftCheckRow(Base):
    """Sentinel kernels of a series, measured again to see whether the device still is what it was.

    Its tasks have its identity as `repeat`. It is judged once, when all of them are over: `finished_at` and `outcome`
    are None until then. `alarm_since` is the time of the first of the drifted checks that led here without an agreeing
    one in between; None where there is no alarm.
    """

    __tablename__ = "latency_drift_check"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    series_id: Mapped[str] = mapped_column(Id, ForeignKey("latency_series.id"), index=True)
    device_id: Mapped[str] = mapped_column(Id, ForeignKey("device.id"), index=True)
    kernel_ids: Mapped[list[str]] = mapped_column(JSON)
    task_ids: Mapped[list[str]] = mapped_column(JSON)
    outcome: Mapped[DriftOutcome | None] = mapped_column(enum_column(DriftOutcome))
    findings: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    alarm_since: Mapped[float | None] = mapped_column(Double)
    created_at: Mapped[float] = mapped_column(Double, default=now_s())
    finished_at: Mapped[float | None] = mapped_column(Double)


class CardRow(Base):
    """What a worker last worked out about how far predictions from a series can be trusted.

    `num_measurements` is that of the series at the time: where it has more now, the card is old.
    """

    __tablename__ = "latency_card"
    series_id: Mapped[str] = mapped_column(Id, ForeignKey("latency_series.id"), primary_key=True)
    num_measurements: Mapped[int] = mapped_column(Integer)
    card: Mapped[str] = mapped_column(CompressedText)
    computed_at: Mapped[float] = mapped_column(Double, default=now_s())


class ProfitRow(Base):
    """What a worker last worked out about what pruning gains in a series: the counts; `ProfitPartRow` has the kernels.

    `num_measurements` is that of the series at the time: where it has more now, the map is old.
    """

    __tablename__ = "latency_profit"
    series_id: Mapped[str] = mapped_column(Id, ForeignKey("latency_series.id"), primary_key=True)
    num_measurements: Mapped[int] = mapped_column(Integer)
    summary: Mapped[str] = mapped_column(CompressedText)
    computed_at: Mapped[float] = mapped_column(Double, default=now_s())


class ProfitPartRow(Base):
    """Some shapes of one scheme of a profit map, numbered from 1. "" as `scheme` has kernels without a dense one."""

    __tablename__ = "latency_profit_part"
    series_id: Mapped[str] = mapped_column(Id, ForeignKey("latency_series.id"), primary_key=True)
    scheme: Mapped[str] = mapped_column(String(64), primary_key=True)
    part: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    kernels: Mapped[str] = mapped_column(CompressedText)


class LatencyModelRow(Base):
    """The latency model of a series, as a worker last fitted it, and what it is to start from.

    `model` is None until then, and where `without_model` says why there is none. `num_measurements` is that of the
    series at the time: where it has more now, the model is old. Of a request that no worker came to it is -1.
    `format_version` is that of the JSON.
    """

    __tablename__ = "latency_model"
    series_id: Mapped[str] = mapped_column(Id, ForeignKey("latency_series.id"), primary_key=True)
    from_series_id: Mapped[str | None] = mapped_column(Id, ForeignKey("latency_series.id"))
    num_measurements: Mapped[int] = mapped_column(Integer)
    num_kernels: Mapped[int] = mapped_column(Integer)
    format_version: Mapped[int] = mapped_column(Integer)
    model: Mapped[str | None] = mapped_column(CompressedText)
    without_model: Mapped[str] = mapped_column(Text)
    fitted_at: Mapped[float | None] = mapped_column(Double)


class SearchRow(Base):
    """A search job. `epoch` fences: every worker that takes the job over raises it, and writes only under its own.

    `takeovers` counts workers that ended with the job in their hands since anything of it was finished last.
    """

    __tablename__ = "search_job"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    device_id: Mapped[str] = mapped_column(Id, ForeignKey("device.id"))
    state: Mapped[JobState] = mapped_column(enum_column(JobState), default=JobState.PENDING)
    stage: Mapped[JobStage] = mapped_column(enum_column(JobStage), default=JobStage.PREPARING)
    progress: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    config: Mapped[dict[str, Any]] = mapped_column(JSON)
    error: Mapped[str | None] = mapped_column(Text)
    epoch: Mapped[int] = mapped_column(Integer, default=0)
    takeovers: Mapped[int] = mapped_column(Integer, default=0)
    worker: Mapped[str | None] = mapped_column(String(200))
    heartbeat_at: Mapped[float | None] = mapped_column(Double)
    not_before: Mapped[float] = mapped_column(Double, default=0.0)
    last_event_seq: Mapped[int] = mapped_column(Integer, default=0)
    created_by: Mapped[str] = mapped_column(Id)
    created_at: Mapped[float] = mapped_column(Double, default=now_s())
    started_at: Mapped[float | None] = mapped_column(Double)
    finished_at: Mapped[float | None] = mapped_column(Double)

    __table_args__ = (
        Index(
            "ix_search_job_open",
            "state",
            "id",
            sqlite_where=text("finished_at IS NULL"),
            postgresql_where=text("finished_at IS NULL"),
        ),
    )


class WorkerRow(Base):
    """A worker that runs, or that ended without a word. `search_id` is the search in its hands."""

    __tablename__ = "worker"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    host: Mapped[str] = mapped_column(String(200))
    version: Mapped[str] = mapped_column(String(64))
    search_id: Mapped[str | None] = mapped_column(Id)
    started_at: Mapped[float] = mapped_column(Double, default=now_s())
    heartbeat_at: Mapped[float] = mapped_column(Double, default=now_s())


class SearchTaskRow(Base):
    """Which search wants which task. A task that no open search wants is cancelled.

    `shared`: the task was there when the search first asked, measured or asked for by another search.
    """

    __tablename__ = "search_task"
    search_id: Mapped[str] = mapped_column(Id, ForeignKey("search_job.id"), primary_key=True)
    task_id: Mapped[str] = mapped_column(Id, ForeignKey("measurement_task.id"), primary_key=True, index=True)
    shared: Mapped[bool] = mapped_column(Boolean, default=False)


class CheckpointRow(Base):
    """The state of a stage after `step`; a worker goes on from the latest."""

    __tablename__ = "search_checkpoint"
    search_id: Mapped[str] = mapped_column(Id, ForeignKey("search_job.id"), primary_key=True)
    stage: Mapped[JobStage] = mapped_column(enum_column(JobStage), primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    data: Mapped[str] = mapped_column(CompressedText)
    created_at: Mapped[float] = mapped_column(Double, default=now_s())


class CheckpointPartRow(Base):
    """What the checkpoints of a stage have in common, in the order of `part`: a checkpoint tells how many it needs."""

    __tablename__ = "search_checkpoint_part"
    search_id: Mapped[str] = mapped_column(Id, ForeignKey("search_job.id"), primary_key=True)
    stage: Mapped[JobStage] = mapped_column(enum_column(JobStage), primary_key=True)
    part: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    data: Mapped[str] = mapped_column(CompressedText)


class DocumentRow(Base):
    """A text that belongs to a search, kept byte for byte: resolved config, latency table, result."""

    __tablename__ = "search_document"
    search_id: Mapped[str] = mapped_column(Id, ForeignKey("search_job.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64))
    text: Mapped[str] = mapped_column(CompressedText)
    created_at: Mapped[float] = mapped_column(Double, default=now_s())


class CandidateRow(Base):
    """A design that a search evaluated. `results` has one entry for each later stage."""

    __tablename__ = "candidate"
    search_id: Mapped[str] = mapped_column(Id, ForeignKey("search_job.id"), primary_key=True)
    candidate_id: Mapped[str] = mapped_column(Id, primary_key=True)
    genome: Mapped[list[int]] = mapped_column(JSON)
    metrics: Mapped[dict[str, float]] = mapped_column(JSON)
    violation: Mapped[float] = mapped_column(Double)
    generation: Mapped[int] = mapped_column(Integer)
    on_front: Mapped[bool] = mapped_column(Boolean, default=False)
    selected: Mapped[bool] = mapped_column(Boolean, default=False)
    results: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    created_at: Mapped[float] = mapped_column(Double, default=now_s())

    __table_args__ = (
        Index(
            "ix_candidate_front",
            "search_id",
            sqlite_where=text("on_front = 1"),
            postgresql_where=text("on_front"),
        ),
    )


class EstimateRow(Base):
    """The estimated accuracy of a design in the generation that is being evaluated: a finished one is not lost with its
    worker. `key` is derived from the design and the number of images; without a failure there are both figures.
    """

    __tablename__ = "search_estimate"
    search_id: Mapped[str] = mapped_column(Id, ForeignKey("search_job.id"), primary_key=True)
    key: Mapped[str] = mapped_column(Id, primary_key=True)
    accuracy: Mapped[float | None] = mapped_column(Double)
    loss: Mapped[float | None] = mapped_column(Double)
    failure: Mapped[str | None] = mapped_column(Text)


class EventRow(Base):
    """What happened in a search, numbered from 1 without gaps."""

    __tablename__ = "search_event"
    search_id: Mapped[str] = mapped_column(Id, ForeignKey("search_job.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(64))
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Double, default=now_s())


class IdempotencyRow(Base):
    """What a POST with an Idempotency-Key made, for a day."""

    __tablename__ = "idempotency_key"
    principal: Mapped[str] = mapped_column(Id, primary_key=True)
    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(String(64))
    resource_id: Mapped[str] = mapped_column(Id)
    created_at: Mapped[float] = mapped_column(Double, default=now_s(), index=True)


class ArtifactRow(Base):
    """A stored file; the bytes lie in the artifact store under their digest."""

    __tablename__ = "artifact"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInt)
    created_at: Mapped[float] = mapped_column(Double, default=now_s())


class ArtifactHolderRow(Base):
    """Who sent or made a stored file: a token, or a search. Several may, as equal files are stored once."""

    __tablename__ = "artifact_holder"
    sha256: Mapped[str] = mapped_column(String(64), ForeignKey("artifact.sha256"), primary_key=True)
    holder: Mapped[str] = mapped_column(Id, primary_key=True)
    created_at: Mapped[float] = mapped_column(Double, default=now_s())


class CheckpointedModelRow(Base):
    """A zoo architecture with uploaded weights."""

    __tablename__ = "model"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    architecture: Mapped[str] = mapped_column(String(64))
    artifact_sha256: Mapped[str] = mapped_column(String(64), ForeignKey("artifact.sha256"))
    created_at: Mapped[float] = mapped_column(Double, default=now_s())

    __table_args__ = (UniqueConstraint("name", "architecture", "artifact_sha256"),)


class NetworkRow(Base):
    """A network of a user's own, checked when it was registered."""

    __tablename__ = "network"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    #: What was sent: a `.kerf` file, or ONNX.
    source_sha256: Mapped[str] = mapped_column(String(64), ForeignKey("artifact.sha256"), index=True)
    #: The `.kerf` file that searches read; what was sent, if that was one.
    network_sha256: Mapped[str] = mapped_column(String(64), ForeignKey("artifact.sha256"), index=True)
    #: Hash of the name, what was sent, and the size of an image that was asked for.
    key: Mapped[str] = mapped_column(Id, unique=True)
    #: `NetworkContents` as JSON.
    contents: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Double, default=now_s())


class DatasetRow(Base):
    """A data set of images, checked when it was registered."""

    __tablename__ = "dataset"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    train_sha256: Mapped[str] = mapped_column(String(64), ForeignKey("artifact.sha256"))
    #: None where searches split the test set off the training set.
    test_sha256: Mapped[str | None] = mapped_column(String(64), ForeignKey("artifact.sha256"))
    #: Hash of the three above: databases see no two missing test sets as equal.
    key: Mapped[str] = mapped_column(Id, unique=True)
    class_names: Mapped[list[str]] = mapped_column(JSON)
    num_train: Mapped[int] = mapped_column(Integer)
    num_test: Mapped[int] = mapped_column(Integer)
    #: `DataContents` of "train" and "test", as JSON.
    contents: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Double, default=now_s())
