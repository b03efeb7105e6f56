"""Files under their SHA-256 in a directory. A file is there whole or not at all, and never changes."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from server.artifacts.repository import insert_artifact
from server.database import Database
from server.errors import PayloadTooLarge, Unprocessable

_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 1 << 20


class ArtifactStore:
    """A directory of files `ab/cd/<digest>`. Several processes may share it: equal content is one file."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, sha256: str) -> Path:
        """Where the file lies, or would. Raises `Unprocessable` for what is no SHA-256."""
        if not _DIGEST.fullmatch(sha256):
            raise Unprocessable(f"{sha256!r} is no SHA-256: write 64 lower-case hex digits")
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
        incoming = self._root / "incoming"
        incoming.mkdir(parents=True, exist_ok=True)
        with Upload(self, incoming / secrets.token_hex(16), max_bytes) as upload:
            yield upload


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
        self._partial.unlink(missing_ok=True)

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
        target = self._store.path(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._partial.replace(target)
        return digest


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk
