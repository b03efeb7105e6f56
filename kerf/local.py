"""Where a client finds its server, unless it is told: the environment, then the stack that `kerf up` runs here."""

from __future__ import annotations

import os
from pathlib import Path

from kerf.errors import NotConfigured

SERVER_VARIABLE = "KERF_SERVER"
TOKEN_VARIABLE = "KERF_TOKEN"
DATA_DIR_VARIABLE = "KERF_DATA_DIR"

DEFAULT_SERVER = "http://127.0.0.1:8321"
#: In the data directory: the user token that the embedded mode makes for this machine's user.
TOKEN_FILE = "user.token"


def default_data_dir() -> Path:
    """`KERF_DATA_DIR`, or `$XDG_DATA_HOME/kerf`, or `~/.local/share/kerf`."""
    if named := os.environ.get(DATA_DIR_VARIABLE):
        return Path(named)
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "kerf"


def server_address(server: str | None) -> str:
    """`server`, or `KERF_SERVER`, or the address of `kerf up`."""
    return (server or os.environ.get(SERVER_VARIABLE) or DEFAULT_SERVER).rstrip("/")


def user_token(token: str | None) -> str:
    """`token`, or `KERF_TOKEN`, or the one that `kerf up` left in the data directory. Raises `NotConfigured`."""
    found = token or os.environ.get(TOKEN_VARIABLE)
    if found:
        return found.strip()
    path = default_data_dir() / TOKEN_FILE
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        raise NotConfigured(
            f"no token: give one (--token, {TOKEN_VARIABLE}), or start a server here with `kerf up` ({path})"
        ) from None
