"""`kerf datasets ...`: data sets of one's own, checked on this machine and uploaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from device_agent.contracts import encode
from search.domain.config import DatasetConfig
from server.cli.connection import ServerOption, TokenOption, connect
from server.cli.console import JsonOption, make_console, plain_console, print_items, print_json
from server.cli.errors import ConfigFileError
from server.cli.progress import shown_wait

if TYPE_CHECKING:
    from search.data.check import DataContents

app = typer.Typer(help="Check data sets of your own, upload them, and list what is there.", no_args_is_help=True)

#: Classes that are named with their counts; of the rest only the smallest and the largest.
_NAMED_CLASSES = 20

TrainArgument = Annotated[
    Path,
    typer.Argument(help="The training images: a folder or zip of class folders, .npz or Parquet.", show_default=False),
]
TestOption = Annotated[
    Path | None,
    typer.Option("--test", help="The test images; without, searches split some off by seed.", show_default=False),
]


@app.command()
def check(train: TrainArgument, test: TestOption = None, as_json: JsonOption = False) -> None:
    """Read a data set whole, on this machine: every image is decoded. Nothing is sent anywhere."""
    contents = _checked(train, test, as_json)
    if as_json:
        print_json({role: encode(part) for role, part in contents.items()})
    else:
        _print(contents, make_console())


@app.command()
def upload(
    train: TrainArgument,
    name: Annotated[str, typer.Option("--name", help="What searches call it: dataset.name.", show_default=False)],
    test: TestOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a data set here, upload it, and have the server check it. What is there already is not sent again."""
    from server.cli.data_files import upload_data

    if not DatasetConfig(name=name).is_uploaded:
        raise ConfigFileError(f"--name {name!r} is that of the digits which come with Kerf: choose another one")
    contents = _checked(train, test, as_json)
    with connect(server, token) as client:
        paths = {"train": train} if test is None else {"train": train, "test": test}
        digests = {role: upload_data(client, path) for role, path in paths.items()}
        with shown_wait("the server checks the data set"):
            dataset = client.datasets.create(name=name, **digests)
    if as_json:
        print_json(dataset)
        return
    console = make_console()
    _print(contents, console)
    console.print(f"uploaded as {dataset['id']}; in a search: dataset: {{name: {json.dumps(name)}}}")


@app.command("ls")
def list_datasets(server: ServerOption = None, token: TokenOption = None, as_json: JsonOption = False) -> None:
    """List the uploaded data sets, oldest first."""
    with connect(server, token) as client:
        datasets = client.datasets.list()
    columns = {
        "id": lambda d: d["id"],
        "name": lambda d: d["name"],
        "format": lambda d: d["train_format"],
        "classes": lambda d: str(len(d["class_names"])) if d["class_names"] else "targets",
        "train": lambda d: str(d["num_train"]),
        "test": lambda d: "split by seed" if d["test"] is None else str(d["num_test"]),
    }
    print_items(datasets, columns, as_json=as_json)


def _checked(train: Path, test: Path | None, quiet: bool) -> dict[str, DataContents]:
    from server.cli.data_files import check_files_of

    for path in (train, test):
        if path is not None and not path.exists():
            raise ConfigFileError(f"there is no {path}: check the path")
    with _progress(quiet) as tell:
        found, tested = check_files_of(train, test, on_progress=tell)
    return {"train": found} if tested is None else {"train": found, "test": tested}


class _Bars:
    """One bar for each data set."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, Any] = {}

    def __call__(self, role: str, done: int, total: int) -> None:
        if role not in self._tasks:
            self._tasks[role] = self._progress.add_task(f"{role}: images decoded", total=total)
        self._progress.update(self._tasks[role], completed=done)


@contextmanager
def _progress(quiet: bool) -> Iterator[_Bars]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = plain_console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        yield _Bars(progress)


def _print(contents: Mapping[str, DataContents], console: Console) -> None:
    for role, part in contents.items():
        console.print(f"{role}: {part.num_images} images as {part.format.value}, all of which decode")
        if part.target_shape is not None:
            console.print(f"  targets of the shape {part.target_shape}, for a task of your own")
            continue
        pairs = sorted(zip(part.class_counts, part.class_names, strict=True))
        few, many = pairs[0], pairs[-1]
        console.print(f"  {len(pairs)} classes of {few[0]} ({few[1]}) to {many[0]} ({many[1]}) images")
        if len(pairs) <= _NAMED_CLASSES:
            told = ", ".join(f"{name} {count}" for name, count in zip(part.class_names, part.class_counts, strict=True))
            console.print(f"  {told}")
    _print_split(contents, console)


def _print_split(contents: Mapping[str, DataContents], console: Console) -> None:
    """A note where a search could not divide the data as it does by default."""
    from search.data.dataset import DataError
    from server.cli.data_files import check_split

    test = "given" if "test" in contents else None
    try:
        check_split(contents["train"], DatasetConfig(train="given", test=test))
    except DataError as error:
        console.print(f"note: as a search divides data by default, {error}")
