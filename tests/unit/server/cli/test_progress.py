"""What a search shows of itself where nothing can be drawn anew."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from server.cli.progress import shown_progress, shown_transfer


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


def test_a_large_file_has_a_bar_in_a_terminal_alone() -> None:
    def drawn(size_bytes: int | None, *, terminal: bool = True) -> str:
        out = io.StringIO()
        console = Console(file=out, width=100, force_terminal=terminal)
        with shown_transfer("images [x].zip", size_bytes, console) as tell:
            tell(6_000_000)
        return out.getvalue()

    bar = drawn(12_000_000)
    assert "images [x].zip" in bar
    assert "6.0/12.0 MB" in bar
    assert "images [x].zip" in drawn(None)
    assert drawn(12_000_000, terminal=False) == ""
    assert "zip" not in drawn(1000)
