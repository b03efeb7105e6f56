"""What a search shows of itself where nothing can be drawn anew."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from server.cli.progress import shown_progress


def event(kind: str, **data: Any) -> Any:
    return {"kind": kind, "data": data}


def test_in_a_pipe_how_far_it_is_is_told_each_minute() -> None:
    out = io.StringIO()
    clock_s = [0.0]
    with shown_progress(Console(file=out, width=120), clock=lambda: clock_s[0]) as show:
        show(event("stage", stage="searching"))
        for at_s, note in ((59.0, "too soon"), (60.0, "told"), (119.0, "again too soon"), (121.0, "told as well")):
            clock_s[0] = at_s
            show(event("progress", stage="searching", done=1, total=4, note=note))
        show(event("message", text="a line"))
    assert out.getvalue().splitlines() == ["search", "  1 of 4 told", "  1 of 4 told as well", "  a line"]
