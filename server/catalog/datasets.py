"""/v1/datasets: the data sets that searches can name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from device_agent.contracts import ContractError, encode
from search.data.check import DataContents
from search.data.check_process import check_in_process
from search.data.dataset import DataError
from search.data.source import DataFormat
from search.domain.config import DIGITS
from server.catalog import repository
from server.catalog.naming import check_name, check_stored, refused
from server.context import ArtifactWriter, Context, ContextDep, Reader
from server.errors import NotFound
from server.models import DatasetRow
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
    page_answer,
)

router = APIRouter(prefix="/v1/datasets", tags=["catalog"], responses=PROBLEMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRequest:
    """Zips of class folders, `.npz` or Parquet files, uploaded as artifacts before: their SHA-256. Without a test set,
    searches split one off the training set.
    """

    name: str
    train: str
    test: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.name == DIGITS:
            raise ContractError("name 'digits' is that of the digits which come with Kerf: choose another one")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetView:
    """A data set. Counts are images of each class, in the order of the names, which is that of the labels.

    With the targets of a task of one's own instead of labels there are no classes; `target_shape` is that of one of
    them.
    """

    id: str
    name: str
    train: str
    test: str | None
    class_names: tuple[str, ...]
    num_train: int
    num_test: int
    created_at: str | None
    train_format: DataFormat
    train_class_counts: tuple[int, ...]
    test_class_counts: tuple[int, ...] = ()
    target_shape: tuple[int, ...] | None = None


@router.get("", responses=page_answer(DatasetView))
def list_datasets(
    context: ContextDep, principal: Reader, cursor: str | None = None, limit: Limit = DEFAULT_PAGE
) -> Response:
    """The data sets that were uploaded, oldest first."""
    with context.database.read() as session:
        rows = repository.list_datasets(session, after=decode_cursor(cursor), limit=limit + 1)
    part = page(rows, limit, key=lambda row: row.id)
    return ContractResponse(Page(items=tuple(_view(row) for row in part.items), next=part.next))


@router.get("/{dataset_id}", responses=answer(DatasetView))
def get_dataset(dataset_id: str, context: ContextDep, principal: Reader) -> Response:
    """One data set by its id."""
    with context.database.read() as session:
        row = session.get(DatasetRow, dataset_id)
    if row is None:
        raise NotFound(f"there is no data set {dataset_id}: see /v1/datasets")
    return ContractResponse(_view(row))


@router.post(
    "", status_code=201, openapi_extra=body_schema("DatasetRequest"), responses=answer(DatasetView, status=201)
)
def create_dataset(
    context: ContextDep, principal: ArtifactWriter, body: Annotated[DatasetRequest, Depends(body_of(DatasetRequest))]
) -> Response:
    """Check and register a data set. What is damaged, unsafe or too large is refused with 422.

    Checked are all names, sizes, labels and checksums, and that 1000 images can be decoded; a search decodes all.
    """
    check_stored(context, principal, "train", body.train)
    if body.test is not None:
        check_stored(context, principal, "test", body.test)
    with context.database.read() as session:
        known = repository.find_dataset(session, name=body.name, train_sha256=body.train, test_sha256=body.test)
    if known is not None:
        return ContractResponse(_view(known), status_code=201)
    train, test = checked_contents(context, body.train, body.test, "")
    with context.database.write() as session:
        row = repository.add_dataset(
            session,
            name=body.name,
            train_sha256=body.train,
            test_sha256=body.test,
            class_names=train.class_names,
            num_train=train.num_images,
            num_test=0 if test is None else test.num_images,
            contents={"train": encode(train), "test": None if test is None else encode(test)},
        )
    return ContractResponse(_view(row), status_code=201)


def checked_contents(
    context: Context, train: str, test: str | None, field: str
) -> tuple[DataContents, DataContents | None]:
    """What two stored artifacts hold. Raises `Unprocessable` naming `field` and train or test."""
    role = "train"
    try:
        train_contents = check_in_process(context.store.path(train))
        if test is None:
            return train_contents, None
        role = "test"
        test_contents = check_in_process(context.store.path(test), train_contents.class_names)
    except DataError as error:
        raise refused(f"{field}{role}", str(error)) from None
    if test_contents.target_shape != train_contents.target_shape:
        raise refused(
            f"{field}test",
            f"targets have the shape {test_contents.target_shape}, those of the training set "
            f"{train_contents.target_shape}: save both alike",
        )
    return train_contents, test_contents


def _view(row: DatasetRow) -> DatasetView:
    train, test = row.contents["train"], row.contents["test"]
    shape = train["target_shape"]
    return DatasetView(
        id=row.id,
        name=row.name,
        train=row.train_sha256,
        test=row.test_sha256,
        class_names=tuple(row.class_names),
        num_train=row.num_train,
        num_test=row.num_test,
        created_at=iso(row.created_at),
        train_format=DataFormat(train["format"]),
        train_class_counts=tuple(train["class_counts"]),
        test_class_counts=() if test is None else tuple(test["class_counts"]),
        target_shape=None if shape is None else tuple(shape),
    )
