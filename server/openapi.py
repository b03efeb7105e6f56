"""The OpenAPI document: FastAPI's own, with the schemas of the contract classes added.

Routes name their bodies by `$ref` (see `server.wire.body_schema`), because they are decoded by our own codec.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from device_agent.contracts import (
    EnrolmentAnswer,
    EnrolmentRequest,
    HeartbeatAnswer,
    HeartbeatRequest,
    LeaseAnswer,
    LeaseRequest,
    RenewAnswer,
    RenewRequest,
    ReportAnswer,
    ReportBatch,
)
from search.domain.config import SearchConfig
from server.accounts.endpoints import NewToken, TokenRequest, TokenView
from server.catalog.datasets import DatasetRequest, DatasetView
from server.catalog.endpoints import ModelList, ModelRequest, ModelView
from server.catalog.networks import NetworkRequest, NetworkView
from server.errors import Problem
from server.fleet.devices import DeviceView, EnrolmentCode, EnrolmentCodeRequest
from server.fleet.quarantine_endpoints import Pardon, QuarantineView
from server.latency.compare import Comparison
from server.latency.exchange.service import ImportAnswer, LatencyImport
from server.latency.listing_endpoints import CardView
from server.latency.model_endpoints import LatencyModelRequest, LatencyModelView, PredictionAnswer, PredictionQuery
from server.latency.profit import ProfitMap
from server.latency.schemas import KernelView, LatencyAnswer, LatencyQuery, LatencyView, MeasurementView, SeriesView
from server.searches.schemas import CandidateView, EventView, SearchView
from server.status import Health, Version
from server.workers.endpoints import WorkerView

_REF = "#/components/schemas/{model}"

#: Every class that a route names.
WIRE_CLASSES: tuple[type, ...] = (
    CandidateView,
    CardView,
    Comparison,
    DatasetRequest,
    DatasetView,
    NetworkRequest,
    NetworkView,
    DeviceView,
    EnrolmentAnswer,
    EnrolmentCode,
    EnrolmentCodeRequest,
    EnrolmentRequest,
    EventView,
    Health,
    HeartbeatAnswer,
    HeartbeatRequest,
    ImportAnswer,
    KernelView,
    LatencyAnswer,
    LatencyImport,
    LatencyModelRequest,
    LatencyModelView,
    LatencyQuery,
    LatencyView,
    LeaseAnswer,
    LeaseRequest,
    MeasurementView,
    ModelList,
    ModelRequest,
    ModelView,
    NewToken,
    Pardon,
    PredictionAnswer,
    PredictionQuery,
    Problem,
    ProfitMap,
    QuarantineView,
    RenewAnswer,
    RenewRequest,
    ReportAnswer,
    ReportBatch,
    SearchConfig,
    SearchView,
    SeriesView,
    TokenRequest,
    TokenView,
    Version,
    WorkerView,
)


def install(app: FastAPI) -> None:
    """Make `app.openapi()` return the whole document."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        openapi_version=app.openapi_version,
        description=app.description,
        routes=app.routes,
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for cls in WIRE_CLASSES:
        schema = TypeAdapter(cls).json_schema(ref_template=_REF)
        schemas |= schema.pop("$defs", {})
        schemas[cls.__name__] = schema
    # FastAPI's own forms of validation errors: ours are problem documents.
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for path in document["paths"].values():
        for operation in path.values():
            _drop_default_validation(operation)
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    return document


def _drop_default_validation(operation: dict[str, Any]) -> None:
    content = operation.get("responses", {}).get("422", {}).get("content", {})
    content.pop("application/json", None)
