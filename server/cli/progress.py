"""Live progress of a search in the terminal, from its event stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

STAGE_TITLES = {
    "preparing": "prepare the network",
    "profiling": "measure kernels",
    "searching": "search",
    "training": "train the front",
    "exporting": "export",
    "verifying": "verify on the device",
}


def show_progress(events: Iterable[dict[str, Any]], console: Console) -> None:
    """Draw one bar for each stage until the events end. In a pipe, one line for each stage and message instead."""
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
        for event in events:
            kind, data = event["kind"], event["data"]
            if kind == "stage":
                if current in bars:
                    _finish(progress, bars[current])
                current = data["stage"]
                title = STAGE_TITLES.get(current, current)
                if current not in bars:
                    bars[current] = progress.add_task(title, total=None, note="")
                if not console.is_terminal:
                    console.print(title)
            elif kind == "progress" and data["stage"] in bars:
                progress.update(
                    bars[data["stage"]], completed=data["done"], total=data["total"], note=data.get("note", "")
                )
            elif kind == "message":
                console.print(f"  {data['text']}")
        if current in bars:
            _finish(progress, bars[current])


def _finish(progress: Progress, bar: TaskID) -> None:
    task = progress.tasks[progress.task_ids.index(bar)]
    total = task.total or max(1.0, task.completed)
    progress.update(bar, completed=total, total=total)
    progress.stop_task(bar)
