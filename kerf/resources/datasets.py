"""/v1/datasets: images that searches train and test on."""

from __future__ import annotations

from pathlib import Path

from kerf.operations import Request, operation, procedure
from kerf.resources.artifacts import ArtifactOperations
from kerf.resources.base import MAX_PAGE, AsyncBound, Bound, Items, Page, SyncBound, collect
from kerf.schemas import DatasetView


class DatasetOperations(Bound):
    """Registered data sets."""

    @operation("GET", "/v1/datasets")
    def page(self, *, limit: int = MAX_PAGE, cursor: str | None = None) -> Request[Page[DatasetView]]:
        """One page of the data sets."""
        return Request(query={"limit": limit, "cursor": cursor})

    @procedure
    async def list(self, *, limit: int = MAX_PAGE, cursor: str | None = None) -> Items[DatasetView]:
        """Up to `limit` data sets."""
        return await collect(self.session, DatasetOperations.page.prepare, limit, cursor)

    @operation("POST", "/v1/datasets", is_repeatable=True)
    def create(self, *, name: str, train: str, test: str) -> Request[DatasetView]:
        """Check and register files that were uploaded before: their SHA-256. Repeating it gives the same data set."""
        return Request(json={"name": name, "train": train, "test": test})

    @procedure
    async def upload(self, name: str, *, train: str | Path, test: str | Path) -> DatasetView:
        """Upload and register two zips of class folders of images. `train` and `test` of what is returned are what a
        config names.
        """
        digests = [await ArtifactOperations.upload.start(self, path) for path in (train, test)]
        return await self.session.call(DatasetOperations.create.prepare(name=name, train=digests[0], test=digests[1]))


class Datasets(DatasetOperations, SyncBound):
    pass


class AsyncDatasets(DatasetOperations, AsyncBound):
    pass
