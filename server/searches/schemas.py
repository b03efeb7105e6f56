"""A search and its parts as the API shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search.domain.result import MeasuringEffort
from server.models import CandidateRow, EventRow, SearchRow
from server.searches.queries import device_ids
from server.states import JobStage, JobState
from server.wire import iso


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchView:
    id: str
    name: str
    state: JobState
    stage: JobStage
    progress: Mapping[str, Any]
    #: The only device, or the first of several.
    device_id: str
    device_ids: tuple[str, ...]
    error: str | None
    created_at: str | None
    started_at: str | None
    finished_at: str | None
    config: Mapping[str, Any]
    #: What the search cost each of its devices so far, by their ids; None in lists of searches.
    measuring: Mapping[str, MeasuringEffort] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateView:
    """`results` has one entry for each stage that the candidate went through. `failure` says why it could not be
    evaluated: then figures that are missing in `metrics` are unknown, and it is on no front.
    """

    candidate_id: str
    genome: tuple[int, ...]
    metrics: Mapping[str, float]
    violation: float
    generation: int
    on_front: bool
    selected: bool
    results: Mapping[str, Any]
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventView:
    """The data of a server-sent event; `seq` is also its id."""

    seq: int
    kind: str
    data: Mapping[str, Any]
    created_at: str | None


def search_view(row: SearchRow, measuring: Mapping[str, MeasuringEffort] | None = None) -> SearchView:
    return SearchView(
        id=row.id,
        name=row.name,
        state=row.state,
        stage=row.stage,
        progress=row.progress,
        device_id=row.device_id,
        device_ids=device_ids(row),
        error=row.error,
        created_at=iso(row.created_at),
        started_at=iso(row.started_at),
        finished_at=iso(row.finished_at),
        config=row.config,
        measuring=measuring,
    )


def candidate_view(row: CandidateRow) -> CandidateView:
    return CandidateView(
        candidate_id=row.candidate_id,
        genome=tuple(row.genome),
        metrics=row.metrics,
        violation=row.violation,
        generation=row.generation,
        on_front=row.on_front,
        selected=row.selected,
        results=row.results,
        failure=row.results.get(JobStage.SEARCHING.value, {}).get("failure"),
    )


def event_view(row: EventRow) -> EventView:
    return EventView(seq=row.seq, kind=row.kind, data=row.data, created_at=iso(row.created_at))
