"""Live progress in the terminal: of a search, from its event stream, and of files on their way."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from kerf.progress import STAGE_TITLES
from kerf.schemas import EventView
from server.cli.console import plain_console

#: In a pipe, how far a stage is becomes a line at most so often.
_LINE_INTERVAL_S = 60.0

#: Smaller files are there before a bar is read.
_SHOWN_BYTES = 4 << 20


@contextlib.contextmanager
def shown_progress(
    console: Console, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[EventView], None]]:
    """Draw one bar for each stage of the events that the function is called with. In a pipe, one line for each stage
    and message instead, and one each minute.
    """
    with Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        bars: dict[str, TaskID] = {}
        current: str | None = None
        last_line_s = clock()

        def show(event: EventView) -> None:
            nonlocal current, last_line_s
            kind, data = event["kind"], event["data"]
            if kind == "stage":
                if current in bars:
                    _finish(progress, bars[current])
                stage = current = data["stage"]
                title = STAGE_TITLES.get(stage, stage)
                if stage not in bars:
                    bars[stage] = progress.add_task(title, total=None, note="")
                if not console.is_terminal:
                    console.print(title)
                    last_line_s = clock()
            elif kind == "progress" and data["stage"] in bars:
                note = data.get("note", "")
                progress.update(bars[data["stage"]], completed=data["done"], total=data["total"], note=note)
                if not console.is_terminal and clock() - last_line_s >= _LINE_INTERVAL_S:
                    console.print(f"  {data['done']} of {data['total']} {note}".rstrip())
                    last_line_s = clock()
            elif kind == "message":
                console.print(f"  {data['text']}")

        yield show
        if current in bars:
            _finish(progress, bars[current])


@contextlib.contextmanager
def shown_transfer(
    name: str, size_bytes: int | None, console: Console | None = None
) -> Iterator[Callable[[int], None]]:
    """Draw a bar for a file that is sent or fetched, on standard error, where that is a terminal and the file large; an
    `OnTransfer` of `kerf.Client`.
    """
    console = console or plain_console(stderr=True)
    small = size_bytes is not None and size_bytes < _SHOWN_BYTES
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=small or not console.is_terminal,
    ) as progress:
        bar = progress.add_task(name, total=size_bytes)
        yield lambda part_bytes: progress.advance(bar, part_bytes)


@contextlib.contextmanager
def shown_wait(text: str) -> Iterator[None]:
    """Say on standard error, where that is a terminal, what is waited for."""
    console = plain_console(stderr=True)
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        yield


def _finish(progress: Progress, bar: TaskID) -> None:
    task = progress.tasks[progress.task_ids.index(bar)]
    total = task.total or max(1.0, task.completed)
    progress.update(bar, completed=total, total=total)
    progress.stop_task(bar)
