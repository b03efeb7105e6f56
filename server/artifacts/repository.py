"""Which artifacts there are, and who sent or made them."""

from __future__ import annotations

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from server.models import ArtifactHolderRow, ArtifactRow, TaskRow
from server.upsert import insert_missing


def insert_artifact(session: Session, *, sha256: str, size_bytes: int, created_by: str) -> None:
    """Register a stored file, and that the token or search `created_by` had it whole."""
    insert_missing(session, ArtifactRow, [{"sha256": sha256, "size_bytes": size_bytes}])
    insert_missing(session, ArtifactHolderRow, [{"sha256": sha256, "holder": created_by}])


def has_artifact(session: Session, sha256: str) -> bool:
    return bool(session.scalar(select(exists().where(ArtifactRow.sha256 == sha256))))


def is_for_device(session: Session, sha256: str, device_id: str) -> bool:
    """Whether the device has, or had, a task with this artifact."""
    return bool(
        session.scalar(select(exists().where(TaskRow.artifact_sha256 == sha256, TaskRow.device_id == device_id)))
    )
