"""The console that commands print to."""

from __future__ import annotations

from rich.console import Console

#: Width of the tables where there is no terminal to ask: a pipe or a log.
PIPE_WIDTH = 140


def make_console() -> Console:
    """A console on standard output, wide enough for our tables when that is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)
