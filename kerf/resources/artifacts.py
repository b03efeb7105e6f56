"""/v1/artifacts: files by their SHA-256."""

from __future__ import annotations

from pathlib import Path

import httpx

from kerf.files import Download, sha256_of
from kerf.operations import Request, operation, procedure
from kerf.resources.base import AsyncBound, Bound, SyncBound

_PATH = "/v1/artifacts/sha256/{digest}"
#: Gigabytes through a slow line.
TRANSFER_TIMEOUT_S = 600.0
_NOT_FOUND = 404


class ArtifactOperations(Bound):
    """Files that searches start from and that they make."""

    @operation("HEAD", _PATH)
    def is_stored(self, digest: str) -> Request[bool]:
        """Whether the server has the file with this SHA-256."""
        return Request(path={"digest": digest}, accept=(_NOT_FOUND,), read=_is_found)

    @operation("PUT", _PATH)
    def put(self, digest: str, path: Path) -> Request[None]:
        """Send a file whose SHA-256 is `digest`; see `upload`."""
        return Request(path={"digest": digest}, upload=path, timeout_s=TRANSFER_TIMEOUT_S, read=_nothing)

    @operation("GET", _PATH)
    def download(self, digest: str, target: str | Path) -> Request[None]:
        """Fetch a file into `target`, which appears when it is whole. Raises `DamagedDownload` where it is not."""
        return Request(
            path={"digest": digest},
            download=Download(Path(target), sha256=digest),
            timeout_s=TRANSFER_TIMEOUT_S,
            read=_nothing,
        )

    @procedure
    async def upload(self, path: str | Path) -> str:
        """Store a file by content and return its SHA-256. What the server already has is not sent again."""
        file = Path(path)
        digest = sha256_of(file)
        if not await self.session.call(ArtifactOperations.is_stored.prepare(digest)):
            await self.session.call(ArtifactOperations.put.prepare(digest, file))
        return digest


class Artifacts(ArtifactOperations, SyncBound):
    pass


class AsyncArtifacts(ArtifactOperations, AsyncBound):
    pass


def _is_found(response: httpx.Response) -> bool:
    return response.status_code != _NOT_FOUND


def _nothing(_: httpx.Response) -> None:
    return None
