"""The console that commands print to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

#: Width of the tables where there is no terminal to ask: a pipe or a log.
PIPE_WIDTH = 140


def make_console() -> Console:
    """A console on standard output, wide enough for our tables when that is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def print_items(
    items: Sequence[Mapping[str, Any]], columns: Mapping[str, Callable[[Mapping[str, Any]], str]], *, as_json: bool
) -> None:
    """A list from the server: as JSON, or as a table with one function of the item for each column."""
    if as_json:
        typer.echo(json.dumps(items, indent=1))
        return
    table = Table(*columns, box=None, header_style="bold")
    for item in items:
        table.add_row(*(text(item) for text in columns.values()))
    make_console().print(table)
