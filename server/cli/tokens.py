"""`kerf tokens create`: user tokens, made on the server's own machine."""

from __future__ import annotations

from typing import Annotated

import typer

from server.accounts.service import Scope, mint_user_token
from server.accounts.tokens import SecretHasher
from server.cli.config_file import ConfigFileError
from server.database import Database
from server.settings import Settings

app = typer.Typer(help="User tokens; run on the server's machine.", no_args_is_help=True)

SECONDS_PER_DAY = 86_400.0
DEFAULT_SCOPES = (Scope.READ, Scope.SEARCHES_WRITE, Scope.ARTIFACTS_WRITE)


@app.callback()
def group() -> None:
    """Keep `create` a subcommand: a group of one would swallow its name."""


@app.command()
def create(
    name: Annotated[str, typer.Option(help="Whose token it is.")],
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What it allows; may be repeated. Default: read and run searches.")
    ] = None,
    days: Annotated[float | None, typer.Option(help="It expires after so many days.", show_default=False)] = None,
) -> None:
    """Make a token and print it. It is stored hashed and cannot be shown again."""
    scopes = tuple(scope or DEFAULT_SCOPES)
    if Scope.AGENT in scopes:
        raise ConfigFileError("the scope 'agent' belongs to devices: make a code with `kerf enrol-code`")
    if days is not None and not days > 0:
        raise ConfigFileError(f"--days {days:g} must be positive")
    settings = Settings.from_env()
    database = Database.from_settings(settings)
    try:
        with database.write() as session:
            token = mint_user_token(
                session,
                SecretHasher.from_file(settings.key_file),
                name=name,
                scopes=scopes,
                lifetime_s=None if days is None else days * SECONDS_PER_DAY,
            )
    finally:
        database.dispose()
    typer.echo(token)
