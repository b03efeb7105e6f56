"""/v1/latency:import and /v1/latency:export."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from fastapi.responses import StreamingResponse

from server.context import ArtifactWriter, Context, ContextDep, Reader
from server.latency.exchange.export import MEDIA_TYPES, exported
from server.latency.exchange.service import ImportAnswer, LatencyImport, import_file
from server.latency.exchange.tables import TableFormat
from server.latency.listing import LatencyFilter
from server.latency.listing_endpoints import FilterDep
from server.searches.visibility import sees_only
from server.wire import PROBLEMS, ContractResponse, answer, body_of, body_schema

router = APIRouter(prefix="/v1", tags=["latency"], responses=PROBLEMS)


@router.post("/latency:import", openapi_extra=body_schema("LatencyImport"), responses=answer(ImportAnswer))
def import_latencies(
    context: ContextDep,
    principal: ArtifactWriter,
    body: Annotated[LatencyImport, Depends(body_of(LatencyImport))],
) -> Response:
    """Store the latencies of an uploaded file on an imported device: all of them or none, and none twice."""
    owner = sees_only(context.settings, principal)
    return ContractResponse(
        import_file(context.database, context.store, body, created_by=principal.token_id, owner=owner)
    )


@router.get(
    "/latency:export",
    response_class=StreamingResponse,
    responses={200: {"description": "The file", "content": {media: {} for media in MEDIA_TYPES.values()}}},
)
def export_latencies(
    context: ContextDep, principal: Reader, wanted: FilterDep, format: TableFormat = TableFormat.CSV
) -> Response:
    """Every kernel measurement that fits, with its whole provenance in each row. /v1/latency:import takes it back."""
    return export_answer(context, wanted, format)


def export_answer(context: Context, wanted: LatencyFilter, form: TableFormat) -> Response:
    """An export as a download. Raises `Unprocessable` for a form that cannot be written here."""
    rows = exported(context.database, wanted, form)
    headers = {"Content-Disposition": f'attachment; filename="latencies.{form.value}"', "Cache-Control": "no-store"}
    return StreamingResponse(rows, media_type=MEDIA_TYPES[form], headers=headers)
