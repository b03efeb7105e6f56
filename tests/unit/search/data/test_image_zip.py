from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from search.data.dataset import DataError
from search.data.reading import read_data
from tests.fuzz.files import CORPUS
from tests.unit.search.data.data_files import image_bytes, write_zip

SHAPE = (3, 4, 6)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    files = {
        "data/dog/2.png": image_bytes(40),
        "data/dog/1.png": image_bytes(30),
        "data/cat/a.jpg": image_bytes(10, kind="JPEG"),
        "data/cat/.DS_Store": b"x",
        "__MACOSX/data/cat/a.jpg": b"x",
    }
    return write_zip(tmp_path / "good.zip", files)


def test_reads_folders_as_classes_in_alphabetical_order(good: Path) -> None:
    data = read_data(good, image_shape=SHAPE)

    assert data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [0, 1, 1]
    assert data.image_shape == SHAPE
    assert data.images[1:, 0, 0].tolist() == [[30, 0, 225], [40, 0, 215]]


def test_resizes_and_turns_grey(good: Path) -> None:
    data = read_data(good, image_shape=(1, 8, 8))

    assert data.images.shape == (3, 8, 8, 1)
    assert data.images[1].std() == 0


def test_labels_follow_the_expected_class_names(good: Path) -> None:
    data = read_data(good, image_shape=SHAPE, class_names=("dog", "cat"))

    assert data.labels.tolist() == [1, 0, 0]


def test_cache_gives_the_same_data_without_decoding(good: Path, tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    first = read_data(good, image_shape=SHAPE, cache_dir=tmp_path / "cache")
    cached = list((tmp_path / "cache").iterdir())
    second = read_data(good, image_shape=SHAPE, class_names=("dog", "cat"), cache_dir=tmp_path / "cache")

    assert len(cached) == 1
    assert progress == []
    assert np.array_equal(first.images, second.images)
    assert second.labels.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"dog/1.png": b"no image"}, r"'dog/1\.png' cannot be decoded"),
        ({"dog/1.png": image_bytes(1)[:45]}, r"'dog/1\.png' cannot be decoded"),
        ({"dog/1.png": image_bytes(1), "cat/": b""}, "class folder 'cat' has no images"),
        ({"../dog/1.png": image_bytes(1)}, "leads out of the archive"),
        ({"/dog/1.png": image_bytes(1)}, "leads out of the archive"),
        ({"dog/1.png": image_bytes(1), "dog/notes.txt": b"x"}, r"'dog/notes\.txt' is no image"),
        ({"1.png": image_bytes(1)}, "one folder of images for each class"),
        ({"a/dog/1.png": image_bytes(1), "b/cat/1.png": image_bytes(1)}, "side by side"),
        ({}, "found no images"),
    ],
)
def test_names_what_is_wrong(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    path = write_zip(tmp_path / "bad.zip", files)

    with pytest.raises(DataError, match=message):
        read_data(path, image_shape=SHAPE, cache_dir=tmp_path / "cache")

    assert not (tmp_path / "cache").exists()


def test_a_file_without_a_name_is_refused(tmp_path: Path) -> None:
    """Python's library cannot write one, so it is one that the fuzzer made."""
    with pytest.raises(DataError, match="a file in it has no name: make the zip again"):
        read_data(CORPUS / "data" / "zip-entry-without-a-name", image_shape=SHAPE, cache_dir=tmp_path / "cache")


def test_refuses_damaged_files(tmp_path: Path, good: Path) -> None:
    content = good.read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    flipped = bytearray(content)
    flipped[60] ^= 0xFF
    (tmp_path / "flipped.zip").write_bytes(bytes(flipped))

    for name in ("cut.zip", "flipped.zip", "absent.zip"):
        with pytest.raises(DataError, match=name):
            read_data(tmp_path / name, image_shape=SHAPE)


def test_refuses_symbolic_links(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("dog/1.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")

    with pytest.raises(DataError, match="symbolic link"):
        read_data(tmp_path / "link.zip", image_shape=SHAPE)


def test_classes_must_be_those_of_the_training_set(good: Path) -> None:
    with pytest.raises(DataError, match=r"missing \['bird'\], unexpected \['dog'\]"):
        read_data(good, image_shape=SHAPE, class_names=("bird", "cat"))


def test_network_must_take_grey_or_colour(good: Path) -> None:
    with pytest.raises(DataError, match="1 or 3 channels"):
        read_data(good, image_shape=(4, 8, 8))
