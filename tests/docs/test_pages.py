"""What the pages tell people to do, done: every block of commands that is not marked, page by page, in order."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from device_agent.contracts import MeasuringSetup, encode
from search.domain.config import MeasuringConfig, SearchConfig, SelectionConfig
from server.cli.console import make_console
from server.cli.demo import demo_config
from server.cli.local_stack import LocalStack, StackOptions, running_stack
from server.cli.searches import run_search
from tests.docs.blocks import ROOT, blocks, command_blocks
from tests.docs.reader import Reader, reading
from tests.shared_data import shared_data

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("stack")]

#: Pages that start searches on the server which others look at: those have a look before.
SEARCHING = {"README.md", "docs/cli.md"}
PAGES = sorted(
    {block.page for block in command_blocks() if block.not_run is None}, key=lambda page: (page in SEARCHING, page)
)


def small_search(name: str, generations: int = 2) -> SearchConfig:
    """The demo's search on this machine, with every budget cut: it is there to be looked at."""
    config = demo_config(quick=True)
    return dataclasses.replace(
        config,
        name=name,
        constraints=(),
        model=dataclasses.replace(config.model, train_epochs=3),
        method=dataclasses.replace(config.method, population=8, generations=generations),
        measuring=MeasuringConfig(
            kernels=MeasuringSetup(runtime="native", budget_s=0.1, ci_half_width=0.1),
            networks=MeasuringSetup(runtime="native", budget_s=0.5, ci_half_width=0.1),
            calibration_networks=3,
            max_kernels=60,
        ),
        selection=SelectionConfig(candidates=2),
        training=dataclasses.replace(config.training, epochs=1),
    )


