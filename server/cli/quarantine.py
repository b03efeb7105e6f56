"""`kerf latency quarantine` and `kerf latency pardon`: what took its devices down, and is not tried again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from server.cli.connection import ServerOption, TokenOption, connect
from server.cli.console import JsonOption, print_items, tell


def list_quarantine(server: ServerOption = None, token: TokenOption = None, as_json: JsonOption = False) -> None:
    """List kernels and networks that crashed or hung in every attempt: they are not tried again on those devices."""
    with connect(server, token) as client:
        found = client.latency.quarantine(limit=10_000)
    columns: Mapping[str, Callable[[Any], str]] = {
        "subject": lambda q: q["subject"],
        "runtime": lambda q: f"{q['runtime']} {q['runtime_version']}",
        "kept from": lambda q: "every device" if q["is_everywhere"] else q["casualties"][0]["device_name"],
        "because": lambda q: "; ".join(
            f"{c['reason']} {c['failures']} times on {c['device_name']!r}" for c in q["casualties"]
        ),
    }
    print_items(found, columns, as_json=as_json)


def pardon(
    subject: Annotated[str, typer.Argument(help="As `kerf latency quarantine` shows it.", show_default=False)],
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a kernel or network in quarantine be tried again on every device."""
    with connect(server, token) as client:
        done = client.latency.pardon(subject)
    tell(f"{done['subject']} will be tried again", done, as_json=as_json)
