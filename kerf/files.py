"""Files that are sent and received in parts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, TypeAlias

from kerf.errors import DamagedDownload

_CHUNK_BYTES = 1 << 20


#: Called with a file's name and its bytes, if they are known, around each attempt to send or fetch it; what it gives is
#: called with the bytes of each part.
OnTransfer: TypeAlias = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]


def shown_nowhere(name: str, size_bytes: int | None) -> AbstractContextManager[Callable[[int], None]]:
    """An `OnTransfer` that tells nobody."""
    return nullcontext(lambda part_bytes: None)


def chunks(path: Path, tell: Callable[[int], None] = lambda part_bytes: None) -> Iterator[bytes]:
    """The content of a file, part by part; `tell` is called with the bytes of each that was taken."""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
            tell(len(chunk))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    for chunk in chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


class Download:
    """Writes what arrives beside `target`, and moves it there when it is whole. `begin` starts anew.

    `commit` raises `DamagedDownload` where a `sha256` was given and the content has another.
    """

    def __init__(self, target: Path, sha256: str | None = None) -> None:
        self.size_bytes = 0
        self._target = target
        self._expected = sha256
        self._partial = target.with_name(target.name + ".part")
        self._digest = hashlib.sha256()
        self._file: IO[bytes] | None = None

    @property
    def name(self) -> str:
        return self._target.name

    def begin(self) -> None:
        self.abort()
        self._digest, self.size_bytes = hashlib.sha256(), 0
        self._file = self._partial.open("wb")

    def write(self, chunk: bytes) -> None:
        assert self._file is not None
        self._digest.update(chunk)
        self.size_bytes += self._file.write(chunk)

    def commit(self) -> None:
        assert self._file is not None
        self._file.close()
        self._file = None
        if self._expected not in (None, self._digest.hexdigest()):
            self.abort()
            raise DamagedDownload(f"the artifact arrived damaged: {self._expected} does not match its content")
        self._partial.replace(self._target)

    def abort(self) -> None:
        """Leave nothing half-written behind."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._partial.unlink(missing_ok=True)
