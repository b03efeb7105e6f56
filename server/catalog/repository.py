"""Uploaded models and data sets in SQL. Registering the same thing again finds the first one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from device_agent.contracts import content_id
from server.ids import new_id
from server.models import CheckpointedModelRow, DatasetRow, NetworkRow
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
    test_sha256: str | None,
    class_names: Sequence[str],
    num_train: int,
    num_test: int,
    contents: Mapping[str, Any],
) -> DatasetRow:
    key = _dataset_key(name, train_sha256, test_sha256)
    row = {
        "id": new_id("dataset"),
        "key": key,
        "name": name,
        "train_sha256": train_sha256,
        "test_sha256": test_sha256,
        "class_names": list(class_names),
        "num_train": num_train,
        "num_test": num_test,
        "contents": dict(contents),
    }
    insert_missing(session, DatasetRow, [row])
    return session.scalars(select(DatasetRow).filter_by(key=key)).one()


def add_network(
    session: Session,
    *,
    name: str,
    source_sha256: str,
    input_shape: Sequence[int] | None,
    network_sha256: str,
    contents: Mapping[str, Any],
) -> NetworkRow:
    key = _network_key(name, source_sha256, input_shape)
    row = {
        "id": new_id("network"),
        "key": key,
        "name": name,
        "source_sha256": source_sha256,
        "network_sha256": network_sha256,
        "contents": dict(contents),
    }
    insert_missing(session, NetworkRow, [row])
    return session.scalars(select(NetworkRow).filter_by(key=key)).one()


def list_networks(session: Session, *, after: str | None, limit: int) -> Sequence[NetworkRow]:
    query = select(NetworkRow).order_by(NetworkRow.id).limit(limit)
    return session.scalars(query if after is None else query.where(NetworkRow.id > after)).all()


def find_network(
    session: Session, *, name: str, source_sha256: str, input_shape: Sequence[int] | None
) -> NetworkRow | None:
    key = _network_key(name, source_sha256, input_shape)
    return session.scalars(select(NetworkRow).filter_by(key=key)).one_or_none()


def networks_of(session: Session, sha256: str) -> Sequence[NetworkRow]:
    """The networks that were made of this file, or are this file, oldest first."""
    is_it = (NetworkRow.network_sha256 == sha256) | (NetworkRow.source_sha256 == sha256)
    return session.scalars(select(NetworkRow).where(is_it).order_by(NetworkRow.id)).all()


def list_models(session: Session, *, after: str | None, limit: int) -> Sequence[CheckpointedModelRow]:
    query = select(CheckpointedModelRow).order_by(CheckpointedModelRow.id).limit(limit)
    return session.scalars(query if after is None else query.where(CheckpointedModelRow.id > after)).all()


def list_datasets(session: Session, *, after: str | None, limit: int) -> Sequence[DatasetRow]:
    query = select(DatasetRow).order_by(DatasetRow.id).limit(limit)
    return session.scalars(query if after is None else query.where(DatasetRow.id > after)).all()


def find_dataset(session: Session, *, name: str, train_sha256: str, test_sha256: str | None) -> DatasetRow | None:
    key = _dataset_key(name, train_sha256, test_sha256)
    return session.scalars(select(DatasetRow).filter_by(key=key)).one_or_none()


def datasets_called(session: Session, name: str) -> Sequence[DatasetRow]:
    """The data sets with this id or name, oldest first."""
    query = select(DatasetRow).where((DatasetRow.id == name) | (DatasetRow.name == name)).order_by(DatasetRow.id)
    return session.scalars(query).all()


def dataset_of(session: Session, train_sha256: str, test_sha256: str | None) -> DatasetRow | None:
    """A data set of these files, under whatever name."""
    query = select(DatasetRow).filter_by(train_sha256=train_sha256, test_sha256=test_sha256).order_by(DatasetRow.id)
    return session.scalars(query.limit(1)).one_or_none()


def _network_key(name: str, source_sha256: str, input_shape: Sequence[int] | None) -> str:
    return content_id("network", [name, source_sha256, None if input_shape is None else list(input_shape)])


def _dataset_key(name: str, train_sha256: str, test_sha256: str | None) -> str:
    return content_id("dataset", [name, train_sha256, test_sha256])
