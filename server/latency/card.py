"""The card of a series: how far predictions from its figures can be trusted, worked out from what is stored.

A card takes seconds for a large series, so that a worker makes it while it has no search, and stores it: pages and REST
only read. `num_measurements` tells whether the series has grown since.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from device_agent.contracts import ReportStatus, Verdict, dumps, loads
from search.errors import LatencyModelError
from search.latency.card import ErrorSummary, summarise_errors
from search.latency.families import family_of
from search.latency.model.validation import cross_validate
from search.latency.predictor import HeldOut, LatencyPredictor
from search.latency.table import KernelLatency, LatencyTable
from server.columns import database_time_s
from server.database import Database
from server.latency.figures import MAX_FIGURES, QUIET_S, due_series, series_kernels
from server.latency.series import SeriesKey, differing_parts, get_series, key_of
from server.models import (
    CandidateRow,
    CardRow,
    DocumentRow,
    LatencyRow,
    MeasurementRow,
    SearchRow,
    SearchTaskRow,
    SeriesRow,
)
from server.searches.repository import RESULT
from server.states import JobStage, JobState
from server.upsert import upsert

#: Kernels of the scatter: more would be one spot.
_SHOWN_KERNELS = 400
#: Searches whose networks are on a card, the latest first.
_MAX_SEARCHES = 50
#: Seed of the parts into which kernels are drawn.
_SEED = 20_220_607

#: In place of a card's number of measurements: no series has as many.
_OUTDATED = -1

_NS_PER_MS = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class CardPoint:
    """Predicted against measured, of a kernel that was held out or of a whole network (`candidate_id`, where the asking
    user may see its search).
    """

    name: str
    predicted_ms: float
    measured_ms: float
    search_id: str | None = None
    candidate_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyErrors:
    """Errors of the kernels that differ in channels and density only. None where nothing could be held out."""

    family: str
    kernels: int
    table: ErrorSummary | None
    model: ErrorSummary | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesCard:
    """How far predictions from one series can be trusted. Nothing of another series is in it but whole networks, whose
    series differs in the measuring setup alone.

    `table` are kernels between two neighbours of the table, predicted from those; `model` kernels predicted by the
    latency model that was fitted without them (five parts). `networks` are those that searches on this series predicted
    and then measured. `without_model` says why there is no `model`. `device_minutes` is what measuring the series took.
    """

    num_measurements: int
    num_kernels: int
    verdicts: dict[str, int]
    device_minutes: float
    table: ErrorSummary | None
    model: ErrorSummary | None
    networks: ErrorSummary | None
    families: tuple[FamilyErrors, ...]
    kernel_points: tuple[CardPoint, ...]
    network_points: tuple[CardPoint, ...]
    without_model: str


def due_card(session: Session, *, quiet_s: float = QUIET_S) -> str | None:
    """A series whose card is missing, or was made of other measurements (see `outdate_cards`, too)."""
    return due_series(session, CardRow, quiet_s=quiet_s)


def refresh_card(database: Database, *, quiet_s: float = QUIET_S) -> str | None:
    """Work out one card that is due, and store it; returns the series, or None where none is due."""
    with database.snapshot() as session:
        series_id = due_card(session, quiet_s=quiet_s)
        if series_id is None:
            return None
        # The time before reading: what comes meanwhile makes the card old.
        started = database_time_s(session)
        facts = _facts(session, get_series(session, series_id))
    card = make_card(facts)
    row = {
        "series_id": series_id,
        "num_measurements": card.num_measurements,
        "card": dumps(card),
        "computed_at": started,
    }
    with database.write() as session:
        upsert(session, CardRow, [row], key=["series_id"])
    return series_id


def outdate_cards(session: Session, search_id: str) -> None:
    """Have the cards of the series that a search used made anew: its result tells what it predicted for networks."""
    used = (
        select(MeasurementRow.series_id)
        .join(SearchTaskRow, SearchTaskRow.task_id == MeasurementRow.task_id)
        .where(SearchTaskRow.search_id == search_id)
    )
    session.execute(
        update(CardRow)
        .where(CardRow.series_id.in_(used))
        .values(num_measurements=_OUTDATED)
        .execution_options(synchronize_session=False)
    )


def stored_card(session: Session, series_id: str) -> tuple[SeriesCard, float] | None:
    """The card of a series and when it was worked out; None where no worker came to it yet."""
    row = session.get(CardRow, series_id)
    return None if row is None else (loads(SeriesCard, row.card), row.computed_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """All that a card is made of."""

    key: SeriesKey
    num_measurements: int
    num_kernels: int
    verdicts: dict[str, int]
    device_minutes: float
    kernels: tuple[KernelLatency, ...]
    networks: tuple[CardPoint, ...]


def make_card(facts: _Facts) -> SeriesCard:
    """The card; no database is needed any more."""
    key = facts.key
    table = LatencyTable(
        device_id=key.device_id,
        setup_id=key.setup_id,
        runtime=key.runtime,
        runtime_version=key.runtime_version,
        source=key.source,
        kernels=facts.kernels,
    )
    predictor = LatencyPredictor(table)
    in_table = [item for family in predictor.families for item in predictor.held_out(family)]
    without_model = ""
    by_model: tuple[HeldOut, ...] = ()
    try:
        by_model = cross_validate(table.kernels, key.runtime, rng=np.random.default_rng(_SEED))
    except (LatencyModelError, np.linalg.LinAlgError) as error:
        without_model = str(error)
    return SeriesCard(
        num_measurements=facts.num_measurements,
        num_kernels=facts.num_kernels,
        verdicts=facts.verdicts,
        device_minutes=facts.device_minutes,
        table=_errors(in_table),
        model=_errors(by_model),
        networks=_network_errors(facts.networks),
        families=_families(table.kernels, in_table, by_model),
        kernel_points=tuple(
            CardPoint(
                name=str(family_of(item.kernel)),
                predicted_ms=item.predicted_ns / _NS_PER_MS,
                measured_ms=item.measured_ns / _NS_PER_MS,
            )
            for item in by_model[:_SHOWN_KERNELS]
        ),
        network_points=facts.networks,
        without_model=without_model,
    )


def _errors(items: Sequence[HeldOut]) -> ErrorSummary | None:
    return summarise_errors([i.measured_ns for i in items], [i.predicted_ns for i in items]) if items else None


def _network_errors(points: Sequence[CardPoint]) -> ErrorSummary | None:
    return summarise_errors([p.measured_ms for p in points], [p.predicted_ms for p in points]) if points else None


def _families(
    kernels: Iterable[KernelLatency], in_table: Iterable[HeldOut], by_model: Iterable[HeldOut]
) -> tuple[FamilyErrors, ...]:
    """Families by their text, those with most kernels first."""
    counts = Counter(str(family_of(entry.kernel)) for entry in kernels)
    parts: list[dict[str, list[HeldOut]]] = []
    for items in (in_table, by_model):
        found = defaultdict(list)
        for item in items:
            found[str(family_of(item.kernel))].append(item)
        parts.append(found)
    return tuple(
        FamilyErrors(
            family=family,
            kernels=count,
            table=_errors(parts[0].get(family, [])),
            model=_errors(parts[1].get(family, [])),
        )
        for family, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def _facts(session: Session, series: SeriesRow) -> _Facts:
    own = (MeasurementRow.series_id == series.id, MeasurementRow.status == ReportStatus.ACCEPTED)
    verdicts = select(MeasurementRow.verdict, func.count()).where(*own).group_by(MeasurementRow.verdict)
    seconds = session.scalar(select(func.sum(MeasurementRow.duration_s)).where(MeasurementRow.series_id == series.id))
    distinct = select(LatencyRow.kernel_id).where(LatencyRow.series_id == series.id).distinct().subquery()
    counted = select(func.count()).select_from(distinct)
    kernels = series_kernels(session, series.id)
    return _Facts(
        key=key_of(series),
        num_measurements=series.num_measurements,
        num_kernels=len(kernels) if len(kernels) < MAX_FIGURES else int(session.scalar(counted) or 0),
        verdicts={verdict.value: count for verdict, count in session.execute(verdicts)},
        device_minutes=float(seconds or 0.0) / 60.0,
        kernels=kernels,
        networks=_networks(session, series),
    )


def _networks(session: Session, series: SeriesRow) -> tuple[CardPoint, ...]:
    """The whole networks that completed searches predicted from this series and then measured, in a series that differs
    in the measuring setup alone. Searches that had the same network share its one measurement: it counts once, as the
    latest of them predicted it.
    """
    in_series = select(MeasurementRow.task_id).where(MeasurementRow.series_id == series.id)
    searches = (
        select(SearchTaskRow.search_id)
        .where(SearchTaskRow.task_id.in_(in_series))
        .join(SearchRow, SearchRow.id == SearchTaskRow.search_id)
        .where(SearchRow.state == JobState.COMPLETED)
        .distinct()
        .order_by(SearchTaskRow.search_id.desc())
        .limit(_MAX_SEARCHES)
    )
    found: dict[str, CardPoint] = {}
    for search_id in session.scalars(searches).all():
        found = {**_networks_of(session, series, search_id), **found}
    return tuple(found.values())


def _networks_of(session: Session, series: SeriesRow, search_id: str) -> dict[str, CardPoint]:
    """Those of one search, by the task that measured them."""
    document = session.get(DocumentRow, (search_id, RESULT))
    if document is None:
        return {}
    points = {}
    result = json.loads(document.text)
    for point in (*result["front"], *result.get("measured_untrained", ())):
        figures = next((f for f in point["devices"] if f["device_id"] == series.device_id), None)
        if figures is None or figures["measured_latency_ms"] is None or figures["verdict"] == Verdict.REJECTED.value:
            continue
        candidate = session.get(CandidateRow, (search_id, point["candidate_id"]))
        if candidate is None:
            continue
        verified = candidate.results.get(JobStage.VERIFYING.value, {})
        task_id = str(verified.get("devices", {}).get(series.device_id, verified).get("task_id", ""))
        if not _is_beside(session, series, task_id):
            continue
        points[task_id] = CardPoint(
            name=point["candidate_id"],
            predicted_ms=figures["predicted_latency_ms"],
            measured_ms=figures["measured_latency_ms"],
            search_id=search_id,
            candidate_id=point["candidate_id"],
        )
    return points


def _is_beside(session: Session, series: SeriesRow, task_id: str) -> bool:
    """Whether the task was measured under the key of `series` but for the setup."""
    query = select(SeriesRow).join(MeasurementRow, MeasurementRow.series_id == SeriesRow.id)
    found = session.scalars(query.where(MeasurementRow.task_id == task_id).limit(1)).first()
    if found is None:
        return False
    same = dataclasses.replace(key_of(found), setup_id=series.setup_id)
    return not differing_parts(same, key_of(series))
