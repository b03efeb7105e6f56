"""Data sets of one's own in searches: named, checked when they are submitted, and read by the worker."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_agent.contracts import encode
from search.data.digits import load_digits
from search.domain.config import DatasetConfig, SearchConfig
from server.worker.data import worker_path
from server.worker.run import SearchFailed
from tests.unit.search.data.data_files import image_bytes, write_folder, write_npz, write_parquet, write_zip
from tests.unit.server.server_lab import ServerLab
from tests.unit.server.test_own_networks import stored
from tests.unit.server.worker_lab import Kill, WorkerLab, quick_search

PICTURES = {f"{name}/{i}.png": image_bytes(i, size=(8, 8)) for name in ("cat", "dog") for i in range(10)}


def stored_file(lab: ServerLab, path: Path) -> str:
    return stored(lab, path.read_bytes())


def registered(lab: ServerLab, name: str, train: Path, test: Path | None = None) -> dict[str, Any]:
    body = {"name": name, "train": stored_file(lab, train)} | ({} if test is None else {"test": stored_file(lab, test)})
    answer = lab.post("/v1/datasets", body)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def search_on(**dataset: Any) -> SearchConfig:
    return quick_search("own data", dataset=DatasetConfig(**{"holdout_fraction": 0.25, **dataset}))


def refusal(lab: ServerLab, field: str, **dataset: Any) -> str:
    answer = lab.request("POST", "/v1/searches", json=encode(search_on(**dataset)))
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field
    return str(answer.json()["detail"])


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """The digits as their own `.npz`, which the network of the quick search takes."""
    data = load_digits()
    return write_npz(tmp_path / "digits.npz", images=data.images, labels=data.labels)


def test_a_registered_data_set_is_searched_by_its_name(sqlite_lab: ServerLab, digits: Path) -> None:
    worker = WorkerLab(sqlite_lab)
    known = registered(sqlite_lab, "my digits", digits)
    assert (known["train_format"], known["num_train"], len(known["class_names"])) == ("npz", 1797, 10)
    assert sqlite_lab.get(f"/v1/datasets/{known['id']}").json() == known
    assert sqlite_lab.get("/v1/datasets/dataset_0").status_code == 404

    search_id = worker.done(search_on(name="my digits", flip=False, crop_padding=1))

    result = worker.get(f"/v1/searches/{search_id}/result")
    assert result["search"]["settings"]["dataset"]["train"] == known["train"]
    assert result["front"][0]["output_max_abs_error"] < 1e-4
    told = worker.messages(search_id)
    assert "10 classes, 1079 images to train on, 359 held out, 359 to test" in told
    assert any(text.startswith("mean and standard deviation of the training images: 0.30") for text in told)


def test_data_on_the_worker_must_not_change_under_a_search(sqlite_lab: ServerLab, digits: Path) -> None:
    folder = digits.parent / "on worker"
    folder.mkdir()
    digits.rename(folder / "digits.npz")
    settings = dataclasses.replace(sqlite_lab.settings, datasets_dir=folder)
    object.__setattr__(sqlite_lab, "settings", settings)
    worker = WorkerLab(sqlite_lab)
    search_id = worker.submit(search_on(train="worker:digits.npz", flip=False))
    worker.run(search_id, Kill(steps=2))
    data = load_digits()
    write_npz(folder / "digits.npz", images=255 - data.images, labels=data.labels)

    with pytest.raises(SearchFailed, match="has changed since this search began"):
        worker.run(search_id)


def test_paths_on_the_worker_stay_in_its_folder(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "pets").mkdir(parents=True)
    (root / "link").symlink_to("/etc")
    assert worker_path(root, "worker:pets") == root / "pets"
    for name, message in (("link", "leads out"), ("link/passwd", "leads out"), ("absent", "there is no worker:absent")):
        with pytest.raises(SearchFailed, match=message):
            worker_path(root, f"worker:{name}")
    with pytest.raises(SearchFailed, match="KERF_DATASETS_DIR"):
        worker_path(None, "worker:pets")


def test_what_a_search_cannot_use_is_refused_when_it_is_submitted(sqlite_lab: ServerLab, tmp_path: Path) -> None:
    WorkerLab(sqlite_lab)
    pets = write_zip(tmp_path / "pets.zip", PICTURES)
    registered(sqlite_lab, "pets", pets)
    few = write_zip(tmp_path / "few.zip", {n: c for n, c in PICTURES.items() if n not in ("dog/8.png", "dog/9.png")})
    more = registered(sqlite_lab, "pets", few, pets)

    assert "2 data sets are called 'pets': name one by its id" in refusal(
        sqlite_lab, "config.dataset.name", name="pets"
    )
    assert "there are 'pets', and 'digits'" in refusal(sqlite_lab, "config.dataset.name", name="pests")
    said = refusal(sqlite_lab, "config.dataset.test_fraction", name=more["id"], test_fraction=0.3)
    assert "comes with test images" in said
    said = refusal(sqlite_lab, "config.dataset.train", name=more["id"], holdout_fraction=0.05)
    assert "class 'cat' has 10 images, too few to hold out a fraction of 0.05" in said
    # Files that were uploaded but not registered are checked now.
    bad = stored_file(sqlite_lab, write_zip(tmp_path / "bad.zip", PICTURES | {"dog/0.png": b"no image"}))
    assert "'dog/0.png' cannot be decoded" in refusal(sqlite_lab, "config.dataset.train", train=bad)
    other = stored_file(
        sqlite_lab,
        write_zip(tmp_path / "o.zip", {n.replace("dog", "cow"): c for n, c in PICTURES.items()}),
    )
    said = refusal(sqlite_lab, "config.dataset.test", train=stored_file(sqlite_lab, pets), test=other)
    assert "missing ['dog'], unexpected ['cow']" in said
    assert sqlite_lab.get("/v1/searches").json()["items"] == []


def test_registering_checks_every_form(sqlite_lab: ServerLab, tmp_path: Path) -> None:
    images = [image_bytes(i) for i in range(4)]
    table = write_parquet(tmp_path / "pets.parquet", {"image": images, "label": ["a", "b", "a", "b"]})
    assert registered(sqlite_lab, "table", table)["train_class_counts"] == [2, 2]
    arrays = {"images": np.zeros((4, 8, 8), dtype=np.uint8), "targets": np.zeros((4, 2), dtype=np.float32)}
    boxes = registered(sqlite_lab, "boxes", write_npz(tmp_path / "boxes.npz", **arrays))
    assert (boxes["class_names"], boxes["target_shape"]) == ([], [2])
    arrays["targets"] = np.zeros((4, 3), dtype=np.float32)
    body = {
        "name": "x",
        "train": boxes["train"],
        "test": stored_file(sqlite_lab, write_npz(tmp_path / "t.npz", **arrays)),
    }
    assert "save both alike" in sqlite_lab.post("/v1/datasets", body).json()["detail"]
    answer = sqlite_lab.post("/v1/datasets", {"name": "digits", "train": boxes["train"]})
    assert (answer.status_code, "choose another one" in answer.text) == (422, True)
    (tmp_path / "cut").write_bytes(table.read_bytes()[:-9])
    answer = sqlite_lab.post("/v1/datasets", {"name": "x", "train": stored_file(sqlite_lab, tmp_path / "cut")})
    assert "no readable" in answer.json()["detail"]
    assert str(sqlite_lab.settings.data_dir) not in answer.text


def test_a_folder_of_the_worker_is_read(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets", PICTURES)
    assert worker_path(tmp_path, "worker:pets/") == tmp_path / "pets"
