"""`kerf tokens`: who may use the server. `create` works on the server's own machine, the others anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from server.accounts.service import DEFAULT_USER_SCOPES, Scope, mint_user_token
from server.accounts.tokens import SecretHasher
from server.cli.config_file import ConfigFileError
from server.cli.connection import ServerOption, TokenOption, connect
from server.cli.console import JsonOption, print_fields, print_items, tell
from server.database import Database
from server.schema import NoDatabase, schema_status
from server.settings import Settings

app = typer.Typer(help="User tokens.", no_args_is_help=True)

SECONDS_PER_DAY = 86_400.0


@app.command()
def create(
    name: Annotated[str, typer.Option(help="Whose token it is.")],
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What it allows; may be repeated. Default: read and run searches.")
    ] = None,
    days: Annotated[float | None, typer.Option(help="It expires after so many days.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token and print it; on the server's machine. It is stored hashed and cannot be shown again."""
    scopes = tuple(scope or DEFAULT_USER_SCOPES)
    if Scope.AGENT in scopes:
        raise ConfigFileError("the scope 'agent' belongs to devices: make a code with `kerf enrol-code`")
    if days is not None and not days > 0:
        raise ConfigFileError(f"--days {days:g} must be positive")
    settings = Settings.from_env()
    if (found := schema_status(settings)).schema is None:
        raise NoDatabase(
            f"there is no database at {found.url}: run this as the server's user and with its KERF_DATA_DIR and "
            "KERF_DATABASE_URL, which `kerf db status` shows; `kerf db upgrade` makes a new one"
        )
    database = Database.from_settings(settings)
    try:
        with database.write() as session:
            token = mint_user_token(
                session,
                SecretHasher.from_settings(settings),
                name=name,
                scopes=scopes,
                lifetime_s=None if days is None else days * SECONDS_PER_DAY,
            )
    finally:
        database.dispose()
    tell(token, {"name": name, "scopes": list(scopes), "secret": token}, as_json=as_json)


@app.command("ls")
def list_tokens(server: ServerOption = None, token: TokenOption = None, as_json: JsonOption = False) -> None:
    """List tokens, never their secrets; for admins."""
    with connect(server, token) as client:
        tokens = client.tokens.list(limit=10_000)
    columns: Mapping[str, Callable[[Any], str]] = {
        "id": lambda t: t["id"],
        "name": lambda t: t["name"],
        "scopes": lambda t: ", ".join(t["scopes"]),
        "last used": lambda t: t["last_used_at"] or "",
        "ends": lambda t: f"revoked {t['revoked_at']}" if t["revoked_at"] else t["expires_at"] or "",
    }
    print_items(tokens, columns, as_json=as_json)


@app.command()
def show(server: ServerOption = None, token: TokenOption = None, as_json: JsonOption = False) -> None:
    """Show what the token that is in use allows, and until when."""
    with connect(server, token) as client:
        found = client.tokens.current()
    fields = {
        "token": found["id"],
        "name": found["name"],
        "scopes": ", ".join(found["scopes"]),
        "expires": found["expires_at"] or "never",
    }
    print_fields(found, fields, as_json=as_json)


@app.command()
def revoke(
    token_id: Annotated[str, typer.Argument(help="A token's id; see `kerf tokens ls`.", show_default=False)],
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token useless, for good; for admins."""
    with connect(server, token) as client:
        found = client.tokens.revoke(token_id)
    tell(f"{found['id']} ({found['name']}) is revoked", found, as_json=as_json)
