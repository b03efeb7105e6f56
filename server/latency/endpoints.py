"""/v1/kernels, /v1/measurements and /v1/latency:query."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from device_agent.contracts import (
    DeviceProfile,
    Op,
    PruningScheme,
    ReportStatus,
    Source,
    Verdict,
    decode,
    kernel_id,
    setup_id,
)
from server.context import ContextDep, Reader
from server.errors import BadRequest, NotFound, Unprocessable
from server.fleet.repository import get_device
from server.latency import queries
from server.latency.listing import one_series
from server.latency.profit import ProfitMap, part_cursor, require_profit
from server.latency.queries import KernelFilter, MeasurementFilter
from server.latency.repository import raw_measurement
from server.latency.schemas import (
    KernelView,
    LatencyAnswer,
    LatencyQuery,
    MeasurementView,
    kernel_view,
    latency,
    measurement_view,
    series_view,
)
from server.latency.series import get_series, latest_series
from server.models import KernelRow, LatencyRow
from server.wire import (
    DEFAULT_PAGE,
    PROBLEMS,
    ContractResponse,
    Limit,
    Page,
    answer,
    body_of,
    body_schema,
    decode_cursor,
    encode_cursor,
    iso,
    page,
    page_answer,
)

router = APIRouter(prefix="/v1", tags=["latency"], responses=PROBLEMS)

Channels = Annotated[int | None, Query(ge=1, le=65536)]


@router.get("/kernels", responses=page_answer(KernelView))
def list_kernels(
    context: ContextDep,
    principal: Reader,
    op: Op | None = None,
    scheme: PruningScheme | None = None,
    in_channels: Channels = None,
    out_channels: Channels = None,
    cursor: str | None = None,
    limit: Limit = DEFAULT_PAGE,
) -> Response:
    """Kernels that were ever asked for."""
    wanted = KernelFilter(op=op, scheme=scheme, in_channels=in_channels, out_channels=out_channels)
    with context.database.read() as session:
        rows = queries.list_kernels(session, wanted, after=decode_cursor(cursor), limit=limit + 1)
    part = page(rows, limit, key=lambda row: row.id)
    return ContractResponse(Page(items=tuple(kernel_view(row) for row in part.items), next=part.next))


@router.get("/kernels/{id_}", responses=answer(KernelView))
def get_kernel(id_: str, context: ContextDep, principal: Reader) -> Response:
    with context.database.read() as session:
        row = session.get(KernelRow, id_)
    if row is None:
        raise NotFound(f"no search ever asked for a kernel {id_!r}")
    return ContractResponse(kernel_view(row))


@router.get("/measurements", responses=page_answer(MeasurementView))
def list_measurements(
    context: ContextDep,
    principal: Reader,
    device_id: str | None = None,
    kernel_id: str | None = None,
    task_id: str | None = None,
    setup_id: str | None = None,
    runtime: str | None = None,
    verdict: Verdict | None = None,
    source: Source | None = None,
    status: ReportStatus | None = None,
    cursor: str | None = None,
    limit: Limit = DEFAULT_PAGE,
) -> Response:
    """Measurements, the newest first; the verdict and the provenance are beside every number. Where few fit, a page may
    have fewer than `limit`, even none, and yet a `next`.
    """
    wanted = MeasurementFilter(
        device_id=device_id,
        kernel_id=kernel_id,
        task_id=task_id,
        setup_id=setup_id,
        runtime=runtime,
        verdict=verdict,
        source=source,
        status=status,
    )
    with context.database.read() as session:
        part = queries.list_measurements(session, wanted, before=decode_cursor(cursor), limit=limit)
    following = None if part.following is None else encode_cursor(part.following)
    return ContractResponse(Page(items=tuple(measurement_view(*row) for row in part.rows), next=following))


@router.get("/measurements/{result_key}/raw")
def get_raw_measurement(result_key: str, context: ContextDep, principal: Reader) -> Response:
    """The whole measurement as the agent sent it, samples included."""
    with context.database.read() as session:
        text = raw_measurement(session, result_key)
    if text is None:
        raise NotFound(f"there are no samples of a measurement {result_key!r}; one that was imported never has any")
    return Response(text.encode(), media_type="application/json")


@router.post("/latency:query", openapi_extra=body_schema("LatencyQuery"), responses=answer(LatencyAnswer))
def query_latency(
    context: ContextDep, principal: Reader, body: Annotated[LatencyQuery, Depends(body_of(LatencyQuery))]
) -> Response:
    """The latest usable latency of each kernel in one series of a device. Numbers of different keys are never mixed:
    what was not measured in the series is None, whatever other series have.
    """
    ids = [kernel_id(kernel) for kernel in body.kernels]
    with context.database.read() as session:
        device = get_device(session, body.device_id).row
        if body.series_id is None:
            series = latest_series(
                session,
                device_id=device.id,
                setup_id=setup_id(body.setup),
                profile_id=device.profile_id,
                source=decode(DeviceProfile, device.profile).source,
                runtime_version=body.runtime_version,
            )
        else:
            series = get_series(session, body.series_id)
            if series.device_id != device.id:
                raise Unprocessable(f"series_id: {series.id} is of device {series.device_id}, not of {device.id}")
        rows = [] if series is None else queries.latencies(session, series.id, sorted(set(ids)))
    newest: dict[str, LatencyRow] = {}
    for row in rows:
        newest.setdefault(row.kernel_id, row)
    return ContractResponse(
        LatencyAnswer(
            series=None if series is None else series_view(series),
            latencies=tuple(latency(newest[i]) if i in newest else None for i in ids),
        )
    )


@router.get("/latency:profit", responses=answer(ProfitMap))
def get_profit_map(
    context: ContextDep,
    principal: Reader,
    device: str | None = None,
    runtime: str | None = None,
    series: str | None = None,
    cursor: str | None = None,
) -> Response:
    """How much faster than its dense kernel each pruned one of a series really is, some shapes at a time. A device,
    with or without a runtime, may stand for its only series; where it has several the request is refused, naming them.
    """
    # A worker may put another map in its place between two statements.
    with context.database.snapshot() as session:
        row = one_series(session, "profit", series=series, device=device, runtime=runtime)
        found = require_profit(session, row)
        places = [part_cursor(key) for key in found.places()]
        place = decode_cursor(cursor) or (places[0] if places else None)
        if place is not None and place not in places:
            raise BadRequest(f"cursor {cursor!r} is not one of this map: leave it out to begin at the start")
        number = len(places) if place is None else places.index(place)
        kernels = () if place is None else found.read_part(found.places()[number])
    counts = found.summary.counts
    return ContractResponse(
        ProfitMap(
            series=series_view(row),
            paying=counts.paying,
            costing=counts.costing,
            undecided=counts.undecided,
            without_dense=counts.without_dense,
            ambiguous=found.summary.ambiguous,
            computed_at=iso(found.computed_at),
            is_stale=found.is_stale,
            kernels=kernels,
            next=encode_cursor(places[number + 1]) if number + 1 < len(places) else None,
        )
    )
