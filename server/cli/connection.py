"""How a command finds its server: an address and a token, or the stack of a state folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kerf import Client
from kerf.local import DEFAULT_SERVER

ServerOption = Annotated[
    str | None, typer.Option("--server", envvar="KERF_SERVER", help="Address of a running server.", show_default=False)
]
TokenOption = Annotated[
    str | None, typer.Option("--token", envvar="KERF_TOKEN", help="A user token of that server.", show_default=False)
]
StateOption = Annotated[
    Path | None,
    typer.Option("--state", help="Folder of the local stack: database, artifacts, logs.", show_default=False),
]

__all__ = ["DEFAULT_SERVER", "ServerOption", "StateOption", "TokenOption", "connect"]


def connect(server: str | None, token: str | None) -> Client:
    """A client of the named server; see `kerf.Client`. Raises `kerf.NotConfigured` where there is no token."""
    return Client(server, token)
