"""Files of network tasks, kept by their SHA-256.

A file enters the cache only whole and with the right hash, and its hash is checked again at every use: flash wears out,
and a network that is silently another one would spoil a front.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from device_agent.errors import ArtifactError
from device_agent.files import TEMPORARY_SUFFIX, private_directory
from device_agent.log import log_event

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")

#: Opens an artifact from an offset on: gives the offset that is really sent, and the chunks.
OpenArtifact = Callable[[str, int], AbstractContextManager[tuple[int, Iterator[bytes]]]]


class ArtifactCache:
    """Artifacts on the disk, at most `limit_bytes` of them (the one in use may exceed it). Not thread-safe."""

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self._directory = private_directory(directory)
        self._limit_bytes = limit_bytes

    def path_of(self, sha256: str, size_bytes: int, open_artifact: OpenArtifact) -> Path:
        """The path of the artifact, downloaded first if need be. A broken download is continued at its end.

        Raises `ArtifactError` where the bytes do not have the promised size and hash, `OSError` where the disk fails,
        and what `open_artifact` raises.
        """
        if not _SHA256.fullmatch(sha256):
            raise ArtifactError(f"{sha256!r} is not a SHA-256 in lower-case hex")
        path = self._directory / sha256
        if path.exists():
            if _sha256_of(path) == sha256:
                os.utime(path)  # The least recently used goes first.
                return path
            log_event(logger, logging.WARNING, "artifact_damaged", artifact_sha256=sha256)
            path.unlink()
        self._make_room(size_bytes)
        self._download(path, sha256, size_bytes, open_artifact)
        return path

    def clear(self) -> None:
        """Delete everything, to give the disk back."""
        for path in self._directory.iterdir():
            path.unlink(missing_ok=True)

    def _download(self, path: Path, sha256: str, size_bytes: int, open_artifact: OpenArtifact) -> None:
        partial = path.with_name(path.name + TEMPORARY_SUFFIX)
        offset = partial.stat().st_size if partial.exists() else 0
        if offset >= size_bytes:
            partial.unlink(missing_ok=True)
            offset = 0
        with open_artifact(sha256, offset) as (first, chunks), partial.open("r+b" if first else "wb") as file:
            file.seek(first)
            for chunk in chunks:
                file.write(chunk)
                if file.tell() > size_bytes:
                    break
        received_bytes = partial.stat().st_size
        if received_bytes < size_bytes:
            # What is there is good: the next attempt goes on from here.
            raise ArtifactError(f"the artifact {sha256} ended after {received_bytes} of {size_bytes} bytes")
        if received_bytes > size_bytes or _sha256_of(partial) != sha256:
            partial.unlink()
            raise ArtifactError(f"the artifact {sha256} did not have the promised {size_bytes} bytes or hash")
        os.replace(partial, path)

    def _make_room(self, size_bytes: int) -> None:
        files = sorted((f for f in self._directory.iterdir()), key=lambda f: f.stat().st_mtime_ns)
        total_bytes = sum(f.stat().st_size for f in files)
        for file in files:
            if total_bytes + size_bytes <= self._limit_bytes:
                return
            total_bytes -= file.stat().st_size
            file.unlink()
            log_event(logger, logging.INFO, "artifact_evicted", artifact_sha256=file.name)


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
