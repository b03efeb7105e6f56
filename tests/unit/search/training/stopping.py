"""A training run that is killed between two of its steps."""

from __future__ import annotations


class Stopped(Exception):
    pass


class StopAfter:
    """Raises after `count` steps."""

    def __init__(self, count: int) -> None:
        self._left = count

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            raise Stopped
