"""The reference of the `kerf` command, by typer's own generator."""

from __future__ import annotations

import html
import subprocess
import sys

_COMMAND = [sys.executable, "-m", "typer", "server.cli.main", "utils", "docs", "--name", "kerf", "--title", "kerf"]


def page() -> str:
    """The page as Markdown: each verb with its help, arguments and options."""
    made = subprocess.run(_COMMAND, check=True, capture_output=True, text=True, env=_environment()).stdout
    # The generator escapes texts for HTML, and Markdown escapes what stands in code once more.
    return html.unescape(made).replace("```console\n$ ", "```text\n")


def _environment() -> dict[str, str]:
    import os

    # Lines are broken for a terminal otherwise.
    return {**os.environ, "COLUMNS": "1000", "TERM": "dumb"}
