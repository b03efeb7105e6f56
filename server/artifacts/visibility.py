"""Whose artifacts a user sees: all, or with `multi_user` those that are their own or shared.

Knowing a hash opens nothing then: not the file, not whether it is there, and neither a search nor a model, network or
data set can be made from it.
"""

from __future__ import annotations

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from server.artifacts.repository import has_artifact
from server.models import (
    ArtifactHolderRow,
    ArtifactRow,
    CheckpointedModelRow,
    DatasetRow,
    NetworkRow,
    SearchRow,
    TokenRow,
)
from server.searches.visibility import is_of


def is_visible(session: Session, sha256: str, owner: str | None) -> bool:
    """Whether the artifact is registered and `owner` may know it; None knows all.

    A user's own are those that were sent whole with a token of this name, or made by a search of theirs. Files of
    registered models, networks and data sets are everybody's, as these are.
    """
    if owner is None:
        return has_artifact(session, sha256)
    is_own = exists().where(
        ArtifactHolderRow.sha256 == ArtifactRow.sha256,
        or_(
            ArtifactHolderRow.holder.in_(select(TokenRow.id).where(TokenRow.name == owner)),
            ArtifactHolderRow.holder.in_(select(SearchRow.id).where(is_of(owner))),
        ),
    )
    is_shared = [
        exists().where(column == ArtifactRow.sha256)
        for column in (
            CheckpointedModelRow.artifact_sha256,
            NetworkRow.source_sha256,
            NetworkRow.network_sha256,
            DatasetRow.train_sha256,
            DatasetRow.test_sha256,
        )
    ]
    return bool(session.scalar(select(exists().where(ArtifactRow.sha256 == sha256, or_(is_own, *is_shared)))))
