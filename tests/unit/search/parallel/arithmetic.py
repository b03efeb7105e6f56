"""Work for crews in tests, in a module that other processes can import."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.parallel.crew import Contact, Do


class Unlucky(ValueError):
    """An error with arguments, as real ones have."""


@dataclass(frozen=True)
class Squares:
    """Squares numbers. A number in `deadly` kills its process, the first `lives` times that it comes to one."""

    folder: Path
    deadly: tuple[int, ...] = ()
    lives: int = 1

    def __call__(self) -> Do:
        (self.folder / f"prepared-{os.getpid()}").touch()
        return self.square

    def square(self, piece: Any, contact: Contact) -> Any:
        if piece == "raise":
            raise Unlucky(f"no square of {piece!r}")
        if piece == "pid":
            return os.getpid()
        if piece == "gpus":
            return os.environ.get("CUDA_VISIBLE_DEVICES")
        contact.check()
        contact.tell(f"squaring {piece}")
        if piece in self.deadly:
            deaths = len(list(self.folder.glob(f"died-{piece}-*")))
            if deaths < self.lives:
                (self.folder / f"died-{piece}-{deaths}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return piece * piece
