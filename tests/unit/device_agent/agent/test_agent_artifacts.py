from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from device_agent.artifacts import ArtifactCache
from device_agent.errors import ArtifactError


class Source:
    """Artifacts by hash, and which were asked for from where; `breaks_after` ends a download early."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = {hashlib.sha256(c).hexdigest(): c for c in contents}
        self.asked: list[tuple[str, int]] = []
        self.breaks_after: int | None = None
        self.knows_ranges = True

    def open(self, sha256: str, offset: int) -> AbstractContextManager[tuple[int, Iterator[bytes]]]:
        @contextmanager
        def stream() -> Iterator[tuple[int, Iterator[bytes]]]:
            self.asked.append((sha256, offset))
            first = offset if self.knows_ranges else 0
            content = self.contents[sha256][first:]
            if self.breaks_after is not None:
                content = content[: self.breaks_after]
            yield first, iter([content[i : i + 3] for i in range(0, len(content), 3)])

        return stream()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_downloaded_once_and_then_kept(tmp_path: Path) -> None:
    source, cache = Source(b"0123456789"), ArtifactCache(tmp_path, 100)
    for _ in range(2):
        path = cache.path_of(digest(b"0123456789"), 10, source.open)
        assert path.read_bytes() == b"0123456789"
    assert len(source.asked) == 1


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_download_goes_on_where_it_ended(tmp_path: Path, knows_ranges: bool) -> None:
    source, cache = Source(b"0123456789"), ArtifactCache(tmp_path, 100)
    source.breaks_after = 6
    with pytest.raises(ArtifactError, match="ended after 6 of 10 bytes"):
        cache.path_of(digest(b"0123456789"), 10, source.open)
    source.breaks_after, source.knows_ranges = None, knows_ranges
    assert cache.path_of(digest(b"0123456789"), 10, source.open).read_bytes() == b"0123456789"
    assert [offset for _, offset in source.asked] == [0, 6]


@pytest.mark.parametrize("lie", [b"012345678X", b"0123456789 and much more"])
def test_other_bytes_than_promised_never_enter_the_cache(tmp_path: Path, lie: bytes) -> None:
    source, cache = Source(), ArtifactCache(tmp_path, 100)
    source.contents[digest(b"0123456789")] = lie
    with pytest.raises(ArtifactError, match="promised"):
        cache.path_of(digest(b"0123456789"), 10, source.open)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_rotted_on_the_disk_is_fetched_again(tmp_path: Path) -> None:
    source, cache = Source(b"0123456789"), ArtifactCache(tmp_path, 100)
    cache.path_of(digest(b"0123456789"), 10, source.open).write_bytes(b"0123456780")
    assert cache.path_of(digest(b"0123456789"), 10, source.open).read_bytes() == b"0123456789"
    assert len(source.asked) == 2


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    contents = [bytes([65 + i]) * 10 for i in range(4)]
    source, cache = Source(*contents), ArtifactCache(tmp_path, 30)
    for moment, content in enumerate(contents[:3]):
        os.utime(cache.path_of(digest(content), 10, source.open), (moment, moment))
    cache.path_of(digest(contents[0]), 10, source.open)
    cache.path_of(digest(contents[3]), 10, source.open)
    assert {p.name for p in tmp_path.iterdir()} == {digest(contents[i]) for i in (0, 2, 3)}


def test_one_artifact_may_exceed_the_limit(tmp_path: Path) -> None:
    source, cache = Source(b"0123456789"), ArtifactCache(tmp_path, 5)
    assert cache.path_of(digest(b"0123456789"), 10, source.open).exists()


@pytest.mark.parametrize("name", ["../../etc/passwd", "ABCDEF", "", "0" * 63, "0" * 64 + "\n"])
def test_a_name_that_is_no_hash_touches_nothing(tmp_path: Path, name: str) -> None:
    source = Source()
    with pytest.raises(ArtifactError, match="not a SHA-256"):
        ArtifactCache(tmp_path, 5).path_of(name, 10, source.open)
    assert source.asked == []


def test_clear_gives_the_disk_back(tmp_path: Path) -> None:
    source, cache = Source(b"0123456789"), ArtifactCache(tmp_path, 100)
    cache.path_of(digest(b"0123456789"), 10, source.open)
    cache.clear()
    assert list(tmp_path.iterdir()) == []
