"""/v1/latency-series/{id}/model and /v1/latency:predict: kernels that were never measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from sqlalchemy.orm import Session

from device_agent.contracts import ContractError, KernelSpec
from search.latency.model.storage import MODEL_VERSION
from server.context import ContextDep, Reader, SearchWriter
from server.latency.kernel_models import PredictedLatency, model_text, predictions, request_model
from server.latency.schemas import MAX_QUERY_KERNELS, SeriesView, series_view
from server.latency.series import get_series
from server.models import LatencyModelRow, SeriesRow
from server.wire import PROBLEMS, ContractResponse, answer, body_of, body_schema, iso

router = APIRouter(prefix="/v1", tags=["latency"], responses=PROBLEMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyModelRequest:
    """How a series' model is to be fitted: starting from the figures of another series, or (None) from none."""

    from_series_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyModelView:
    """The latency model of a series. `from_series` is what it starts from: figures of another key, where someone asked
    for it. `fitted_at` is None until a worker that has no search came to it; `without_model` says why there is none;
    `is_stale` where the series has other measurements by now, or another start was asked for.
    """

    series: SeriesView
    from_series: SeriesView | None
    is_fitted: bool
    is_stale: bool
    num_kernels: int
    fitted_at: str | None
    without_model: str
    format_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionQuery:
    """Ask for the latency of kernels, measured or not, by the model of one series."""

    series_id: str
    kernels: tuple[KernelSpec, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.kernels) <= MAX_QUERY_KERNELS:
            raise ContractError(f"{len(self.kernels)} kernels are not 1 to {MAX_QUERY_KERNELS}: ask in parts")


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionAnswer:
    """`latencies` has one entry for each kernel asked for, in that order, by `model`."""

    model: LatencyModelView
    latencies: tuple[PredictedLatency, ...]


@router.get("/latency-series/{series_id}/model", responses=answer(LatencyModelView))
def get_latency_model(series_id: str, context: ContextDep, principal: Reader) -> Response:
    """Whether a series has a latency model, of how many kernels, how old it is, and what it starts from."""
    with context.database.read() as session:
        return ContractResponse(_view(session, get_series(session, series_id)))


@router.put(
    "/latency-series/{series_id}/model",
    openapi_extra=body_schema("LatencyModelRequest"),
    responses=answer(LatencyModelView),
)
def put_latency_model(
    series_id: str,
    context: ContextDep,
    principal: SearchWriter,
    body: Annotated[LatencyModelRequest, Depends(body_of(LatencyModelRequest))],
) -> Response:
    """Have the model fitted anew, starting from another series or from none. It stays so when the series grows."""
    with context.database.write() as session:
        request_model(session, series_id, body.from_series_id)
        return ContractResponse(_view(session, get_series(session, series_id)))


@router.get(
    "/latency-series/{series_id}/model:export",
    responses={200: {"description": "The model", "content": {"application/json": {}}}},
)
def export_latency_model(series_id: str, context: ContextDep, principal: Reader) -> Response:
    """The model itself, as versioned JSON: prices, settings and measurements. Equal models are equal bytes."""
    with context.database.read() as session:
        get_series(session, series_id)
        text = model_text(session.get(LatencyModelRow, series_id), series_id)
    headers = {"Content-Disposition": f'attachment; filename="latency-model-{series_id}.json"'}
    return Response(text, media_type="application/json", headers=headers)


@router.post("/latency:predict", openapi_extra=body_schema("PredictionQuery"), responses=answer(PredictionAnswer))
def predict_latency(
    context: ContextDep, principal: Reader, body: Annotated[PredictionQuery, Depends(body_of(PredictionQuery))]
) -> Response:
    """The latency of kernels on the device of a series, with uncertainty. What was not measured is marked as predicted;
    nothing of it is stored as a measurement.
    """
    with context.database.read() as session:
        series = get_series(session, body.series_id)
        row = session.get(LatencyModelRow, body.series_id)
        view = _view(session, series)
    found = predictions(row, body.series_id, body.kernels)
    return ContractResponse(PredictionAnswer(model=view, latencies=tuple(found)))


def _view(session: Session, series: SeriesRow) -> LatencyModelView:
    row = session.get(LatencyModelRow, series.id)
    start = None if row is None or row.from_series_id is None else get_series(session, row.from_series_id)
    return LatencyModelView(
        series=series_view(series),
        from_series=None if start is None else series_view(start),
        is_fitted=row is not None and row.model is not None and row.format_version == MODEL_VERSION,
        is_stale=row is None or row.num_measurements != series.num_measurements or row.format_version != MODEL_VERSION,
        num_kernels=0 if row is None else row.num_kernels,
        fitted_at=None if row is None else iso(row.fitted_at),
        without_model="" if row is None else row.without_model,
        format_version=MODEL_VERSION,
    )
