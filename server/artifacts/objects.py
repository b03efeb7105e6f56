"""Artifacts in an object store (S3 and what speaks its language, Google Cloud, Azure), with a folder as a cache.

So servers and workers on several hosts share artifacts without a network file system. An object is named as a file of
the local store is: `ab/cd/<digest>`. It is there before the artifact is registered, and is checked against its SHA-256
whenever it is fetched.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from device_agent.contracts import ContractError
from server.artifacts.store import ArtifactStore
from server.errors import ApiError, Unavailable

if TYPE_CHECKING:
    from obstore.store import ObjectStore

log = structlog.get_logger(__name__)

#: A request that fails is repeated within this time; behind it are users and agents, who repeat theirs as well.
RETRY_TIMEOUT_S = 20.0
#: Files used within this time are not removed from the cache: somebody may be about to open them.
MIN_IDLE_S = 3600.0
#: The cache's size is looked at whenever each process has added this part of its largest size: it is a walk over files.
LOOK_EVERY = 1 / 16


class ArtifactDamaged(ApiError):
    """The object store gave back other bytes than were put in."""

    status, code = 500, "artifact_damaged"


class ObjectArtifactStore(ArtifactStore):
    """Artifacts as objects. What is read is kept in a folder, of which the files least recently used go first.

    Every method may raise `Unavailable` where the object store does not answer or refuses, with its reason.

    Args:
        objects: Where artifacts are kept.
        cache: The folder. Several processes of one host may share it.
        max_cache_bytes: About its largest size, not counting what was used within the last hour.
    """

    def __init__(self, objects: ObjectStore, cache: Path, max_cache_bytes: int) -> None:
        super().__init__(cache)
        self._objects = objects
        self._max_cache_bytes = max_cache_bytes
        self._looked = False
        self._placed_bytes = 0

    def path(self, sha256: str) -> Path:
        """The file in the cache, fetched where it is not there yet; no file where there is no such object."""
        path = super().path(sha256)
        try:
            os.utime(path)
        except FileNotFoundError:
            self._fetch(sha256, path)
        return path

    def has(self, sha256: str) -> bool:
        """Whether the object is there; that it is in this host's cache does not count."""
        import obstore

        name = self._name(sha256)
        with _answers():
            try:
                obstore.head(self._objects, name)
            except FileNotFoundError:
                return False
        return True

    def place(self, partial: Path, sha256: str) -> None:
        import obstore

        with _answers():
            try:
                obstore.put(self._objects, self._name(sha256), partial)
            except FileNotFoundError as error:
                # The bucket went away.
                raise ValueError(_first_line(error)) from None
        self._keep(partial, sha256)

    def _name(self, sha256: str) -> str:
        return super().path(sha256).relative_to(self._root).as_posix()

    def _fetch(self, sha256: str, path: Path) -> None:
        import obstore

        with self._incoming() as partial:
            found = hashlib.sha256()
            with _answers(), partial.open("xb") as file:
                try:
                    for part in obstore.get(self._objects, self._name(sha256)).stream():
                        found.update(part)
                        file.write(part)
                except FileNotFoundError:
                    return
            if found.hexdigest() != sha256:
                raise ArtifactDamaged(
                    f"the object {self._name(sha256)} has the SHA-256 {found.hexdigest()}: it was changed or damaged "
                    "in the object store. Restore it, or delete it and upload the file again"
                )
            self._keep(partial, sha256)

    def _keep(self, partial: Path, sha256: str) -> None:
        """Put a file into the cache, and look now and then whether that has grown too large."""
        self._placed_bytes += partial.stat().st_size
        super().place(partial, sha256)
        if not self._looked or self._placed_bytes > self._max_cache_bytes * LOOK_EVERY:
            self._looked, self._placed_bytes = True, 0
            self._evict()

    def _evict(self) -> None:
        files = [(stat.st_mtime, stat.st_size, path) for path, stat in _files_below(self._root)]
        excess = sum(size for _, size, _ in files) - self._max_cache_bytes
        newest = time.time() - MIN_IDLE_S
        for used, size, path in sorted(files):
            if excess <= 0 or used > newest:
                return
            path.unlink(missing_ok=True)
            excess -= size


def connect(url: str) -> ObjectStore:
    """The object store at `url`, for example `s3://bucket/prefix`, with credentials from the environment.

    Raises `ContractError` where it cannot be used or does not answer, or obstore is not installed.
    """
    try:
        import obstore
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError:
        raise ContractError(
            f"KERF_ARTIFACTS_URL is {url!r}, but obstore is not installed: pip install 'kerf[objects]'"
        ) from None
    try:
        # The variables of each store (AWS_ENDPOINT_URL, AWS_ALLOW_HTTP, ...) are read by the library.
        objects = from_url(url, retry_config={"retry_timeout": timedelta(seconds=RETRY_TIMEOUT_S)})
        # Later, a bucket that is not there would look like an artifact that is not there.
        next(iter(obstore.list(objects, chunk_size=1)), None)
    except (BaseError, ValueError, OSError) as error:
        raise ContractError(f"KERF_ARTIFACTS_URL={url!r} cannot be used: {_first_line(error)}") from None
    return objects


@contextmanager
def _answers() -> Iterator[None]:
    """Turn what the library raises, but for a missing object, into `Unavailable`."""
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError:
        raise
    except (BaseError, PermissionError, ValueError) as error:
        log.warning("artifacts_unavailable", error=_first_line(error))
        raise Unavailable(
            f"the object store of the artifacts does not do what it should: {_first_line(error)}",
            code="artifacts_unavailable",
        ) from error


def _files_below(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The cached files; those that another process removes meanwhile are left out."""
    for path in root.glob("[0-9a-f][0-9a-f]/*/*"):
        try:
            yield path, path.stat()
        except FileNotFoundError:
            continue


def _first_line(error: BaseException) -> str:
    """Without the library's dump of its own state."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
