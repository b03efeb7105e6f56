"""The first schema.

Revision: 0001_initial. Never edited once released.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001_initial"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "artifact",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_artifact")),
    )
    op.create_table(
        "artifact_holder",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=80), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["sha256"], ["artifact.sha256"], name=op.f("fk_artifact_holder_sha256_artifact")),
        sa.PrimaryKeyConstraint("sha256", "holder", name=op.f("pk_artifact_holder")),
    )
    op.create_table(
        "device",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("agent_key_hash", sa.String(length=64), nullable=True),
        sa.Column("enrolment_code_id", sa.String(length=80), nullable=True),
        sa.Column("profile_id", sa.String(length=80), nullable=False),
        sa.Column("profile", sa.JSON(), nullable=False),
        sa.Column("runtimes", sa.JSON(), nullable=False),
        sa.Column("conditions", sa.JSON(), nullable=True),
        sa.Column("agent_version", sa.String(length=64), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("spooled_reports", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("last_seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device")),
        sa.UniqueConstraint("agent_key_hash", name=op.f("uq_device_agent_key_hash")),
        sa.UniqueConstraint("name", name=op.f("uq_device_name")),
    )
    op.create_table(
        "device_profile",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("profile", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device_profile")),
    )
    op.create_table(
        "enrolment_code",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("code_hash", sa.String(length=64), nullable=False),
        sa.Column("max_uses", sa.Integer(), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_enrolment_code")),
        sa.UniqueConstraint("code_hash", name=op.f("uq_enrolment_code_code_hash")),
    )
    op.create_table(
        "worker",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("host", sa.String(length=200), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("search_id", sa.String(length=80), nullable=True),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("heartbeat_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_worker")),
    )
    op.create_table(
        "idempotency_key",
        sa.Column("principal", sa.String(length=80), nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("request_sha256", sa.String(length=64), nullable=False),
        sa.Column("resource_id", sa.String(length=80), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("principal", "key", name=op.f("pk_idempotency_key")),
    )
    with op.batch_alter_table("idempotency_key", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_idempotency_key_created_at"), ["created_at"], unique=False)

    op.create_table(
        "kernel",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("op", sa.String(length=32), nullable=False),
        sa.Column("in_channels", sa.Integer(), nullable=False),
        sa.Column("out_channels", sa.Integer(), nullable=False),
        sa.Column("input_h", sa.Integer(), nullable=False),
        sa.Column("input_w", sa.Integer(), nullable=False),
        sa.Column("kernel_h", sa.Integer(), nullable=False),
        sa.Column("kernel_w", sa.Integer(), nullable=False),
        sa.Column("stride", sa.Integer(), nullable=False),
        sa.Column("scheme", sa.String(length=32), nullable=False),
        sa.Column("density", sa.Double(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_kernel")),
    )
    with op.batch_alter_table("kernel", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_kernel_op"), ["op"], unique=False)
        batch_op.create_index(
            "ix_kernel_shape",
            [
                "op",
                "kernel_h",
                "stride",
                "input_h",
                "in_channels",
                "out_channels",
                "scheme",
                "density",
                "id",
            ],
            unique=False,
        )

    op.create_table(
        "measuring_setup",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("setup", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_measuring_setup")),
    )
    op.create_table(
        "network",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("source_sha256", sa.String(length=64), nullable=False),
        sa.Column("network_sha256", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=80), nullable=False),
        sa.Column("contents", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["network_sha256"], ["artifact.sha256"], name=op.f("fk_network_network_sha256_artifact")
        ),
        sa.ForeignKeyConstraint(["source_sha256"], ["artifact.sha256"], name=op.f("fk_network_source_sha256_artifact")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_network")),
        sa.UniqueConstraint("key", name=op.f("uq_network_key")),
    )
    op.create_index(op.f("ix_network_network_sha256"), "network", ["network_sha256"], unique=False)
    op.create_index(op.f("ix_network_source_sha256"), "network", ["source_sha256"], unique=False)
    op.create_table(
        "dataset",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("train_sha256", sa.String(length=64), nullable=False),
        sa.Column("test_sha256", sa.String(length=64), nullable=True),
        sa.Column("key", sa.String(length=80), nullable=False),
        sa.Column("class_names", sa.JSON(), nullable=False),
        sa.Column("num_train", sa.Integer(), nullable=False),
        sa.Column("num_test", sa.Integer(), nullable=False),
        sa.Column("contents", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["test_sha256"], ["artifact.sha256"], name=op.f("fk_dataset_test_sha256_artifact")),
        sa.ForeignKeyConstraint(["train_sha256"], ["artifact.sha256"], name=op.f("fk_dataset_train_sha256_artifact")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dataset")),
        sa.UniqueConstraint("key", name=op.f("uq_dataset_key")),
    )
    op.create_table(
        "measurement_task",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("device_id", sa.String(length=80), nullable=False),
        sa.Column("profile_id", sa.String(length=80), nullable=False),
        sa.Column("subject", sa.String(length=80), nullable=False),
        sa.Column("kernel_id", sa.String(length=80), nullable=True),
        sa.Column("artifact_sha256", sa.String(length=64), nullable=True),
        sa.Column("setup_id", sa.String(length=80), nullable=False),
        sa.Column("runtime", sa.String(length=64), nullable=False),
        sa.Column("runtime_version", sa.String(length=64), nullable=False),
        sa.Column("runtime_sha256", sa.String(length=64), nullable=False),
        sa.Column("repeat", sa.String(length=80), nullable=False),
        sa.Column("task", sa.JSON(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "pending", "leased", "succeeded", "failed", "cancelled", name="taskstate", native_enum=False, length=32
            ),
            nullable=False,
        ),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("deferrals", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.Double(), nullable=False),
        sa.Column("lease_id", sa.String(length=80), nullable=True),
        sa.Column("lease_expires_at", sa.Double(), nullable=True),
        sa.Column("deliveries", sa.Integer(), nullable=False),
        sa.Column("result_key", sa.String(length=80), nullable=True),
        sa.Column(
            "verdict",
            sa.Enum("trusted", "noisy", "rejected", name="verdict", native_enum=False, length=32),
            nullable=True,
        ),
        sa.Column("failure_reason", sa.String(length=32), nullable=True),
        sa.Column("failure_detail", sa.Text(), nullable=True),
        sa.Column("pardoned_at", sa.Double(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_measurement_task_device_id_device")),
        sa.ForeignKeyConstraint(["kernel_id"], ["kernel.id"], name=op.f("fk_measurement_task_kernel_id_kernel")),
        sa.ForeignKeyConstraint(
            ["setup_id"], ["measuring_setup.id"], name=op.f("fk_measurement_task_setup_id_measuring_setup")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_measurement_task")),
        sa.UniqueConstraint(
            "device_id",
            "profile_id",
            "subject",
            "setup_id",
            "runtime_version",
            "runtime_sha256",
            "repeat",
            name="uq_measurement_task_key",
        ),
    )
    with op.batch_alter_table("measurement_task", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_measurement_task_kernel_id"), ["kernel_id"], unique=False)
        batch_op.create_index(
            "ix_measurement_task_failed",
            ["subject"],
            unique=False,
            sqlite_where=sa.text("state = 'failed'"),
            postgresql_where=sa.text("state = 'failed'"),
        )
        batch_op.create_index(
            "ix_measurement_task_leased",
            ["device_id", "lease_expires_at"],
            unique=False,
            sqlite_where=sa.text("state = 'leased'"),
            postgresql_where=sa.text("state = 'leased'"),
        )
        batch_op.create_index(
            "ix_measurement_task_ready",
            ["device_id", sa.text("priority DESC"), "id"],
            unique=False,
            sqlite_where=sa.text("state = 'pending'"),
            postgresql_where=sa.text("state = 'pending'"),
        )

    op.create_table(
        "model",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("architecture", sa.String(length=64), nullable=False),
        sa.Column("artifact_sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["artifact_sha256"], ["artifact.sha256"], name=op.f("fk_model_artifact_sha256_artifact")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model")),
        sa.UniqueConstraint(
            "name", "architecture", "artifact_sha256", name=op.f("uq_model_name_architecture_artifact_sha256")
        ),
    )
    op.create_table(
        "search_job",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("device_id", sa.String(length=80), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "pending",
                "running",
                "pausing",
                "paused",
                "cancelling",
                "cancelled",
                "completed",
                "failed",
                name="jobstate",
                native_enum=False,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column(
            "stage",
            sa.Enum(
                "preparing",
                "profiling",
                "searching",
                "training",
                "exporting",
                "verifying",
                "done",
                name="jobstage",
                native_enum=False,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("progress", sa.JSON(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("takeovers", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=200), nullable=True),
        sa.Column("heartbeat_at", sa.Double(), nullable=True),
        sa.Column("not_before", sa.Double(), nullable=False),
        sa.Column("last_event_seq", sa.Integer(), nullable=False),
        sa.Column("created_by", sa.String(length=80), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_search_job_device_id_device")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_search_job")),
    )
    with op.batch_alter_table("search_job", schema=None) as batch_op:
        batch_op.create_index(
            "ix_search_job_open",
            ["state", "id"],
            unique=False,
            sqlite_where=sa.text("finished_at IS NULL"),
            postgresql_where=sa.text("finished_at IS NULL"),
        )

    op.create_table(
        "token",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("device_id", sa.String(length=80), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("last_used_at", sa.Double(), nullable=True),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_token_device_id_device")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_token")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_token_token_hash")),
    )
    with op.batch_alter_table("token", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_token_device_id"), ["device_id"], unique=False)

    op.create_table(
        "candidate",
        sa.Column("search_id", sa.String(length=80), nullable=False),
        sa.Column("candidate_id", sa.String(length=80), nullable=False),
        sa.Column("genome", sa.JSON(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("violation", sa.Double(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("on_front", sa.Boolean(), nullable=False),
        sa.Column("selected", sa.Boolean(), nullable=False),
        sa.Column("results", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["search_id"], ["search_job.id"], name=op.f("fk_candidate_search_id_search_job")),
        sa.PrimaryKeyConstraint("search_id", "candidate_id", name=op.f("pk_candidate")),
    )
    with op.batch_alter_table("candidate", schema=None) as batch_op:
        batch_op.create_index(
            "ix_candidate_front",
            ["search_id"],
            unique=False,
            sqlite_where=sa.text("on_front = 1"),
            postgresql_where=sa.text("on_front"),
        )

    op.create_table(
        "measurement_failure",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("task_id", sa.String(length=80), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column(
            "status",
            sa.Enum("accepted", "duplicate", "late", name="reportstatus", native_enum=False, length=32),
            nullable=False,
        ),
        sa.Column("reason", sa.String(length=32), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["task_id"], ["measurement_task.id"], name=op.f("fk_measurement_failure_task_id_measurement_task")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_measurement_failure")),
    )
    with op.batch_alter_table("measurement_failure", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_measurement_failure_task_id"), ["task_id"], unique=False)

    op.create_table(
        "report",
        sa.Column("result_key", sa.String(length=80), nullable=False),
        sa.Column("task_id", sa.String(length=80), nullable=False),
        sa.Column("device_id", sa.String(length=80), nullable=False),
        sa.Column("lease_id", sa.String(length=80), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column(
            "status",
            sa.Enum("accepted", "duplicate", "late", name="reportstatus", native_enum=False, length=32),
            nullable=False,
        ),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_report_device_id_device")),
        sa.ForeignKeyConstraint(["task_id"], ["measurement_task.id"], name=op.f("fk_report_task_id_measurement_task")),
        sa.PrimaryKeyConstraint("result_key", name=op.f("pk_report")),
    )
    with op.batch_alter_table("report", schema=None) as batch_op:
        batch_op.create_index(
            "uq_report_accepted",
            ["task_id", "attempt"],
            unique=True,
            sqlite_where=sa.text("status = 'accepted'"),
            postgresql_where=sa.text("status = 'accepted'"),
        )

    op.create_table(
        "search_checkpoint",
        sa.Column("search_id", sa.String(length=80), nullable=False),
        sa.Column(
            "stage",
            sa.Enum(
                "preparing",
                "profiling",
                "searching",
                "training",
                "exporting",
                "verifying",
                "done",
                name="jobstage",
                native_enum=False,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("step", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["search_id"], ["search_job.id"], name=op.f("fk_search_checkpoint_search_id_search_job")
        ),
        sa.PrimaryKeyConstraint("search_id", "stage", "step", name=op.f("pk_search_checkpoint")),
    )
    op.create_table(
        "search_checkpoint_part",
        sa.Column("search_id", sa.String(length=80), nullable=False),
        sa.Column(
            "stage",
            sa.Enum(
                "preparing",
                "profiling",
                "searching",
                "training",
                "exporting",
                "verifying",
                "done",
                name="jobstage",
                native_enum=False,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("part", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["search_id"], ["search_job.id"], name=op.f("fk_search_checkpoint_part_search_id_search_job")
        ),
        sa.PrimaryKeyConstraint("search_id", "stage", "part", name=op.f("pk_search_checkpoint_part")),
    )
    op.create_table(
        "search_document",
        sa.Column("search_id", sa.String(length=80), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("text", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["search_id"], ["search_job.id"], name=op.f("fk_search_document_search_id_search_job")),
        sa.PrimaryKeyConstraint("search_id", "name", name=op.f("pk_search_document")),
    )
    op.create_table(
        "search_estimate",
        sa.Column("search_id", sa.String(length=80), nullable=False),
        sa.Column("key", sa.String(length=80), nullable=False),
        sa.Column("accuracy", sa.Double(), nullable=True),
        sa.Column("loss", sa.Double(), nullable=True),
        sa.Column("failure", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["search_id"], ["search_job.id"], name=op.f("fk_search_estimate_search_id_search_job")),
        sa.PrimaryKeyConstraint("search_id", "key", name=op.f("pk_search_estimate")),
    )
    op.create_table(
        "search_event",
        sa.Column("search_id", sa.String(length=80), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["search_id"], ["search_job.id"], name=op.f("fk_search_event_search_id_search_job")),
        sa.PrimaryKeyConstraint("search_id", "seq", name=op.f("pk_search_event")),
    )
    op.create_table(
        "search_task",
        sa.Column("search_id", sa.String(length=80), nullable=False),
        sa.Column("task_id", sa.String(length=80), nullable=False),
        sa.Column("shared", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["search_id"], ["search_job.id"], name=op.f("fk_search_task_search_id_search_job")),
        sa.ForeignKeyConstraint(
            ["task_id"], ["measurement_task.id"], name=op.f("fk_search_task_task_id_measurement_task")
        ),
        sa.PrimaryKeyConstraint("search_id", "task_id", name=op.f("pk_search_task")),
    )
    with op.batch_alter_table("search_task", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_search_task_task_id"), ["task_id"], unique=False)

    op.create_table(
        "latency_series",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("device_id", sa.String(length=80), nullable=False),
        sa.Column("profile_id", sa.String(length=80), nullable=False),
        sa.Column("setup_id", sa.String(length=80), nullable=False),
        sa.Column("runtime", sa.String(length=64), nullable=False),
        sa.Column("runtime_version", sa.String(length=64), nullable=False),
        sa.Column("runtime_sha256", sa.String(length=64), nullable=False),
        sa.Column("isa", sa.String(length=64), nullable=False),
        sa.Column("threads", sa.Integer(), nullable=False),
        sa.Column("affinity", sa.JSON(), nullable=False),
        sa.Column("governor", sa.String(length=64), nullable=True),
        sa.Column("agent_version", sa.String(length=64), nullable=False),
        sa.Column(
            "source",
            sa.Enum("measured", "emulated", "simulated", "imported", name="source", native_enum=False, length=32),
            nullable=False,
        ),
        sa.Column("num_measurements", sa.Integer(), nullable=False),
        sa.Column("first_at", sa.Double(), nullable=False),
        sa.Column("last_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_latency_series_device_id_device")),
        sa.ForeignKeyConstraint(
            ["profile_id"], ["device_profile.id"], name=op.f("fk_latency_series_profile_id_device_profile")
        ),
        sa.ForeignKeyConstraint(
            ["setup_id"], ["measuring_setup.id"], name=op.f("fk_latency_series_setup_id_measuring_setup")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_latency_series")),
    )
    with op.batch_alter_table("latency_series", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_latency_series_device_id"), ["device_id"], unique=False)

    op.create_table(
        "latency_import",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("device_id", sa.String(length=80), nullable=False),
        sa.Column("file_name", sa.String(length=200), nullable=False),
        sa.Column("file_sha256", sa.String(length=64), nullable=False),
        sa.Column("mapping", sa.JSON(), nullable=True),
        sa.Column("num_rows", sa.Integer(), nullable=False),
        sa.Column("created_by", sa.String(length=80), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_latency_import_device_id_device")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_latency_import")),
    )
    with op.batch_alter_table("latency_import", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_latency_import_device_id"), ["device_id"], unique=False)

    op.create_table(
        "measurement",
        sa.Column("result_key", sa.String(length=80), nullable=False),
        sa.Column("task_id", sa.String(length=80), nullable=True),
        sa.Column("series_id", sa.String(length=80), nullable=False),
        sa.Column("import_id", sa.String(length=80), nullable=True),
        sa.Column("import_key", sa.String(length=80), nullable=True),
        sa.Column("device_id", sa.String(length=80), nullable=False),
        sa.Column("profile_id", sa.String(length=80), nullable=False),
        sa.Column("kernel_id", sa.String(length=80), nullable=True),
        sa.Column("artifact_sha256", sa.String(length=64), nullable=True),
        sa.Column("setup_id", sa.String(length=80), nullable=False),
        sa.Column(
            "status",
            sa.Enum("accepted", "duplicate", "late", name="reportstatus", native_enum=False, length=32),
            nullable=False,
        ),
        sa.Column(
            "source",
            sa.Enum("measured", "emulated", "simulated", "imported", name="source", native_enum=False, length=32),
            nullable=False,
        ),
        sa.Column("runtime", sa.String(length=64), nullable=False),
        sa.Column("runtime_version", sa.String(length=64), nullable=False),
        sa.Column("runtime_sha256", sa.String(length=64), nullable=False),
        sa.Column("isa", sa.String(length=64), nullable=False),
        sa.Column("threads", sa.Integer(), nullable=False),
        sa.Column("mode", sa.String(length=16), nullable=False),
        sa.Column("governor", sa.String(length=64), nullable=True),
        sa.Column("affinity", sa.JSON(), nullable=False),
        sa.Column("agent_version", sa.String(length=64), nullable=False),
        sa.Column(
            "verdict",
            sa.Enum("trusted", "noisy", "rejected", name="verdict", native_enum=False, length=32),
            nullable=False,
        ),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("median_ns", sa.Double(), nullable=False),
        sa.Column("ci95_low_ns", sa.Double(), nullable=True),
        sa.Column("ci95_high_ns", sa.Double(), nullable=True),
        sa.Column("statistics", sa.JSON(), nullable=True),
        sa.Column("before", sa.JSON(), nullable=False),
        sa.Column("after", sa.JSON(), nullable=False),
        sa.Column("output_sha256", sa.String(length=64), nullable=True),
        sa.Column("memory_bytes", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("duration_s", sa.Double(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_measurement_device_id_device")),
        sa.ForeignKeyConstraint(["kernel_id"], ["kernel.id"], name=op.f("fk_measurement_kernel_id_kernel")),
        sa.ForeignKeyConstraint(
            ["import_id"], ["latency_import.id"], name=op.f("fk_measurement_import_id_latency_import")
        ),
        sa.ForeignKeyConstraint(
            ["series_id"], ["latency_series.id"], name=op.f("fk_measurement_series_id_latency_series")
        ),
        sa.ForeignKeyConstraint(
            ["task_id"], ["measurement_task.id"], name=op.f("fk_measurement_task_id_measurement_task")
        ),
        sa.PrimaryKeyConstraint("result_key", name=op.f("pk_measurement")),
        sa.UniqueConstraint("import_key", name=op.f("uq_measurement_import_key")),
    )
    with op.batch_alter_table("measurement", schema=None) as batch_op:
        batch_op.create_index("ix_measurement_device_latest", ["device_id", "result_key"], unique=False)
        batch_op.create_index("ix_measurement_kernel_latest", ["kernel_id", "series_id", "result_key"], unique=False)
        batch_op.create_index(batch_op.f("ix_measurement_series_id"), ["series_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_measurement_task_id"), ["task_id"], unique=False)

    op.create_table(
        "measurement_raw",
        sa.Column("result_key", sa.String(length=80), nullable=False),
        sa.Column("measurement", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["result_key"], ["report.result_key"], name=op.f("fk_measurement_raw_result_key_report")
        ),
        sa.PrimaryKeyConstraint("result_key", name=op.f("pk_measurement_raw")),
    )
    op.create_table(
        "latency",
        sa.Column("series_id", sa.String(length=80), nullable=False),
        sa.Column("kernel_id", sa.String(length=80), nullable=False),
        sa.Column("mode", sa.String(length=16), nullable=False),
        sa.Column("result_key", sa.String(length=80), nullable=False),
        sa.Column(
            "verdict",
            sa.Enum("trusted", "noisy", "rejected", name="verdict", native_enum=False, length=32),
            nullable=False,
        ),
        sa.Column("median_ns", sa.Double(), nullable=False),
        sa.Column("ci95_low_ns", sa.Double(), nullable=True),
        sa.Column("ci95_high_ns", sa.Double(), nullable=True),
        sa.Column("num_measurements", sa.Integer(), nullable=False),
        sa.Column("min_median_ns", sa.Double(), nullable=False),
        sa.Column("max_median_ns", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["kernel_id"], ["kernel.id"], name=op.f("fk_latency_kernel_id_kernel")),
        sa.ForeignKeyConstraint(
            ["result_key"], ["measurement.result_key"], name=op.f("fk_latency_result_key_measurement")
        ),
        sa.ForeignKeyConstraint(["series_id"], ["latency_series.id"], name=op.f("fk_latency_series_id_latency_series")),
        sa.PrimaryKeyConstraint("series_id", "kernel_id", "mode", name=op.f("pk_latency")),
    )
    with op.batch_alter_table("latency", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_latency_kernel_id"), ["kernel_id"], unique=False)

    op.create_table(
        "latency_drift_check",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("series_id", sa.String(length=80), nullable=False),
        sa.Column("device_id", sa.String(length=80), nullable=False),
        sa.Column("kernel_ids", sa.JSON(), nullable=False),
        sa.Column("task_ids", sa.JSON(), nullable=False),
        sa.Column(
            "outcome",
            sa.Enum("agrees", "drifted", "inconclusive", name="driftoutcome", native_enum=False, length=32),
            nullable=True,
        ),
        sa.Column("findings", sa.JSON(), nullable=True),
        sa.Column("alarm_since", sa.Double(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_latency_drift_check_device_id_device")),
        sa.ForeignKeyConstraint(
            ["series_id"], ["latency_series.id"], name=op.f("fk_latency_drift_check_series_id_latency_series")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_latency_drift_check")),
    )
    with op.batch_alter_table("latency_drift_check", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_latency_drift_check_device_id"), ["device_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_latency_drift_check_series_id"), ["series_id"], unique=False)

    op.create_table(
        "latency_card",
        sa.Column("series_id", sa.String(length=80), nullable=False),
        sa.Column("num_measurements", sa.Integer(), nullable=False),
        sa.Column("card", sa.LargeBinary(), nullable=False),
        sa.Column("computed_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["series_id"], ["latency_series.id"], name=op.f("fk_latency_card_series_id_latency_series")
        ),
        sa.PrimaryKeyConstraint("series_id", name=op.f("pk_latency_card")),
    )
    op.create_table(
        "latency_profit",
        sa.Column("series_id", sa.String(length=80), nullable=False),
        sa.Column("num_measurements", sa.Integer(), nullable=False),
        sa.Column("summary", sa.LargeBinary(), nullable=False),
        sa.Column("computed_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["series_id"], ["latency_series.id"], name=op.f("fk_latency_profit_series_id_latency_series")
        ),
        sa.PrimaryKeyConstraint("series_id", name=op.f("pk_latency_profit")),
    )
    op.create_table(
        "latency_profit_part",
        sa.Column("series_id", sa.String(length=80), nullable=False),
        sa.Column("scheme", sa.String(length=64), nullable=False),
        sa.Column("part", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kernels", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["series_id"], ["latency_series.id"], name=op.f("fk_latency_profit_part_series_id_latency_series")
        ),
        sa.PrimaryKeyConstraint("series_id", "scheme", "part", name=op.f("pk_latency_profit_part")),
    )
    op.create_table(
        "latency_model",
        sa.Column("series_id", sa.String(length=80), nullable=False),
        sa.Column("from_series_id", sa.String(length=80), nullable=True),
        sa.Column("num_measurements", sa.Integer(), nullable=False),
        sa.Column("num_kernels", sa.Integer(), nullable=False),
        sa.Column("format_version", sa.Integer(), nullable=False),
        sa.Column("model", sa.LargeBinary(), nullable=True),
        sa.Column("without_model", sa.Text(), nullable=False),
        sa.Column("fitted_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["from_series_id"], ["latency_series.id"], name=op.f("fk_latency_model_from_series_id_latency_series")
        ),
        sa.ForeignKeyConstraint(
            ["series_id"], ["latency_series.id"], name=op.f("fk_latency_model_series_id_latency_series")
        ),
        sa.PrimaryKeyConstraint("series_id", name=op.f("pk_latency_model")),
    )


def downgrade() -> None:
    op.drop_table("latency_model")
    op.drop_table("latency_profit_part")
    op.drop_table("latency_profit")
    op.drop_table("latency_card")
    with op.batch_alter_table("latency_drift_check", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_latency_drift_check_series_id"))
        batch_op.drop_index(batch_op.f("ix_latency_drift_check_device_id"))

    op.drop_table("latency_drift_check")
    with op.batch_alter_table("latency", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_latency_kernel_id"))

    op.drop_table("latency")
    op.drop_table("measurement_raw")
    with op.batch_alter_table("measurement", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_measurement_task_id"))
        batch_op.drop_index(batch_op.f("ix_measurement_series_id"))
        batch_op.drop_index("ix_measurement_kernel_latest")
        batch_op.drop_index("ix_measurement_device_latest")

    op.drop_table("measurement")
    with op.batch_alter_table("latency_import", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_latency_import_device_id"))

    op.drop_table("latency_import")
    with op.batch_alter_table("latency_series", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_latency_series_device_id"))

    op.drop_table("latency_series")
    with op.batch_alter_table("search_task", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_search_task_task_id"))

    op.drop_table("search_task")
    op.drop_table("search_event")
    op.drop_table("search_estimate")
    op.drop_table("search_document")
    op.drop_table("search_checkpoint_part")
    op.drop_table("search_checkpoint")
    with op.batch_alter_table("report", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_report_accepted",
            sqlite_where=sa.text("status = 'accepted'"),
            postgresql_where=sa.text("status = 'accepted'"),
        )

    op.drop_table("report")
    with op.batch_alter_table("measurement_failure", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_measurement_failure_task_id"))

    op.drop_table("measurement_failure")
    with op.batch_alter_table("candidate", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_candidate_front", sqlite_where=sa.text("on_front = 1"), postgresql_where=sa.text("on_front")
        )

    op.drop_table("candidate")
    with op.batch_alter_table("token", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_token_device_id"))

    op.drop_table("token")
    with op.batch_alter_table("search_job", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_search_job_open",
            sqlite_where=sa.text("finished_at IS NULL"),
            postgresql_where=sa.text("finished_at IS NULL"),
        )

    op.drop_table("search_job")
    op.drop_table("model")
    with op.batch_alter_table("measurement_task", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_measurement_task_ready",
            sqlite_where=sa.text("state = 'pending'"),
            postgresql_where=sa.text("state = 'pending'"),
        )
        batch_op.drop_index(
            "ix_measurement_task_leased",
            sqlite_where=sa.text("state = 'leased'"),
            postgresql_where=sa.text("state = 'leased'"),
        )
        batch_op.drop_index(
            "ix_measurement_task_failed",
            sqlite_where=sa.text("state = 'failed'"),
            postgresql_where=sa.text("state = 'failed'"),
        )
        batch_op.drop_index(batch_op.f("ix_measurement_task_kernel_id"))

    op.drop_table("measurement_task")
    op.drop_table("dataset")
    op.drop_index(op.f("ix_network_source_sha256"), table_name="network")
    op.drop_index(op.f("ix_network_network_sha256"), table_name="network")
    op.drop_table("network")
    op.drop_table("measuring_setup")
    with op.batch_alter_table("kernel", schema=None) as batch_op:
        batch_op.drop_index("ix_kernel_shape")
        batch_op.drop_index(batch_op.f("ix_kernel_op"))

    op.drop_table("kernel")
    with op.batch_alter_table("idempotency_key", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_idempotency_key_created_at"))

    op.drop_table("idempotency_key")
    op.drop_table("worker")
    op.drop_table("enrolment_code")
    op.drop_table("device_profile")
    op.drop_table("device")
    op.drop_table("artifact_holder")
    op.drop_table("artifact")
