"""The `kerf` command and its verbs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from device_agent import __version__
from kerf import ServerUnavailable
from server.cli import (
    auth,
    database,
    datasets,
    demo,
    devices,
    doctor,
    export,
    latency,
    latency_models,
    models,
    processes,
    report,
    searches,
    tokens,
)
from server.cli.connection import NO_SERVER_REMEDY
from server.cli.console import plain_console
from server.cli.exit_codes import EXPECTED, MEANINGS, ExitCode, exit_code_of

app = typer.Typer(
    help="Find pruned networks that are really faster on the device they will run on.",
    epilog="Exit codes: " + "; ".join(f"{code.value} {meaning}" for code, meaning in MEANINGS.items()) + ".",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
searches.app.command("report")(report.report)
app.add_typer(searches.app, name="search")
app.add_typer(devices.app, name="devices")
app.add_typer(latency.app, name="latency")
app.add_typer(latency_models.predictor_app, name="predictor")
app.add_typer(models.app, name="models")
app.add_typer(datasets.app, name="datasets")
app.add_typer(database.app, name="db")
app.add_typer(tokens.app, name="tokens")
app.add_typer(auth.app, name="auth")
app.command("export")(export.export)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)
app.command("up")(processes.up)
app.command("server")(processes.server)
app.command("worker")(processes.worker)
app.command("enrol-code")(devices.enrol_code)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kerf {__version__}")
        raise typer.Exit


@app.callback()
def options(
    profile: Annotated[
        str | None,
        typer.Option("--profile", help="A server and token of `kerf auth login`, by name.", show_default=False),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the verb."""
    auth.choose_profile(profile)


def main() -> None:
    """Run the command line; errors that a user can act on become one line and an exit code."""
    try:
        app()
    except EXPECTED as error:
        if text := _text(error):
            plain_console(stderr=True, soft_wrap=True).print(Text.assemble(("error:", "red"), f" {text}"))
        sys.exit(exit_code_of(error))
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)


def _text(error: BaseException) -> str:
    if isinstance(error, SQLAlchemyError):
        first = str(error).splitlines()[0]
        return f"the database does not do it ({first}): `kerf db status` and `kerf doctor` say more"
    if isinstance(error, ServerUnavailable):
        return f"{error}. {NO_SERVER_REMEDY}"
    return str(error)