#: Pages that start a server themselves.
OWN_SERVER = {
    "docs/tutorial.md",
    "docs/own-networks.md",
    "docs/how-to/add-a-board.md",
    "docs/how-to/several-workers.md",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Finished:
    """A server with a finished search, and the folder that it wrote."""

    stack: LocalStack
    output: Path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    folder = tmp_path_factory.mktemp("finished")
    with running_stack(StackOptions(state_dir=folder / "state")) as stack, stack.client() as client:
        run_search(client, small_search("docs"), {}, folder / "out", make_console())
        yield Finished(stack, folder / "out")


def candidate(reader: Reader) -> str:
    return min(path.name for path in (reader.folder / "out" / "candidates").iterdir())


def series(reader: Reader, *, imported: bool) -> str:
    """The series with most figures, of this machine or of an imported device."""
    with reader.client as client:
        found = [s for s in client.latency.series() if (s["source"] == "imported") is imported]
    return str(max(found, key=lambda s: s["num_measurements"])["id"])


def newest_search(reader: Reader) -> str:
    with reader.client as client:
        return str(client.searches.list()[0]["id"])


def token(reader: Reader) -> str:
    with reader.client as client:
        return str(next(t["id"] for t in client.tokens.list() if t["name"] == "ada"))


def code(reader: Reader) -> str:
    with reader.client as client:
        return str(client.devices.create_enrolment_code(max_uses=50)["code"])


#: What stands for the words in capitals.
VALUES: dict[str, Callable[[Reader], str]] = {
    "CANDIDATE": candidate,
    "ID": candidate,
    "SEARCH": newest_search,
    "TOKEN": token,
    "DEVICE": lambda reader: "local",
    "RUNTIME": lambda reader: "native",
    "SERIES": lambda reader: series(reader, imported=False),
    "OTHER_SERIES": lambda reader: series(reader, imported=True),
    "CODE": code,
    "DIR": lambda reader: ".",
}


def with_finished(reader: Reader, finished: Finished) -> None:
    """The page is about a search that is done, on the server that did it."""
    reader.use(finished.stack.url, finished.stack.token)
    shutil.copytree(finished.output, reader.folder / "out")


def with_images(reader: Reader, name: str, per_class: int) -> None:
    """A folder of class folders."""
    rng = np.random.default_rng(0)
    for label in range(3):
        folder = reader.folder / name / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(per_class):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")


def with_zip(reader: Reader, name: str) -> None:
    with_images(reader, name, 10)
    shutil.make_archive(str(reader.folder / name), "zip", reader.folder / name)


def with_network(reader: Reader) -> None:
    """A network of one's own, its weights, and a search for it."""
    (reader.folder / "mynet.py").write_text(
        "from torch import nn\n\n\ndef make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))\n",
        encoding="utf-8",
    )
    with_images(reader, "images", 20)
    config = encode(small_search("own network"))
    config |= {
        "model": {"network": "mynet.kerf"},
        "dataset": {"name": "images", "train": "images", "holdout_fraction": 0.25},
        "accuracy": {"calibration_images": 6, "evaluation_images": 6},
    }
    (reader.folder / "search.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def with_config(reader: Reader) -> None:
    """A search that is still there to be paused some commands after it was submitted."""
    config = encode(small_search("docs", generations=40))
    (reader.folder / "search.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def with_measurements(reader: Reader) -> None:
    """The files that the page on the latency database imports, and the mapping that it shows."""
    mapping = next(block for block in blocks("docs/latency-database.md") if block.language == "yaml")
    (reader.folder / "theirs.yaml").write_text(mapping.text, encoding="utf-8")
    rows = [
        f"{cin},{cout},{kept},{cin * cout * kept / 10}" for cin in (16, 32) for cout in (16, 32) for kept in (0.5, 1)
    ]
    (reader.folder / "theirs.csv").write_text("\n".join(["cin,cout,kept,time_us", *rows]) + "\n", encoding="utf-8")
    table = "jcw-resnet18-latency-ms.npy"
    (reader.folder / table).symlink_to(shared_data(table))
    with reader.client as client:
        client.latency.import_file(reader.folder / "theirs.csv", mapping=yaml.safe_load(mapping.text), device="theirs")
        kernel = client.latency.list(limit=1)[0]["kernel"]
    (reader.folder / "kernels.json").write_text(json.dumps([kernel]), encoding="utf-8")


def weights_for(reader: Reader) -> None:
    """`weights.safetensors` of the network in mynet.py."""
    import torch
    from safetensors.torch import save_file

    names: dict[str, object] = {}
    exec((reader.folder / "mynet.py").read_text(encoding="utf-8"), names)
    torch.manual_seed(0)
    save_file(names["make"]().state_dict(), reader.folder / "weights.safetensors")  # type: ignore[operator]


def prepare(page: str, reader: Reader, request: pytest.FixtureRequest) -> None:
    """What a page takes for granted."""
    if page not in OWN_SERVER:
        # A search takes a while: pages that do without have none.
        with_finished(reader, request.getfixturevalue("finished"))
    if page == "docs/own-networks.md":
        with_network(reader)
        weights_for(reader)
    if page == "docs/own-data.md":
        with_images(reader, "flowers", 20)
        with_zip(reader, "more")
    if page == "docs/cli.md":
        with_network(reader)
        with_config(reader)
        with_images(reader, "pets", 20)
        with_zip(reader, "pets-test")
    if page == "docs/latency-database.md":
        with_measurements(reader)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_followed(page: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with reading(tmp_path, VALUES) as reader:
        prepare(page, reader, request)
        for block in blocks(page):
            if block.language == "bash" and block.not_run is None:
                told = reader.follow(block)
                print(f"{block.where}\n{told}")
        if page == "docs/tutorial.md":
            check_tutorial(reader)


def check_tutorial(reader: Reader) -> None:
    """The tutorial keeps what it promises: a front, and a program that gives the outputs of the network."""
    result = json.loads((reader.folder / "out" / "result.json").read_text(encoding="utf-8"))
    assert result["front"]
    for point in result["front"]:
        assert point["failure"] is None
        assert point["output_max_abs_error"] < 1e-4
    assert os.access(reader.folder / "deployed" / "example", os.X_OK)
    assert (reader.folder / "report.html").stat().st_size > 0
    assert (ROOT / "examples" / "tutorial" / "search.yaml").read_text() == (reader.folder / "search.yaml").read_text()
