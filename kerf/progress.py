"""How far a search is, as a line of text: for a terminal, a notebook, or a log."""

from __future__ import annotations

import sys
from typing import TextIO

from kerf.schemas import EventView

STAGE_TITLES = {
    "preparing": "prepare the network",
    "profiling": "measure kernels",
    "searching": "search",
    "training": "train the front",
    "exporting": "export",
    "verifying": "verify on the device",
}
_BAR_CHARS = 24


class ProgressLine:
    """Call it with each event of a search, and `end` it.

    A terminal and a notebook show one line for each stage, which is drawn anew as it fills. Elsewhere nothing is drawn
    twice: a stage is one line when it begins, so that a log stays readable.
    """

    def __init__(self, stream: TextIO | None = None, *, redraws: bool | None = None) -> None:
        self._stream = stream or sys.stdout
        self._redraws = self._stream.isatty() or in_notebook() if redraws is None else redraws
        self._stage = ""
        self._drawn = ""

    def __call__(self, event: EventView) -> None:
        kind, data = event["kind"], event["data"]
        if kind == "stage":
            self.end()
            self._stage = STAGE_TITLES.get(data["stage"], data["stage"])
            self._draw(self._stage)
        elif kind == "progress" and self._redraws:
            share = data["done"] / max(1, data["total"])
            filled = round(_BAR_CHARS * min(1.0, share))
            bar = "#" * filled + "." * (_BAR_CHARS - filled)
            self._draw(f"{self._stage:<22}[{bar}] {data['done']}/{data['total']} {data.get('note', '')}".rstrip())
        elif kind == "message":
            self.end()
            self._stream.write(f"  {data['text']}\n")
        self._stream.flush()

    def end(self) -> None:
        """Finish the line that is being drawn."""
        if self._drawn:
            self._stream.write("\n")
            self._stream.flush()
            self._drawn = ""

    def _draw(self, text: str) -> None:
        # Blanks over what a longer text left.
        self._stream.write(f"\r{text:<{len(self._drawn)}}" if self._redraws else text)
        self._drawn = text


def in_notebook() -> bool:
    """Whether the output goes to a notebook, which draws a line anew after a carriage return."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"
