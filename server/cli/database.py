"""`kerf db`: the database, on the server's own machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from server.backup import back_up
from server.cli.config_file import ConfigFileError
from server.cli.console import JsonOption, tell
from server.database import upgrade
from server.schema import schema_status
from server.settings import Settings

app = typer.Typer(help="The database; on the server's machine.", no_args_is_help=True)


@app.command("upgrade")
def upgrade_database(as_json: JsonOption = False) -> None:
    """Bring the database to the newest schema, making it where there is none."""
    settings = Settings.from_env()
    upgrade(settings)
    tell("the database is at the newest schema", asdict(schema_status(settings)), as_json=as_json)


@app.command()
def status(as_json: JsonOption = False) -> None:
    """Show where the database is, and whether its schema is the newest."""
    settings = Settings.from_env()
    found = schema_status(settings)
    schema = found.schema or "none"
    state = "the newest" if found.is_newest else f"the newest is {found.newest}: run `kerf db upgrade`"
    tell(f"{found.url}: schema {schema}, {state}", asdict(found), as_json=as_json)


@app.command("backup")
def back_up_database(
    target: Annotated[Path, typer.Argument(help="The file to write; it must not exist.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Write a copy of a SQLite database, whole and consistent while the server runs. Artifacts and token.key, which
    are files in the data folder, are not in it.
    """
    try:
        back_up(Settings.from_env(), target)
    except (ValueError, OSError) as error:
        raise ConfigFileError(str(error)) from None
    size_bytes = target.stat().st_size
    tell(f"{target}: {size_bytes} bytes", {"file": str(target), "bytes": size_bytes}, as_json=as_json)
