"""Folder, zip, `.npz` and Parquet give the same data; what is wrong in each is named."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from search.data.check import check_data
from search.data.dataset import DataError
from search.data.folder import pack_folder
from search.data.reading import data_digest, detect_format, read_data
from search.data.source import DataFormat
from tests.unit.search.data.data_files import image_bytes, write_folder, write_npz, write_parquet, write_zip

SHAPE = (3, 4, 6)
FILES = {"cat/1.png": image_bytes(10), "cat/2.png": image_bytes(20), "dog/1.png": image_bytes(30)}
PIXELS = np.stack([np.full((4, 6, 3), (v, 0, 255 - v), dtype=np.uint8) for v in (10, 20, 30)])
LABELS = [0, 0, 1]
HUGGING_FACE = {b"huggingface": json.dumps({"info": {"features": {"label": {"names": ["cat", "dog"]}}}}).encode()}


def written(form: str, path: Path) -> Path:
    encoded = list(FILES.values())
    if form == "folder":
        return write_folder(path / "data", FILES)
    if form == "zip":
        return write_zip(path / "data", FILES)
    if form == "npz":
        return write_npz(path / "data", images=PIXELS, labels=LABELS, class_names=["cat", "dog"])
    if form == "npz of floats":
        return write_npz(path / "data", images=PIXELS / 255, labels=LABELS, class_names=["cat", "dog"])
    if form == "parquet":
        return write_parquet(path / "data", {"image": encoded, "label": ["cat", "cat", "dog"]})
    images = [{"bytes": content, "path": None} for content in encoded]
    return write_parquet(path / "data", {"img": images, "label": LABELS, "other": [1, 2, 3]}, HUGGING_FACE)


@pytest.mark.parametrize("form", ["folder", "zip", "npz", "npz of floats", "parquet", "parquet of Hugging Face"])
def test_all_forms_give_the_same(tmp_path: Path, form: str) -> None:
    path = written(form, tmp_path)

    for _ in range(2):  # The second time from the cache.
        data = read_data(path, image_shape=SHAPE, cache_dir=tmp_path / "cache")
        assert data.class_names == ("cat", "dog")
        assert data.labels.tolist() == LABELS
        assert np.array_equal(data.images, PIXELS)
    found = check_data(path)
    assert found.format is DataFormat(form.split()[0])
    assert (found.num_images, found.class_counts, found.decoded) == (3, (2, 1), 3)
    swapped = read_data(path, image_shape=SHAPE, class_names=("dog", "cat"), cache_dir=tmp_path / "cache")
    assert swapped.labels.tolist() == [1, 1, 0]


def test_a_folder_is_packed_into_the_same_bytes_whatever_its_dates(tmp_path: Path) -> None:
    packed = []
    for name in ("one", "two"):
        folder = write_folder(tmp_path / name, FILES | {".DS_Store": b"x"})
        os.utime(folder / "cat" / "1.png", (1e9, 1e9))
        pack_folder(folder, tmp_path / f"{name}.zip")
        packed.append((tmp_path / f"{name}.zip").read_bytes())
    assert packed[0] == packed[1]
    assert np.array_equal(read_data(tmp_path / "one.zip", image_shape=SHAPE).images, PIXELS)
    assert data_digest(tmp_path / "one") == data_digest(tmp_path / "two")
    (tmp_path / "two" / "cat" / "1.png").write_bytes(FILES["cat/2.png"])
    assert data_digest(tmp_path / "one") != data_digest(tmp_path / "two")


class TestFolder:
    def test_links_that_lead_out(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "data", FILES)
        (tmp_path / "secret.png").write_bytes(image_bytes(1))
        (folder / "dog" / "2.png").symlink_to(tmp_path / "secret.png")
        with pytest.raises(DataError, match=r"'dog/2\.png' links .* out of the data set"):
            read_data(folder, image_shape=SHAPE)
        (folder / "dog" / "2.png").unlink()
        (folder / "dog" / "2.png").symlink_to(folder / "cat" / "1.png")
        assert len(read_data(folder, image_shape=SHAPE)) == 4

    @pytest.mark.parametrize("target", ["..", ".", "cat"])
    def test_links_to_folders(self, tmp_path: Path, target: str) -> None:
        folder = write_folder(tmp_path / "data", FILES)
        (folder / "dog" / "loop").symlink_to(folder / target)
        with pytest.raises(DataError, match="links to a folder"):
            check_data(folder)

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "data", FILES)
        os.mkfifo(folder / "dog" / "2.png")
        with pytest.raises(DataError, match="is no plain file"):
            check_data(folder)
        (folder / "dog" / "2.png").unlink()
        (folder / "dog" / "2.png").symlink_to("absent.png")
        with pytest.raises(DataError, match="a link to nothing"):
            check_data(folder)

    def test_an_empty_class_and_training_beside_test(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "data", FILES)
        (folder / "cow").mkdir()
        with pytest.raises(DataError, match="'cow' has no images"):
            check_data(folder)
        both = write_folder(tmp_path / "both", {f"train/{n}": c for n, c in FILES.items()} | {"test/cat/1.png": b"x"})
        with pytest.raises(DataError, match="Training and test images are two data sets"):
            check_data(both)


class Evil:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("/tmp/kerf-unpickled", "w"))


class TestNpz:
    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"images": PIXELS}, "either labels or targets; found images"),
            ({"labels": LABELS}, "must hold images"),
            ({"images": PIXELS, "labels": LABELS, "more": [1]}, r"unexpected 'more\.npy'"),
            ({"images": PIXELS.astype(np.int16), "labels": LABELS}, "uint8, or floats"),
            (
                {"images": PIXELS.astype(np.float32), "labels": LABELS},
                r"images\[0\] has values that are not in \[0, 1\]",
            ),
            ({"images": np.full((3, 4, 6), np.nan), "labels": LABELS}, r"images\[0\] .* scale floats"),
            ({"images": PIXELS.transpose(0, 3, 1, 2).copy(), "labels": LABELS}, r"transpose\(0, 2, 3, 1\)"),
            ({"images": PIXELS[0], "labels": LABELS}, r"labels \(4,\)"),
            ({"images": PIXELS[:, 0, 0], "labels": LABELS}, r"images must be \(n, h, w\)"),
            ({"images": PIXELS[:0], "labels": LABELS}, "no images"),
            ({"images": PIXELS, "labels": [0, 1]}, r"3 images need labels \(3,\)"),
            ({"images": PIXELS, "labels": [0.0, 1.0, 1.0]}, "of integers, not .* float64"),
            ({"images": PIXELS, "labels": [0, -1, 1]}, "label of image 1 is -1"),
            ({"images": PIXELS, "labels": [0, 1, 2**62]}, "label of image 2 is 4611686018427387904"),
            ({"images": PIXELS, "labels": np.array([0, 1, 2**64 - 1], dtype=np.uint64)}, "out of range"),
            ({"images": PIXELS, "labels": [0, 2, 2]}, "class '1' has no images"),
            ({"images": PIXELS, "labels": LABELS, "class_names": ["cat"]}, "label of image 2 is 1, but there are 1"),
            ({"images": PIXELS, "labels": LABELS, "class_names": [1, 2]}, "class_names must be"),
            ({"images": PIXELS, "labels": LABELS, "class_names": ["a", "a"]}, "two classes are called 'a'"),
            ({"images": PIXELS, "labels": LABELS, "class_names": ["a", "b\n"]}, "printable"),
            ({"images": PIXELS, "labels": [0, 0, 0]}, "only the class '0'"),
            ({"images": PIXELS, "targets": [[0.0], [1.0], [np.nan]]}, r"targets\[2\] .* not finite"),
            ({"images": PIXELS, "targets": [0.0]}, r"targets \(3, \.\.\.\)"),
            ({"images": PIXELS, "targets": [0, 1, 2], "class_names": ["a", "b", "c"]}, "belong to labels"),
            ({"images": np.asfortranarray(PIXELS), "labels": LABELS}, "ascontiguousarray"),
            ({"images": np.array([Evil(), Evil(), Evil()]), "labels": LABELS}, "could run code"),
            ({"images": PIXELS, "labels": np.array([Evil()] * 3)}, "could run code"),
            ({"images": PIXELS, "labels": np.zeros(3, dtype=[("a", "i4")])}, "save plain numbers"),
        ],
    )
    def test_names_what_is_wrong(self, tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
        path = write_npz(tmp_path / "bad.npz", **arrays)
        with pytest.raises(DataError, match=message):
            check_data(path)
        assert not Path("/tmp/kerf-unpickled").exists()

    def test_headers_that_lie(self, tmp_path: Path) -> None:
        good = write_npz(tmp_path / "good.npz", images=PIXELS, labels=LABELS)
        with zipfile.ZipFile(good) as archive:
            arrays = {name: archive.read(name) for name in archive.namelist()}
        claimed = arrays["images.npy"].replace(b"(3, 4, 6, 3)", b"(3, 4, 9, 9)")
        with pytest.raises(DataError, match="which its size does not fit"):
            check_data(write_zip(tmp_path / "a.npz", arrays | {"images.npy": claimed}))
        with pytest.raises(DataError, match="'labels' is no NumPy array"):
            check_data(write_zip(tmp_path / "b.npz", arrays | {"labels.npy": b"\x93NUMPY\x01\x00\xff\xff"}))
        with pytest.raises(DataError, match="'labels' is no NumPy array"):
            check_data(write_zip(tmp_path / "c.npz", arrays | {"labels.npy": b"\x80\x04pickle"}))
        damaged = bytearray(good.read_bytes())
        damaged[200] ^= 0xFF
        (tmp_path / "d.npz").write_bytes(bytes(damaged))
        with pytest.raises(DataError, match=r"Bad CRC-32 for file 'images\.npy'"):
            check_data(tmp_path / "d.npz")

    def test_grey_floats_and_targets(self, tmp_path: Path) -> None:
        grey = np.linspace(0, 1, 48, dtype=np.float16).reshape(2, 4, 6)
        path = write_npz(tmp_path / "x.npz", images=grey, targets=np.ones((2, 3, 3), dtype=np.float64))
        data = read_data(path, image_shape=(1, 4, 6))
        assert data.images[1, 3, 5, 0] == 255
        assert (data.labels.dtype, data.labels.shape, data.class_names) == (np.float32, (2, 3, 3), ())
        assert check_data(path).target_shape == (3, 3)
        assert read_data(path, image_shape=SHAPE).images.shape == (2, 4, 6, 3)

    def test_a_test_set_of_numbers_takes_the_names(self, tmp_path: Path) -> None:
        path = write_npz(tmp_path / "x.npz", images=PIXELS, labels=LABELS)
        assert read_data(path, image_shape=SHAPE, class_names=("dog", "cat")).labels.tolist() == LABELS
        with pytest.raises(DataError, match="missing"):
            check_data(path, class_names=("dog", "cat", "cow"))


class TestParquet:
    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"picture": [b"x"], "label": [0]}, "columns image and label; it has picture, label"),
            ({"image": ["a.png"], "label": [0]}, "binary, not string"),
            ({"image": [{"path": "a.png"}], "label": [0]}, "encoded images as binary"),
            ({"image": [image_bytes(1)], "label": [0.5]}, "integers or texts, not double"),
            ({"image": [image_bytes(1)] * 2, "label": [0, None]}, "row 1 has no label"),
            ({"image": [image_bytes(1)] * 2, "label": [0, 2]}, "label of row 1 is 2"),
            ({"image": [image_bytes(1)] * 2, "label": [-1, 0]}, "label of row 0 is -1"),
            ({"image": [image_bytes(1), None], "label": [0, 1]}, "row 1 has no image bytes"),
            ({"image": [image_bytes(1), b"no image"], "label": [0, 1]}, "row 1 cannot be decoded"),
            ({"image": [image_bytes(1)], "label": ["only"]}, "only the class 'only'"),
        ],
    )
    def test_names_what_is_wrong(self, tmp_path: Path, columns: dict[str, Any], message: str) -> None:
        with pytest.raises(DataError, match=message):
            check_data(write_parquet(tmp_path / "bad.parquet", columns))

    def test_damaged(self, tmp_path: Path) -> None:
        good = written("parquet", tmp_path).read_bytes()
        for name, content in (("cut", good[:-20]), ("head", b"PAR1"), ("body", good[:60] + bytes(40) + good[100:])):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(DataError, match=name):
                check_data(tmp_path / name)

    def test_a_few_bytes_that_claim_many_images(self, tmp_path: Path) -> None:
        images = [image_bytes(1, size=(200, 200)) + bytes(1 << 20)] * 100
        path = write_parquet(tmp_path / "bomb", {"image": images, "label": [0, 1] * 50})
        assert path.stat().st_size < 2 << 20
        with pytest.raises(DataError, match="unpacks to more than"):
            check_data(path)

    def test_pages_that_unpack_to_far_more(self, tmp_path: Path) -> None:
        images = [bytes(1 << 20) + number.to_bytes(4, "big") for number in range(80)]
        path = write_parquet(tmp_path / "bomb", {"image": images, "label": [0, 1] * 40}, compression="zstd")
        with pytest.raises(DataError, match="unpacks to 8"):
            check_data(path)

    def test_without_pyarrow(self, tmp_path: Path) -> None:
        path = written("parquet", tmp_path)
        with mock.patch.dict(sys.modules, {"pyarrow": None}), pytest.raises(DataError, match=r"kerf\[parquet\]"):
            check_data(path)


def test_the_content_decides_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(written("npz", tmp_path).read_bytes())
    assert detect_format(tmp_path / "data.zip") is DataFormat.NPZ
    with pytest.raises(DataError, match="there is no data set"):
        detect_format(tmp_path / "absent")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(DataError, match="no readable zip file"):
        detect_format(tmp_path / "text")
