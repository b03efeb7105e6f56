"""How the front of a search grew, as its events tell."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from search.domain.result import GenerationFigures
from server.models import EventRow


def generation_history(session: Session, search_id: str) -> tuple[GenerationFigures, ...]:
    """The figures after each generation so far, in order."""
    query = (
        select(EventRow.data)
        .where(EventRow.search_id == search_id, EventRow.kind == "generation")
        .order_by(EventRow.seq)
    )
    return tuple(
        GenerationFigures(
            generation=int(data["generation"]),
            evaluations=int(data["evaluations"]),
            front=int(data["front"]),
            hypervolume=data.get("hypervolume"),
        )
        for data in session.scalars(query)
    )
