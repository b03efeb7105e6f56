"""/v1/latencies, /v1/latency-series with their cards, and /v1/latency:compare: the latency database by filters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from sqlalchemy.orm import Session

from device_agent.contracts import KernelSpec, Op, PruningScheme, Source, Verdict, decode
from server.context import ContextDep, Reader
from server.errors import BadRequest
from server.latency.card import SeriesCard, stored_card
from server.latency.compare import Comparison, compare_series
from server.latency.drift import DriftView, drift_view
from server.latency.listing import (
    PLACE_SEPARATOR,
    LatencyFilter,
    Place,
    find_device,
    list_latencies,
    one_series,
    place_key,
)
from server.latency.schemas import LatencyView, SeriesView, latency, series_view
from server.latency.series import get_series, list_series
from server.searches.visibility import sees_only, visible_ids
from server.wire import (
    DEFAULT_PAGE,
    PROBLEMS,
    ContractResponse,
    Limit,
    Page,
    answer,
    decode_cursor,
    encode_cursor,
    iso,
    page,
    page_answer,
)

router = APIRouter(prefix="/v1", tags=["latency"], responses=PROBLEMS)

Extent = Annotated[int | None, Query(ge=1, le=65536)]
Density = Annotated[float | None, Query(ge=0.0, le=1.0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class CardView:
    """The card of a series. None as `card` until a worker that has no search came to it; `is_stale` where the series
    has other measurements by now.
    """

    series: SeriesView
    card: SeriesCard | None
    computed_at: str | None
    is_stale: bool
    drift: DriftView


def latency_filter(
    context: ContextDep,
    device: str | None = None,
    series: str | None = None,
    runtime: str | None = None,
    runtime_version: str | None = None,
    source: Source | None = None,
    verdict: Verdict | None = None,
    op: Op | None = None,
    in_channels: Extent = None,
    out_channels: Extent = None,
    input_h: Extent = None,
    kernel_h: Extent = None,
    stride: Extent = None,
    scheme: PruningScheme | None = None,
    min_density: Density = None,
    max_density: Density = None,
) -> LatencyFilter:
    """The filter of a request; `device` is an id or a name."""
    device_id = None
    if device is not None:
        with context.database.read() as session:
            device_id = find_device(session, device).id
    return LatencyFilter(
        device_id=device_id,
        series_id=series,
        runtime=runtime,
        runtime_version=runtime_version,
        source=source,
        verdict=verdict,
        op=op,
        in_channels=in_channels,
        out_channels=out_channels,
        input_h=input_h,
        kernel_h=kernel_h,
        stride=stride,
        scheme=scheme,
        min_density=min_density,
        max_density=max_density,
    )


FilterDep = Annotated[LatencyFilter, Depends(latency_filter)]


@router.get("/latencies", responses=page_answer(LatencyView))
def get_latencies(
    context: ContextDep,
    principal: Reader,
    wanted: FilterDep,
    cursor: str | None = None,
    limit: Limit = DEFAULT_PAGE,
) -> Response:
    """The latest usable figure of each kernel in each series, one series after the other. Figures of different keys are
    different rows. Where few rows fit, a page may have fewer than `limit`, even none, and yet a `next`.
    """
    with context.database.read() as session:
        part = list_latencies(session, wanted, after=list_place(cursor), limit=limit)
    # Many rows are of one series.
    series_views = {identity: series_view(row) for identity, row in {row[1].id: row[1] for row in part.rows}.items()}
    views = tuple(
        LatencyView(
            kernel=decode(KernelSpec, kernel.spec),
            latency=latency(row),
            series=series_views[series.id],
            device_name=name,
        )
        for row, series, kernel, name in part.rows
    )
    following = None if part.following is None else encode_cursor(place_key(part.following))
    return ContractResponse(Page(items=views, next=following))


@router.get("/latency-series", responses=page_answer(SeriesView))
def get_series_list(
    context: ContextDep,
    principal: Reader,
    device: str | None = None,
    runtime: str | None = None,
    cursor: str | None = None,
    limit: Limit = DEFAULT_PAGE,
) -> Response:
    """Series: each is one key, and nothing joins two of them silently."""
    with context.database.read() as session:
        device_id = None if device is None else find_device(session, device).id
        rows = list_series(session, device_id=device_id, runtime=runtime, after=decode_cursor(cursor), limit=limit + 1)
    part = page(rows, limit, key=lambda row: row.id)
    return ContractResponse(Page(items=tuple(series_view(row) for row in part.items), next=part.next))


@router.get("/latency-series/{series_id}/card", responses=answer(CardView))
def get_card(series_id: str, context: ContextDep, principal: Reader) -> Response:
    """How far predictions from a series can be trusted, and whether its device has drifted."""
    with context.database.snapshot() as session:
        series = get_series(session, series_id)
        found = stored_card(session, series_id)
        drift = drift_view(session, series_id)
        card = None if found is None else _shown(session, found[0], sees_only(context.settings, principal))
    return ContractResponse(
        CardView(
            series=series_view(series),
            card=card,
            computed_at=None if found is None else iso(found[1]),
            is_stale=found is None or found[0].num_measurements != series.num_measurements,
            drift=drift,
        )
    )


def _shown(session: Session, card: SeriesCard, owner: str | None) -> SeriesCard:
    """A card as `owner` may see it: latencies are everybody's, the searches that they came from are not."""
    if owner is None:
        return card
    seen = visible_ids(session, {point.search_id for point in card.network_points if point.search_id}, owner)
    points = tuple(
        point if point.search_id in seen else replace(point, search_id=None, candidate_id=None)
        for point in card.network_points
    )
    return replace(card, network_points=points)


@router.get("/latency:compare", responses=answer(Comparison))
def compare_latencies(
    context: ContextDep,
    principal: Reader,
    first_series: str | None = None,
    first_device: str | None = None,
    first_runtime: str | None = None,
    second_series: str | None = None,
    second_device: str | None = None,
    second_runtime: str | None = None,
    limit: Limit = DEFAULT_PAGE,
) -> Response:
    """The same kernels in two series. A device, with or without a runtime, may stand for its only series; where it has
    several the request is refused, naming them.
    """
    with context.database.snapshot() as session:
        first = one_series(session, "first", series=first_series, device=first_device, runtime=first_runtime)
        second = one_series(session, "second", series=second_series, device=second_device, runtime=second_runtime)
        return ContractResponse(compare_series(session, first, second, limit=limit))


def list_place(cursor: str | None) -> Place | None:
    """The place behind a cursor of the list of latencies. Raises `BadRequest` for one that is none."""
    key = decode_cursor(cursor)
    if key is None:
        return None
    parts = key.split(PLACE_SEPARATOR)
    if len(parts) != 3:
        raise BadRequest(f"cursor {cursor!r} is not one of this list: leave it out to begin at the start")
    return (parts[0], parts[1], parts[2])
