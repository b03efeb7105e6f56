"""`kerf db`: the database, on the server's own machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from server.backup import back_up, restore
from server.cli.console import JsonOption, tell
from server.cli.doctor import SomethingIsBroken
from server.database import NewerSchema, upgrade
from server.integrity import problems
from server.schema import schema_status
from server.settings import Settings

app = typer.Typer(help="The database; on the server's machine.", no_args_is_help=True)


@app.command("upgrade")
def upgrade_database(
    unless_newer: Annotated[
        bool,
        typer.Option(
            "--unless-newer",
            help="Leave the database of a newer release as it is: while that takes over, this one works on with it.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring the database to the newest schema, making it where there is none."""
    settings = Settings.from_env()
    try:
        upgrade(settings)
    except NewerSchema as error:
        if not unless_newer:
            raise
        tell(f"left as it is: {error}", asdict(schema_status(settings)), as_json=as_json)
        return
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
    """Write a copy of the database, whole and as it is at one moment, while server and workers run.

    It is a SQLite file, of PostgreSQL too. Artifacts and token.key, which are files in the data folder, are not in it.
    """
    back_up(Settings.from_env(), target)
    size_bytes = target.stat().st_size
    tell(f"{target}: {size_bytes} bytes", {"file": str(target), "bytes": size_bytes}, as_json=as_json)


@app.command("restore")
def restore_database(
    source: Annotated[Path, typer.Argument(help="A file that `kerf db backup` wrote.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Make the database from a backup, and bring it to the newest schema.

    Into a database that is not there or empty, of either kind: a backup of SQLite restored into PostgreSQL is the move
    to it.
    """
    done = restore(Settings.from_env(), source)
    tell(f"{done.num_rows} rows restored from schema {done.schema}", asdict(done), as_json=as_json)


@app.command()
def check(as_json: JsonOption = False) -> None:
    """Look for damage: pages and references, the schema, reports without figures, artifacts that are missing."""
    found = list(problems(Settings.from_env()))
    tell("\n".join(found) or "nothing is wrong", {"problems": found}, as_json=as_json)
    if found:
        raise SomethingIsBroken
