"""Live progress of a search in the terminal, from its event stream."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from kerf.progress import STAGE_TITLES
from kerf.schemas import EventView


@contextlib.contextmanager
def shown_progress(console: Console) -> Iterator[Callable[[EventView], None]]:
    """Draw one bar for each stage of the events that the function is called with. In a pipe, one line for each stage
    and message instead.
    """
    with Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        bars: dict[str, TaskID] = {}
        current: str | None = None

        def show(event: EventView) -> None:
            nonlocal current
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
            elif kind == "progress" and data["stage"] in bars:
                progress.update(
                    bars[data["stage"]], completed=data["done"], total=data["total"], note=data.get("note", "")
                )
            elif kind == "message":
                console.print(f"  {data['text']}")

        yield show
        if current in bars:
            _finish(progress, bars[current])


def _finish(progress: Progress, bar: TaskID) -> None:
    task = progress.tasks[progress.task_ids.index(bar)]
    total = task.total or max(1.0, task.completed)
    progress.update(bar, completed=total, total=total)
    progress.stop_task(bar)
