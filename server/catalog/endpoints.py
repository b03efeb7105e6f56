"""/v1/models and /v1/datasets: what a search can start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from device_agent.contracts import ContractError
from search.data.dataset import DataError
from search.data.zip_check import check_image_zip
from search.domain.architectures import ARCHITECTURES, Architecture
from search.domain.config import ModelConfig
from server.artifacts.repository import has_artifact
from server.catalog import repository
from server.catalog.safetensors import read_header
from server.context import ArtifactWriter, Context, ContextDep, Reader
from server.errors import Unprocessable
from server.models import CheckpointedModelRow, DatasetRow
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
    iso,
    page,
)

router = APIRouter(prefix="/v1", tags=["catalog"], responses=PROBLEMS)

MAX_NAME_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """Weights for a zoo architecture: a safetensors file, uploaded as an artifact before."""

    architecture: str
    sha256: str
    name: str

    def __post_init__(self) -> None:
        _check_name(self.name)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRequest:
    """Zips of class folders of images, uploaded as artifacts before: their SHA-256."""

    name: str
    train: str
    test: str

    def __post_init__(self) -> None:
        _check_name(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetView:
    id: str
    name: str
    train: str
    test: str
    class_names: tuple[str, ...]
    num_train: int
    num_test: int
    created_at: str | None


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
    _check_stored(context, "sha256", body.sha256)
    try:
        read_header(context.store.path(body.sha256))
    except ContractError as error:
        raise _refused("sha256", str(error)) from None
    with context.database.write() as session:
        row = repository.add_model(session, name=body.name, architecture=body.architecture, artifact_sha256=body.sha256)
    return ContractResponse(_model_view(row), status_code=201)


@router.get("/datasets")
def list_datasets(
    context: ContextDep, principal: Reader, cursor: str | None = None, limit: Limit = DEFAULT_PAGE
) -> Response:
    with context.database.read() as session:
        rows = repository.list_datasets(session, after=decode_cursor(cursor), limit=limit + 1)
    part = page(rows, limit, key=lambda row: row.id)
    return ContractResponse(Page(items=tuple(_dataset_view(row) for row in part.items), next=part.next))


@router.post(
    "/datasets", status_code=201, openapi_extra=body_schema("DatasetRequest"), responses=answer(DatasetView, status=201)
)
def create_dataset(
    context: ContextDep, principal: ArtifactWriter, body: Annotated[DatasetRequest, Depends(body_of(DatasetRequest))]
) -> Response:
    """Check and register a data set. A damaged zip, an empty class folder or an unsafe name is refused with 422."""
    _check_stored(context, "train", body.train)
    _check_stored(context, "test", body.test)
    with context.database.read() as session:
        known = repository.find_dataset(session, name=body.name, train_sha256=body.train, test_sha256=body.test)
    if known is not None:
        return ContractResponse(_dataset_view(known), status_code=201)
    field = "train"
    try:
        train = check_image_zip(context.store.path(body.train))
        field = "test"
        test = check_image_zip(context.store.path(body.test), train.class_names)
    except DataError as error:
        raise _refused(field, str(error).replace(f"{context.store.path(getattr(body, field)).parent}/", "")) from None
    with context.database.write() as session:
        row = repository.add_dataset(
            session,
            name=body.name,
            train_sha256=body.train,
            test_sha256=body.test,
            class_names=train.class_names,
            num_train=train.num_images,
            num_test=test.num_images,
        )
    return ContractResponse(_dataset_view(row), status_code=201)


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= MAX_NAME_CHARS:
        raise ContractError(f"name must have 1 to {MAX_NAME_CHARS} characters, not {len(name)}")


def _check_stored(context: Context, field: str, sha256: str) -> None:
    with context.database.read() as session:
        if not context.store.has(sha256) or not has_artifact(session, sha256):
            raise _refused(field, f"no artifact {sha256} is stored: upload it to /v1/artifacts/sha256/{sha256} first")


def _refused(field: str, message: str) -> Unprocessable:
    return Unprocessable(f"{field}: {message}", errors=[{"field": field, "message": message}])


def _model_view(row: CheckpointedModelRow) -> ModelView:
    return ModelView(
        id=row.id,
        name=row.name,
        architecture=row.architecture,
        sha256=row.artifact_sha256,
        created_at=iso(row.created_at),
    )


def _dataset_view(row: DatasetRow) -> DatasetView:
    return DatasetView(
        id=row.id,
        name=row.name,
        train=row.train_sha256,
        test=row.test_sha256,
        class_names=tuple(row.class_names),
        num_train=row.num_train,
        num_test=row.num_test,
        created_at=iso(row.created_at),
    )
