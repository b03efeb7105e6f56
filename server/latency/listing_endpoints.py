"""/v1/latencies, /v1/latency-series with their cards, and /v1/latency:compare: the latency database by filters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from device_agent.contracts import KernelSpec, Op, PruningScheme, Source, Verdict, decode
from search.latency.comparison import Figure, Ratio, RatioSummary, ratio_of, summarise_ratios
from server.context import ContextDep, Reader
from server.errors import BadRequest, Unprocessable
from server.latency.card import SeriesCard, stored_card
from server.latency.drift import DriftView, drift_view
from server.latency.listing import (
    PLACE_SEPARATOR,
    LatencyFilter,
    Place,
    find_device,
    list_latencies,
    medians,
    one_series,
    place_key,
)
from server.latency.schemas import LatencyView, SeriesView, latency, series_view
from server.latency.series import differing_parts, get_series, key_of, list_series
from server.models import KernelRow, LatencyRow
from server.wire import (
    DEFAULT_PAGE,
    PROBLEMS,
    ContractResponse,
    Limit,
    Page,
    answer,
    decode_cursor,
    iso,
    page,
)

router = APIRouter(prefix="/v1", tags=["latency"], responses=PROBLEMS)

Extent = Annotated[int | None, Query(ge=1, le=65536)]
Density = Annotated[float | None, Query(ge=0.0, le=1.0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedKernel:
    """A kernel under both keys; `ratio` is second / first."""

    kernel_id: str
    kernel: KernelSpec
    first_ns: float
    second_ns: float
    first_verdict: Verdict
    second_verdict: Verdict
    ratio: float
    ratio_ci95: tuple[float, float] | None
    differs: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two series over the kernels that both have. `differing_parts` says in which parts of the key they differ.

    `kernels` are at most `limit`, those farthest from 1 first; `summary` is over all of them. A kernel that one side
    measured in several modes is in neither, and counted as `ambiguous`.
    """

    first: SeriesView
    second: SeriesView
    differing_parts: tuple[str, ...]
    only_first: int
    only_second: int
    ambiguous: int
    summary: RatioSummary | None
    kernels: tuple[ComparedKernel, ...]


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


@router.get("/latencies")
def get_latencies(
    context: ContextDep,
    principal: Reader,
    wanted: FilterDep,
    cursor: str | None = None,
    limit: Limit = DEFAULT_PAGE,
) -> Response:
    """The latest usable figure of each kernel in each series. Figures of different keys are different rows."""
    with context.database.read() as session:
        rows = list_latencies(session, wanted, after=list_place(cursor), limit=limit + 1)
    part = page(rows, limit, key=lambda row: place_key(row[0]))
    views = tuple(
        LatencyView(
            kernel=decode(KernelSpec, kernel.spec), latency=latency(row), series=series_view(series), device_name=name
        )
        for row, series, kernel, name in part.items
    )
    return ContractResponse(Page(items=views, next=part.next))


@router.get("/latency-series")
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
    with context.database.read() as session:
        series = get_series(session, series_id)
        found = stored_card(session, series_id)
        drift = drift_view(session, series_id)
    return ContractResponse(
        CardView(
            series=series_view(series),
            card=None if found is None else found[0],
            computed_at=None if found is None else iso(found[1]),
            is_stale=found is None or found[0].num_measurements != series.num_measurements,
            drift=drift,
        )
    )


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
    with context.database.read() as session:
        first = one_series(session, "first", series=first_series, device=first_device, runtime=first_runtime)
        second = one_series(session, "second", series=second_series, device=second_device, runtime=second_runtime)
        if first.id == second.id:
            raise Unprocessable(f"both sides are series {first.id}: name two")
        ours, theirs = medians(session, first.id), medians(session, second.id)
        common = sorted(ours.keys() & theirs.keys())
        pairs = [(kernel, ours[kernel], theirs[kernel]) for kernel in common]
        compared = [(kernel, a, b, ratio_of(_figure(a), _figure(b))) for kernel, a, b in pairs if a and b]
        compared.sort(key=lambda item: (-max(item[3].ratio, 1.0 / item[3].ratio), item[0]))
        shown = [_compared(kernel, session.get_one(KernelRow, kernel), a, b, r) for kernel, a, b, r in compared[:limit]]
    return ContractResponse(
        Comparison(
            first=series_view(first),
            second=series_view(second),
            differing_parts=differing_parts(key_of(first), key_of(second)),
            only_first=len(ours) - len(common),
            only_second=len(theirs) - len(common),
            ambiguous=len(common) - len(compared),
            summary=summarise_ratios([item[3] for item in compared]) if compared else None,
            kernels=tuple(shown),
        )
    )


def _figure(row: LatencyRow) -> Figure:
    return Figure.of(row.median_ns, row.ci95_low_ns, row.ci95_high_ns)


def _compared(identity: str, kernel: KernelRow, first: LatencyRow, second: LatencyRow, ratio: Ratio) -> ComparedKernel:
    return ComparedKernel(
        kernel_id=identity,
        kernel=decode(KernelSpec, kernel.spec),
        first_ns=first.median_ns,
        second_ns=second.median_ns,
        first_verdict=first.verdict,
        second_verdict=second.verdict,
        ratio=ratio.ratio,
        ratio_ci95=ratio.ci95,
        differs=ratio.differs,
    )


def list_place(cursor: str | None) -> Place | None:
    """The place behind a cursor of the list of latencies. Raises `BadRequest` for one that is none."""
    key = decode_cursor(cursor)
    if key is None:
        return None
    parts = key.split(PLACE_SEPARATOR)
    if len(parts) != 3:
        raise BadRequest(f"cursor {cursor!r} is not one of this list: leave it out to begin at the start")
    return (parts[0], parts[1], parts[2])
