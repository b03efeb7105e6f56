"""The console that commands print to."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

#: Width of the tables where there is no terminal to ask: a pipe or a log.
PIPE_WIDTH = 140


def make_console(*, as_json: bool = False) -> Console:
    """A console on standard output, wide enough for our tables when that is no terminal. Where JSON goes there, it is
    on standard error. It prints what it is given: names and reasons have brackets that are no markup.
    """
    console = plain_console(stderr=as_json)
    return console if console.is_terminal else plain_console(stderr=as_json, width=PIPE_WIDTH)


def plain_console(*, stderr: bool = False, width: int | None = None, soft_wrap: bool = False) -> Console:
    """A console that takes nothing in a text for markup, an emoji or a number to colour."""
    return Console(stderr=stderr, width=width, soft_wrap=soft_wrap, highlight=False, markup=False, emoji=False)


def print_json(value: Any) -> None:
    """The JSON that `--json` asks for."""
    typer.echo(json.dumps(value, indent=1))


def tell(text: str, value: Any, *, as_json: bool) -> None:
    """One line for people, or `value` as JSON."""
    if as_json:
        print_json(value)
    else:
        typer.echo(text)


@contextlib.contextmanager
def working(text: str, as_json: bool = False) -> Iterator[Callable[[str], None]]:
    """Show what is being done, beside something that moves, while it is; call what is given for the next step. In a
    pipe nothing is shown.
    """
    with make_console(as_json=as_json).status(text) as status:
        yield status.update


def print_items(
    items: Sequence[Mapping[str, Any]], columns: Mapping[str, Callable[[Mapping[str, Any]], str]], *, as_json: bool
) -> None:
    """A list from the server: as JSON, or as a table with one function of the item for each column. That there is
    nothing to list is said on standard error.
    """
    if as_json:
        print_json(items)
        return
    if not items:
        typer.echo("there are none", err=True)
        return
    table = Table(box=None, header_style="bold")
    for place, title in enumerate(columns):
        # What leads a row is what other commands are given: it must be possible to copy it.
        table.add_column(title, no_wrap=place == 0)
    for item in items:
        table.add_row(*(text(item) for text in columns.values()))
    make_console().print(table)


def print_fields(item: Mapping[str, Any], fields: Mapping[str, str | None], *, as_json: bool) -> None:
    """One thing from the server: as JSON, or a line for each field that says something."""
    if as_json:
        print_json(item)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, text in fields.items():
        if text:
            table.add_row(name, text)
    make_console().print(table)
