"""/v1/datasets: images that searches train and test on."""

from __future__ import annotations

from pathlib import Path

from kerf.operations import Request, operation, procedure
from kerf.resources.artifacts import ArtifactOperations
from kerf.resources.base import MAX_PAGE, AsyncBound, Bound, Items, Page, SyncBound, collect
from kerf.schemas import DatasetView

#: Reading the largest data sets takes a server minutes.
CHECK_TIMEOUT_S = 1300.0


class DatasetOperations(Bound):
    """Registered data sets."""

    @operation("GET", "/v1/datasets")
    def page(self, *, limit: int = MAX_PAGE, cursor: str | None = None) -> Request[Page[DatasetView]]:
        """One page of the data sets."""
        return Request(query={"limit": limit, "cursor": cursor})

    @procedure
    async def list(self, *, limit: int = MAX_PAGE, cursor: str | None = None) -> Items[DatasetView]:
        """Up to `limit` data sets, oldest first."""
        return await collect(self.session, DatasetOperations.page.prepare, limit, cursor)

    @operation("GET", "/v1/datasets/{dataset_id}")
    def get(self, dataset_id: str) -> Request[DatasetView]:
        """One data set."""
        return Request(path={"dataset_id": dataset_id})

    @operation("POST", "/v1/datasets", is_repeatable=True)
    def create(self, *, name: str, train: str, test: str | None = None) -> Request[DatasetView]:
        """Check and register files that were uploaded before: their SHA-256. Repeating it gives the same data set.

        Without a test set, searches split one off the training set.
        """
        return Request(json={"name": name, "train": train, "test": test}, timeout_s=CHECK_TIMEOUT_S)

    @procedure
    async def upload(self, name: str, *, train: str | Path, test: str | Path | None = None) -> DatasetView:
        """Upload and register a zip of class folders, an `.npz` or a Parquet file, and another of the test set if there
        is one. `name` is what a config names as `dataset.name`.
        """
        train_sha256 = await ArtifactOperations.upload.start(self, train)
        test_sha256 = None if test is None else await ArtifactOperations.upload.start(self, test)
        created = DatasetOperations.create.prepare(name=name, train=train_sha256, test=test_sha256)
        return await self.session.call(created)


class Datasets(DatasetOperations, SyncBound):
    pass


class AsyncDatasets(DatasetOperations, AsyncBound):
    pass
