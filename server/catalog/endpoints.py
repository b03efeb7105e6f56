"""/v1/models: what a search can start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from device_agent.contracts import ContractError
from search.domain.architectures import ARCHITECTURES, Architecture
from search.domain.config import ModelConfig
from server.catalog import repository
from server.catalog.naming import check_name, check_stored, refused
from server.catalog.safetensors import read_header
from server.context import ArtifactWriter, ContextDep, Reader
from server.models import CheckpointedModelRow
from server.wire import (
    DEFAULT_PAGE,
    PROBLEMS,
    ContractResponse,
    Limit,
    answer,
    body_of,
    body_schema,
    decode_cursor,
    iso,
    page,
)

router = APIRouter(prefix="/v1", tags=["catalog"], responses=PROBLEMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """Weights for a zoo architecture: a safetensors file, uploaded as an artifact before."""

    architecture: str
    sha256: str
    name: str

    def __post_init__(self) -> None:
        check_name(self.name)
        ModelConfig(architecture=self.architecture)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    id: str
    name: str
    architecture: str
    sha256: str
    created_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelList:
    """The zoo, and one page of uploaded checkpoints."""

    architectures: tuple[Architecture, ...]
    items: tuple[ModelView, ...]
    next: str | None = None


@router.get("/models", responses=answer(ModelList))
def list_models(
    context: ContextDep, principal: Reader, cursor: str | None = None, limit: Limit = DEFAULT_PAGE
) -> Response:
    """The network zoo, and the checkpoints that were uploaded for it."""
    with context.database.read() as session:
        rows = repository.list_models(session, after=decode_cursor(cursor), limit=limit + 1)
    part = page(rows, limit, key=lambda row: row.id)
    items = tuple(_model_view(row) for row in part.items)
    return ContractResponse(ModelList(architectures=tuple(ARCHITECTURES.values()), items=items, next=part.next))


@router.post(
    "/models", status_code=201, openapi_extra=body_schema("ModelRequest"), responses=answer(ModelView, status=201)
)
def create_model(
    context: ContextDep, principal: ArtifactWriter, body: Annotated[ModelRequest, Depends(body_of(ModelRequest))]
) -> Response:
    """Register a checkpoint. Whether its tensors fit the architecture is seen when a search loads it."""
    check_stored(context, principal, "sha256", body.sha256)
    try:
        read_header(context.store.path(body.sha256))
    except ContractError as error:
        raise refused("sha256", str(error)) from None
    with context.database.write() as session:
        row = repository.add_model(session, name=body.name, architecture=body.architecture, artifact_sha256=body.sha256)
    return ContractResponse(_model_view(row), status_code=201)


def _model_view(row: CheckpointedModelRow) -> ModelView:
    return ModelView(
        id=row.id,
        name=row.name,
        architecture=row.architecture,
        sha256=row.artifact_sha256,
        created_at=iso(row.created_at),
    )
