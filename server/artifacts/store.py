"""Files under their SHA-256 in a directory. A file is there whole or not at all, and never changes.

`open_store` gives the store that the settings ask for: this one, or an object store with such a directory as its cache.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import structlog

from server.artifacts.repository import insert_artifact
from server.database import Database
from server.errors import PayloadTooLarge, Unprocessable
from server.settings import Settings

log = structlog.get_logger(__name__)

#: A file on its way in that nobody wrote to for so long is of a process that was killed.
ABANDONED_S = 24 * 3600.0

_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 1 << 20


def check_digest(sha256: str) -> None:
    """Raise `Unprocessable` for what is no SHA-256."""
    if not _DIGEST.fullmatch(sha256):
        raise Unprocessable(f"{sha256!r} is no SHA-256: write 64 lower-case hex digits")


class ArtifactStore:
    """A directory of files `ab/cd/<digest>`. Several processes may share it: equal content is one file."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, sha256: str) -> Path:
        """Where the file lies, or would. Raises `Unprocessable` for what is no SHA-256."""
        check_digest(sha256)
        return self._root / sha256[:2] / sha256[2:4] / sha256

    def has(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def put_bytes(self, database: Database, data: bytes, *, created_by: str) -> str:
        """Store bytes and register them; returns their SHA-256."""
        with self.upload() as upload:
            upload.write(data)
            digest = upload.commit(None)
        with database.write() as session:
            insert_artifact(session, sha256=digest, size_bytes=len(data), created_by=created_by)
        return digest

    def put_file(self, database: Database, source: Path, *, created_by: str) -> str:
        """Store a file and register it; returns its SHA-256."""
        with source.open("rb") as file, self.upload() as upload:
            for chunk in _chunks(file):
                upload.write(chunk)
            digest = upload.commit(None)
            size_bytes = upload.size_bytes
        with database.write() as session:
            insert_artifact(session, sha256=digest, size_bytes=size_bytes, created_by=created_by)
        return digest

    @contextmanager
    def upload(self, max_bytes: int | None = None) -> Iterator[Upload]:
        """Receive a file piece by piece. Without `commit`, nothing stays."""
        with self._incoming() as partial, Upload(self, partial, max_bytes) as upload:
            yield upload

    def place(self, partial: Path, sha256: str) -> None:
        """Move a whole file, which is on the disk, to where `path` finds it."""
        target = ArtifactStore.path(self, sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(target)

    def remove_abandoned(self) -> int:
        """Remove what killed processes left of files on their way in; returns how many files that were."""
        now_s, sizes = time.time(), []
        for path in self._root.glob("incoming/*"):
            # Its process, or another one that looks too, may be quicker.
            with suppress(FileNotFoundError):
                found = path.stat()
                if now_s - found.st_mtime > ABANDONED_S:
                    path.unlink()
                    sizes.append(found.st_size)
        if sizes:
            log.warning("abandoned_uploads_removed", files=len(sizes), bytes=sum(sizes))
        return len(sizes)

    @contextmanager
    def _incoming(self) -> Iterator[Path]:
        """A name for a file on its way in; what is still there at the end is removed."""
        incoming = self._root / "incoming"
        incoming.mkdir(parents=True, exist_ok=True)
        partial = incoming / secrets.token_hex(16)
        try:
            yield partial
        finally:
            partial.unlink(missing_ok=True)


def open_store(settings: Settings) -> ArtifactStore:
    """The store of `artifacts_url`, or the folder in `data_dir`. Raises `ContractError` for a URL that is no use."""
    if not settings.artifacts_url:
        return ArtifactStore(settings.artifacts_dir)
    from server.artifacts.objects import ObjectArtifactStore, connect

    objects = connect(settings.artifacts_url)
    return ObjectArtifactStore(objects, settings.artifacts_dir, settings.artifacts_cache_bytes)


class Upload:
    """A file on its way in."""

    def __init__(self, store: ArtifactStore, partial: Path, max_bytes: int | None) -> None:
        self._store = store
        self._partial = partial
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self._file: BinaryIO = partial.open("xb")
        self.size_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        """Add bytes. Raises `PayloadTooLarge` above the limit."""
        self.size_bytes += len(data)
        if self._max_bytes is not None and self.size_bytes > self._max_bytes:
            raise PayloadTooLarge(f"the artifact is larger than {self._max_bytes} bytes: see KERF_MAX_ARTIFACT_BYTES")
        self._hash.update(data)
        self._file.write(data)

    def commit(self, expected_sha256: str | None) -> str:
        """Move the file to its place; returns its SHA-256. Raises `Unprocessable` where it is not the expected one."""
        digest = self._hash.hexdigest()
        if expected_sha256 is not None and digest != expected_sha256:
            raise Unprocessable(
                f"the content's SHA-256 is {digest}, not {expected_sha256}: send it again", code="digest_mismatch"
            )
        self._file.flush()
        os.fsync(self._file.fileno())
        self._store.place(self._partial, digest)
        return digest


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk
