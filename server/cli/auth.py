"""`kerf auth`: servers by name, with the token of each, so that commands need neither."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from kerf import Client
from kerf.errors import ApiError, KerfError
from kerf.local import SERVER_VARIABLE, TOKEN_VARIABLE, server_address
from kerf.profiles import (
    DEFAULT_PROFILE,
    PROFILE_VARIABLE,
    Profile,
    profiles_path,
    read_profiles,
    write_profiles,
)
from server.cli.console import JsonOption, print_items, tell

app = typer.Typer(help="Servers by name, with the token of each.", no_args_is_help=True)

ProfileOption = Annotated[str, typer.Option("--profile", help="The name to keep it under.")]
_TIMEOUT_S = 10.0


@app.command()
def login(
    server: Annotated[
        str | None, typer.Option("--server", help="Address of the server: http://HOST:8321.", show_default=False)
    ] = None,
    token: Annotated[
        str | None,
        typer.Option("--token", help="A user token of it; asked for where it is not given.", show_default=False),
    ] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    as_json: JsonOption = False,
) -> None:
    """Keep a server and a token for it, once the server knows the token; commands use them from then on."""
    address = server_address(server)
    secret = token or typer.prompt(f"Token for {address}", hide_input=True, err=True)
    secret = secret.strip()
    with Client(address, secret, timeout_s=_TIMEOUT_S) as client:
        found = client.tokens.current()
    write_profiles(read_profiles().with_profile(profile, Profile(server=address, token=secret)))
    scopes = ", ".join(found["scopes"])
    tell(
        f"signed in to {address} as {found['name']} ({scopes}); kept as {profile!r} in {profiles_path()}",
        {"profile": profile, "server": address, "name": found["name"], "scopes": found["scopes"]},
        as_json=as_json,
    )


@app.command()
def status(as_json: JsonOption = False) -> None:
    """List profiles, which of them commands use, and whether their servers still know the tokens."""
    profiles = read_profiles()
    chosen = profiles.chosen()
    items: list[dict[str, Any]] = [
        {"profile": name, "server": each.server, "is_used": each is chosen and not _overrides(), **_asked(each)}
        for name, each in sorted(profiles.profiles.items())
    ]
    if not as_json and _overrides():
        typer.echo(f"{' and '.join(_overrides())} in the environment say where to go, not a profile", err=True)
    columns = {
        "profile": lambda p: p["profile"],
        "": lambda p: "used" if p["is_used"] else "",
        "server": lambda p: p["server"],
        "as": lambda p: p["name"] or "",
        "problem": lambda p: p["problem"] or "",
    }
    print_items(items, columns, as_json=as_json)


@app.command()
def use(
    profile: Annotated[str, typer.Argument(help="A profile of `kerf auth status`.")], as_json: JsonOption = False
) -> None:
    """Choose the profile that commands use where neither --profile nor KERF_PROFILE names one."""
    write_profiles(read_profiles().using(profile))
    tell(f"commands use {profile!r}", {"profile": profile}, as_json=as_json)


@app.command()
def logout(profile: ProfileOption = DEFAULT_PROFILE, as_json: JsonOption = False) -> None:
    """Forget a profile on this machine. The token stays valid: `kerf tokens revoke` ends it."""
    write_profiles(read_profiles().without(profile))
    tell(f"{profile!r} is forgotten here; `kerf tokens revoke` ends a token", {"profile": profile}, as_json=as_json)


def choose_profile(name: str | None) -> None:
    """Have this process use a profile. Raises `kerf.NotConfigured` where it is not there."""
    if name is not None:
        read_profiles().check(name)
        os.environ[PROFILE_VARIABLE] = name


def _overrides() -> list[str]:
    return [name for name in (SERVER_VARIABLE, TOKEN_VARIABLE) if os.environ.get(name)]


def _asked(profile: Profile) -> dict[str, Any]:
    try:
        with Client(profile.server, profile.token, timeout_s=_TIMEOUT_S, max_attempts=1) as client:
            found = client.tokens.current()
    except (ApiError, KerfError) as error:
        return {"name": None, "scopes": [], "problem": str(error)}
    return {"name": found["name"], "scopes": found["scopes"], "problem": None}
