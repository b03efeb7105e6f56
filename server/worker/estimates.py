"""Estimates of the generation that is being evaluated, as they come in. Fenced like all that a worker writes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from search.evaluation import AccuracyEstimate
from server.models import EstimateRow
from server.searches.repository import JobClaim, fence, got_further
from server.upsert import insert_missing

#: Keys in one statement; SQLite takes 32,766 variables.
_KEYS_AT_ONCE = 1000


def stored_estimates(session: Session, search_id: str, keys: Sequence[str]) -> dict[str, AccuracyEstimate]:
    """Those of `keys` that are finished."""
    found: dict[str, AccuracyEstimate] = {}
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        query = select(EstimateRow).where(
            EstimateRow.search_id == search_id, EstimateRow.key.in_(keys[start : start + _KEYS_AT_ONCE])
        )
        for row in session.scalars(query):
            found[row.key] = AccuracyEstimate(
                accuracy=math.nan if row.accuracy is None else row.accuracy,
                loss=math.nan if row.loss is None else row.loss,
                failure=row.failure,
            )
    return found


def store_estimate(session: Session, claim: JobClaim, key: str, estimate: AccuracyEstimate) -> None:
    got_further(session, claim)
    row = {
        "search_id": claim.search_id,
        "key": key,
        "accuracy": estimate.accuracy if math.isfinite(estimate.accuracy) else None,
        "loss": estimate.loss if math.isfinite(estimate.loss) else None,
        "failure": estimate.failure,
    }
    insert_missing(session, EstimateRow, [row])


def forget_estimates(session: Session, claim: JobClaim) -> None:
    """For the transaction that stores what they led to."""
    fence(session, claim)
    session.execute(delete(EstimateRow).where(EstimateRow.search_id == claim.search_id))
