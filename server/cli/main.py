"""The `kerf` command: its verbs, and what each exit code means.

Exit codes: 0 done; 2 bad input (a config, a file, an argument); 3 the search failed or was cancelled;
4 the server or a local process is not available; 130 interrupted.
"""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from device_agent.contracts import ContractError
from server.cli import datasets, demo, devices, export, latency, models, processes, searches, tokens
from server.cli.config_file import ConfigFileError
from server.cli.export import ExportError
from server.cli.local_stack import StackError
from server.cli.searches import SearchEnded
from server.client import ClientError, ServerUnavailable

EXIT_BAD_INPUT = 2
EXIT_SEARCH_ENDED = 3
EXIT_UNAVAILABLE = 4
EXIT_INTERRUPTED = 130

app = typer.Typer(
    help="Find pruned networks that are really faster on the device they will run on.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(searches.app, name="search")
app.add_typer(devices.app, name="devices")
app.add_typer(latency.app, name="latency")
app.add_typer(models.app, name="models")
app.add_typer(datasets.app, name="datasets")
app.add_typer(processes.db_app, name="db")
app.add_typer(tokens.app, name="tokens")
app.command("export")(export.export)
app.command("demo")(demo.demo)
app.command("up")(processes.up)
app.command("server")(processes.server)
app.command("worker")(processes.worker)
app.command("enrol-code")(devices.enrol_code)


def main() -> None:
    """Run the command line; errors that a user can act on become one line and an exit code."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        app()
    except (ConfigFileError, ContractError, ExportError) as error:
        console.print(f"[red]error:[/red] {_plain(error)}")
        sys.exit(EXIT_BAD_INPUT)
    except SearchEnded as error:
        console.print(f"[red]error:[/red] {_plain(error)}")
        sys.exit(EXIT_SEARCH_ENDED)
    except (StackError, ServerUnavailable) as error:
        console.print(f"[red]error:[/red] {_plain(error)}")
        sys.exit(EXIT_UNAVAILABLE)
    except ClientError as error:
        console.print(f"[red]error:[/red] {_plain(error)}")
        sys.exit(EXIT_BAD_INPUT if 400 <= error.status < 500 else EXIT_UNAVAILABLE)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _plain(error: BaseException) -> str:
    """The message with square brackets kept: rich would read them as markup."""
    return str(error).replace("[", "\\[")
