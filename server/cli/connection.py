"""How a command finds its server: an address and a token, or the stack of a state folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kerf import Client
from kerf.local import SERVER_VARIABLE
from kerf.profiles import with_profile
from server.cli.progress import shown_transfer

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


#: What a user can do where no server answers.
NO_SERVER_REMEDY = f"Start one here with `kerf up`, or name another with --server or {SERVER_VARIABLE}"


def connect(server: str | None, token: str | None) -> Client:
    """A client of the named server, which shows how far large files are on their way; see `kerf.Client`. Raises
    `kerf.NotConfigured` where there is no token.
    """
    return Client(server, token, on_transfer=shown_transfer)


def is_named(server: str | None) -> bool:
    """Whether --server, `KERF_SERVER` or a profile of `kerf auth login` says where to go."""
    return with_profile(server, None)[0] is not None
