"""How a command finds its server: an address and a token, or the stack of a state folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.cli.config_file import ConfigFileError
from server.client import KerfClient
from server.settings import Settings

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

DEFAULT_SERVER = "http://127.0.0.1:8321"


def connect(server: str | None, token: str | None) -> KerfClient:
    """A client of the named server; without a token, the one that `kerf up` left in the default state folder.

    Raises `ConfigFileError` where there is no token.
    """
    if token is None:
        path = Settings.from_env().local_token_file
        if not path.is_file():
            raise ConfigFileError(
                f"no token: give --token or KERF_TOKEN, or start a server here with `kerf up` ({path})"
            )
        token = path.read_text(encoding="utf-8").strip()
    return KerfClient(server or DEFAULT_SERVER, token)
