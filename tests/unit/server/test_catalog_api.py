"""Models and data sets: checked when they are registered, with a remedy in every refusal."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from search.domain.architectures import ARCHITECTURES
from server.catalog.safetensors import MAX_HEADER_BYTES
from tests.unit.server.server_lab import ServerLab

PNG = io.BytesIO()
Image.new("RGB", (4, 4), (200, 10, 10)).save(PNG, "PNG")


def image_zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def pictures(*classes: str, count: int = 2) -> dict[str, bytes]:
    return {f"{name}/{i}.png": PNG.getvalue() for name in classes for i in range(count)}


def put(lab: ServerLab, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    assert lab.request("PUT", f"/v1/artifacts/sha256/{digest}", content=data).status_code in (200, 201)
    return digest


class TestDatasets:
    def test_registered_once(self, lab: ServerLab) -> None:
        train, test = put(lab, image_zip(pictures("cat", "dog", count=3))), put(lab, image_zip(pictures("dog", "cat")))
        body = {"name": "pets", "train": train, "test": test}
        first = lab.post("/v1/datasets", body)
        assert first.status_code == 201
        dataset = first.json()
        assert (dataset["class_names"], dataset["num_train"], dataset["num_test"]) == (["cat", "dog"], 6, 4)
        assert lab.post("/v1/datasets", body).json() == dataset
        assert lab.get("/v1/datasets").json()["items"] == [dataset]

    def test_one_name_for_two_data_sets(self, lab: ServerLab) -> None:
        train, test = put(lab, image_zip(pictures("a", "b", count=3))), put(lab, image_zip(pictures("a", "b")))
        for pair in ((train, test), (test, train)):
            assert lab.post("/v1/datasets", {"name": "custom", "train": pair[0], "test": pair[1]}).status_code == 201
        assert len(lab.get("/v1/datasets").json()["items"]) == 2

    @pytest.mark.parametrize(
        ("train", "words"),
        [
            (b"this is no zip", "no readable zip file"),
            (image_zip(pictures("cat"))[:-30], "no readable zip file"),
            (image_zip({**pictures("cat"), "dog/": b""}), "'dog' has no images"),
            (image_zip({**pictures("cat"), "../../evil/x.png": PNG.getvalue()}), "leads out of the archive"),
            (image_zip({**pictures("cat"), "cat/notes.txt": b"hello"}), "is no image"),
            (image_zip({"cat/0.png": b"not a png", "dog/0.png": PNG.getvalue()}), "cannot be decoded"),
            (image_zip({}), "one folder of images for each class"),
        ],
    )
    def test_bad_zips(self, sqlite_lab: ServerLab, train: bytes, words: str) -> None:
        lab = sqlite_lab
        body = {"name": "x", "train": put(lab, train), "test": put(lab, image_zip(pictures("cat", "dog")))}
        response = lab.post("/v1/datasets", body)
        assert response.status_code == 422
        assert words in response.json()["detail"]
        assert response.json()["errors"][0]["field"] == "train"
        # No path of this machine in what a user sees.
        assert str(lab.settings.data_dir) not in response.text
        assert lab.get("/v1/datasets").json()["items"] == []

    def test_a_damaged_image_inside(self, sqlite_lab: ServerLab) -> None:
        data = bytearray(image_zip(pictures("cat", "dog")))
        # A bit inside the last image's data, which zip stores as it is.
        position = bytes(data).rfind(b"IDAT") + 6
        data[position] ^= 0xFF
        test = put(sqlite_lab, image_zip(pictures("cat", "dog")))
        response = sqlite_lab.post("/v1/datasets", {"name": "x", "train": put(sqlite_lab, bytes(data)), "test": test})
        assert response.status_code == 422
        assert "damaged" in response.json()["detail"]

    def test_a_bomb(self, sqlite_lab: ServerLab) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for i in range(3):
                archive.writestr(f"cat/{i}.png", bytes(30 << 20))
        train = put(sqlite_lab, buffer.getvalue())
        response = sqlite_lab.post("/v1/datasets", {"name": "x", "train": train, "test": train})
        assert "unpacks to" in response.json()["detail"]

    def test_classes_that_differ(self, sqlite_lab: ServerLab) -> None:
        body = {
            "name": "x",
            "train": put(sqlite_lab, image_zip(pictures("cat", "dog"))),
            "test": put(sqlite_lab, image_zip(pictures("cat", "cow"))),
        }
        problem = sqlite_lab.post("/v1/datasets", body).json()
        assert "'dog'" in problem["detail"]
        assert problem["errors"][0]["field"] == "test"

    def test_what_was_not_uploaded(self, sqlite_lab: ServerLab) -> None:
        response = sqlite_lab.post("/v1/datasets", {"name": "x", "train": "0" * 64, "test": "0" * 64})
        assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "train")


class TestModels:
    def test_the_zoo_and_a_checkpoint(self, lab: ServerLab) -> None:
        weights = save({"conv1.weight": np.zeros((4, 3), dtype=np.float32)})
        body = {"architecture": "resnet20", "name": "mine.safetensors", "sha256": put(lab, weights)}
        model = lab.post("/v1/models", body).json()
        assert lab.post("/v1/models", body).json() == model
        listed = lab.get("/v1/models").json()
        assert listed["items"] == [model]
        assert [a["name"] for a in listed["architectures"]] == list(ARCHITECTURES)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\x80\x04pickle",
            (1 << 60).to_bytes(8, "little") + b"{}",
            (2).to_bytes(8, "little") + b"{}",
            (2).to_bytes(8, "little") + b"[]",
            save({"w": np.zeros(8, dtype=np.float32)})[:-4],
        ],
    )
    def test_what_is_no_checkpoint(self, sqlite_lab: ServerLab, content: bytes) -> None:
        body = {"architecture": "resnet20", "name": "x", "sha256": put(sqlite_lab, content)}
        response = sqlite_lab.post("/v1/models", body)
        assert response.status_code == 422
        assert "save_file" in response.json()["detail"]

    @pytest.mark.parametrize(
        "shape", [[1 << 60], [1] * 17, [9**4000] * 200], ids=["an extent", "dimensions", "a product of hours"]
    )
    def test_a_shape_that_no_tensor_has(self, sqlite_lab: ServerLab, shape: list[int]) -> None:
        header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
        content = len(header).to_bytes(8, "little") + header + bytes(4)
        body = {"architecture": "small_cnn", "name": "x", "sha256": put(sqlite_lab, content)}
        answer = sqlite_lab.request("POST", "/v1/models", json=body)
        assert (answer.status_code, "has the shape" in answer.text) == (422, True)

    def test_a_header_that_would_fill_the_memory(self, sqlite_lab: ServerLab) -> None:
        header = b'{"w": [' + b"[]," * ((MAX_HEADER_BYTES + 10) // 3) + b"[]]}"
        content = len(header).to_bytes(8, "little") + header
        body = {"architecture": "small_cnn", "name": "x", "sha256": put(sqlite_lab, content)}
        answer = sqlite_lab.request("POST", "/v1/models", json=body)
        assert (answer.status_code, "more than 4 MiB" in answer.text) == (422, True)

    def test_a_header_that_claims_too_much(self, sqlite_lab: ServerLab) -> None:
        header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}).encode()
        content = len(header).to_bytes(8, "little") + header + bytes(4)
        body = {"architecture": "resnet20", "name": "x", "sha256": put(sqlite_lab, content)}
        assert "does not lie inside the file" in sqlite_lab.post("/v1/models", body).json()["detail"]

    def test_an_unknown_architecture(self, sqlite_lab: ServerLab) -> None:
        response = sqlite_lab.post("/v1/models", {"architecture": "resnet20x", "name": "x", "sha256": "0" * 64})
        assert response.status_code == 422
        assert "did you mean 'resnet20'" in response.json()["detail"]
