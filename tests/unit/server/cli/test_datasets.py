"""`kerf datasets`: checked here, checked there, and named in a search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from device_agent.contracts import ContractError
from search.domain.config import DatasetConfig
from server.cli import datasets
from server.cli.config_file import ConfigFileError, check_files, upload
from server.cli.main import app
from tests.unit.search.data.data_files import image_bytes, write_folder, write_npz, write_zip
from tests.unit.server.server_lab import ServerLab
from tests.unit.server.worker_lab import quick_search

PICTURES = {f"{name}/{i}.png": image_bytes(i) for name in ("cat", "dog") for i in range(10)}


def run(*arguments: Any) -> str:
    result = CliRunner().invoke(app, ["datasets", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_a_folder_is_checked_uploaded_and_listed(server: ServerLab, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pets", PICTURES)
    test = write_zip(tmp_path / "test.zip", PICTURES)

    said = run("check", folder)
    assert "20 images as folder, all of which decode" in said
    assert "cat 10, dog 10" in said
    assert "note" not in said
    few = write_zip(tmp_path / "few.zip", {n: c for n, c in PICTURES.items() if int(n[4]) < 4})
    assert "note: as a search divides data by default, class 'cat' has 3 images, too few" in run("check", few)
    assert json.loads(run("check", folder, "--test", test, "--json"))["test"]["class_counts"] == [10, 10]
    assert server.get("/v1/datasets").json()["items"] == []
    assert "uploaded as dataset_" in run("upload", folder, "--name", "pets")
    first = json.loads(run("upload", folder, "--name", "pets", "--json"))
    both = json.loads(run("upload", folder, "--test", test, "--name", "pets with test", "--json"))

    assert (first["num_train"], first["test"], both["num_test"]) == (20, None, 20)
    assert first["train_class_counts"] == [10, 10]
    assert json.loads(run("ls", "--json")) == [first, both]
    assert "split by seed" in run("ls")


def test_what_is_wrong_is_said_before_anything_is_sent(server: ServerLab, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pets", PICTURES | {"dog/x.png": b"no image"})
    with pytest.raises(ConfigFileError, match=r"train: .*'dog/x\.png' cannot be decoded .*: replace or remove it"):
        run("upload", folder, "--name", "pets")
    test = write_npz(tmp_path / "t.npz", images=[[[[0] * 3]]] * 2, labels=[0, 1], class_names=["cat", "cow"])
    (folder / "dog" / "x.png").unlink()
    with pytest.raises(ConfigFileError, match=r"test: .*images must be uint8"):
        run("check", folder, "--test", test)
    for name, error in (("digits", ConfigFileError), ("custom", ContractError)):
        with pytest.raises(error, match="digits"):
            run("upload", folder, "--name", name)
    with pytest.raises(ConfigFileError, match=r"there is no .*absent"):
        run("check", tmp_path / "absent")
    assert server.get("/v1/datasets").json()["items"] == []


def test_a_search_uploads_a_folder_and_leaves_other_data_where_it_is(server: ServerLab, tmp_path: Path) -> None:
    write_folder(tmp_path / "pets", PICTURES)
    client = datasets.connect(None, None)
    config = quick_search("own", dataset=DatasetConfig(name="pets", train="pets", holdout_fraction=0.25))

    body = upload(config, check_files(config, tmp_path), client)

    (known,) = server.get("/v1/datasets").json()["items"]
    assert body["dataset"]["train"] == known["train"]
    assert (known["name"], body["dataset"]["test"]) == ("pets", None)
    for dataset in (DatasetConfig(name="pets"), DatasetConfig(train="worker:pets", test="worker:more")):
        config = quick_search("own", dataset=dataset)
        assert upload(config, check_files(config, None), client)["dataset"]["train"] == dataset.train
    too_few = quick_search("own", dataset=DatasetConfig(name="pets", train="pets", holdout_fraction=0.05))
    with pytest.raises(ConfigFileError, match=r"train: class 'cat' has 8 images, too few .* change holdout_fraction"):
        check_files(too_few, tmp_path)


def test_the_client_uploads_a_data_set_with_and_without_test_images(server: ServerLab, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "pets.zip", PICTURES)
    client = datasets.connect(None, None)

    alone = client.datasets.upload("pets", train=path)
    both = client.datasets.upload("pets with test", train=path, test=str(path))

    assert (alone["num_train"], alone["test"], both["test"], both["num_test"]) == (20, None, both["train"], 20)
    assert client.datasets.get(both["id"]) == both
    assert client.datasets.list() == [alone, both]
