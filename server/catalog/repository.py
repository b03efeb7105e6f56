"""Uploaded models and data sets in SQL. Registering the same thing again finds the first one."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.ids import new_id
from server.models import CheckpointedModelRow, DatasetRow
from server.upsert import insert_missing


def add_model(session: Session, *, name: str, architecture: str, artifact_sha256: str) -> CheckpointedModelRow:
    key = {"name": name, "architecture": architecture, "artifact_sha256": artifact_sha256}
    insert_missing(session, CheckpointedModelRow, [{"id": new_id("model"), **key}])
    return session.scalars(select(CheckpointedModelRow).filter_by(**key)).one()


def add_dataset(
    session: Session,
    *,
    name: str,
    train_sha256: str,
    test_sha256: str,
    class_names: Sequence[str],
    num_train: int,
    num_test: int,
) -> DatasetRow:
    key = {"name": name, "train_sha256": train_sha256, "test_sha256": test_sha256}
    facts = {"class_names": list(class_names), "num_train": num_train, "num_test": num_test}
    insert_missing(session, DatasetRow, [{"id": new_id("dataset"), **key, **facts}])
    return session.scalars(select(DatasetRow).filter_by(**key)).one()


def list_models(session: Session, *, after: str | None, limit: int) -> Sequence[CheckpointedModelRow]:
    query = select(CheckpointedModelRow).order_by(CheckpointedModelRow.id).limit(limit)
    return session.scalars(query if after is None else query.where(CheckpointedModelRow.id > after)).all()


def list_datasets(session: Session, *, after: str | None, limit: int) -> Sequence[DatasetRow]:
    query = select(DatasetRow).order_by(DatasetRow.id).limit(limit)
    return session.scalars(query if after is None else query.where(DatasetRow.id > after)).all()


def find_dataset(session: Session, *, name: str, train_sha256: str, test_sha256: str) -> DatasetRow | None:
    query = select(DatasetRow).filter_by(name=name, train_sha256=train_sha256, test_sha256=test_sha256)
    return session.scalars(query).one_or_none()
