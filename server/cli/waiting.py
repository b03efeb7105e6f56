"""`--wait`: stay until the server has done what a command asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

T = TypeVar("T")

WaitOption = Annotated[bool, typer.Option("--wait", help="Wait until it is done.")]

POLL_INTERVAL_S = 0.5


def wait_until(ask: Callable[[], T], is_done: Callable[[T], bool]) -> T:
    """Ask again and again until the answer is done. Ctrl-C ends the waiting, and nothing else."""
    while not is_done(found := ask()):
        time.sleep(POLL_INTERVAL_S)
    return found
