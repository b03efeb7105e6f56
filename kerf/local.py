"""Where a client finds its server, unless it is told: the environment, then the stack that last ran here."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from urllib.parse import urlsplit

from kerf.errors import NotConfigured

SERVER_VARIABLE = "KERF_SERVER"
TOKEN_VARIABLE = "KERF_TOKEN"
DATA_DIR_VARIABLE = "KERF_DATA_DIR"

DEFAULT_SERVER = "http://127.0.0.1:8321"
#: In the data directory: the user token that the embedded mode makes for this machine's user.
TOKEN_FILE = "user.token"
#: Beside it: the address of the server that last started there, the only one that the token is shown to.
ADDRESS_FILE = "server.url"

#: What a server listens on to be reached at every address of its machine.
_ANY_HOST = ("0.0.0.0", "::")
_LOOPBACKS = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


def default_data_dir() -> Path:
    """`KERF_DATA_DIR`, or `$XDG_DATA_HOME/kerf`, or `~/.local/share/kerf`."""
    if named := os.environ.get(DATA_DIR_VARIABLE):
        return Path(named)
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "kerf"


def server_address(server: str | None) -> str:
    """`server`, or `KERF_SERVER`, or the address of the stack that last ran from the data directory.

    Raises `NotConfigured` for what is no http(s) address.
    """
    named = (server or os.environ.get(SERVER_VARIABLE) or "").strip()
    if named and not _is_http(named):
        raise NotConfigured(
            f"{named!r} is not a server's address: give one such as {DEFAULT_SERVER} (--server, {SERVER_VARIABLE})"
        )
    return (named or _reachable(_started_address())).rstrip("/")


def user_token(token: str | None, server: str) -> str:
    """`token`, or `KERF_TOKEN`, or the one that `kerf up` left in the data directory, if it started `server`.

    Raises `NotConfigured`.
    """
    found = token or os.environ.get(TOKEN_VARIABLE)
    if found:
        return found.strip()
    data_dir = default_data_dir()
    path = data_dir / TOKEN_FILE
    try:
        local = path.read_text(encoding="utf-8").strip()
    except OSError:
        raise NotConfigured(
            f"no token for {server}: give one (--token, {TOKEN_VARIABLE}), name another server (--server, "
            f"{SERVER_VARIABLE}), or start one here with `kerf up` ({path})"
        ) from None
    made_for = _started_address()
    if not _is_same_server(server, made_for):
        raise NotConfigured(
            f"no token for {server}: the one in {path} is that of {made_for} and goes nowhere else. Give one of that "
            f"server (--token, {TOKEN_VARIABLE}), or name another (--server, {SERVER_VARIABLE})"
        )
    return local


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own, which nothing outside reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_http(address: str) -> bool:
    try:
        parts = urlsplit(address)
        # A port that is none raises when it is asked for.
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _started_address() -> str:
    """Where the stack of the data directory listens, or did when it last ran."""
    try:
        return (default_data_dir() / ADDRESS_FILE).read_text(encoding="utf-8").strip() or DEFAULT_SERVER
    except OSError:
        return DEFAULT_SERVER


def _reachable(address: str) -> str:
    """What a client asks for a server that listens at `address`: its loopback where it listens everywhere."""
    for everywhere, loopback in _LOOPBACKS.items():
        address = address.replace(f"//{everywhere}:", f"//{loopback}:")
    return address


def _is_same_server(server: str, made_for: str) -> bool:
    """Whether two addresses are one server: all names of this machine's loopback are one, and 0.0.0.0 includes it."""
    try:
        asked, own = urlsplit(server), urlsplit(made_for)
        asked_port, own_port = asked.port, own.port
    except ValueError:
        return False
    hosts = asked.hostname or "", own.hostname or ""
    is_same_host = hosts[0] == hosts[1] or (is_loopback(hosts[0]) and (is_loopback(hosts[1]) or hosts[1] in _ANY_HOST))
    return asked.scheme == own.scheme and asked_port == own_port and is_same_host
