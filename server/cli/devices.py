"""`kerf devices` and `kerf enrol-code`: the fleet from the command line."""

from __future__ import annotations

import json

import typer
from rich.table import Table

from server.cli.connection import DEFAULT_SERVER, ServerOption, TokenOption, connect
from server.cli.console import make_console

app = typer.Typer(help="Look at the fleet.", no_args_is_help=True)


@app.command("ls")
def list_devices(server: ServerOption = None, token: TokenOption = None, as_json: bool = False) -> None:
    """List devices with their state and runtimes."""
    with connect(server, token) as client:
        devices = client.devices()
    if as_json:
        typer.echo(json.dumps(devices, indent=1))
        return
    table = Table(box=None, header_style="bold")
    for title in ("id", "name", "state", "cpu", "runtimes"):
        table.add_column(title)
    for device in devices:
        usable = [r["name"] for r in device["runtimes"] if not r.get("unavailable")]
        table.add_row(device["id"], device["name"], device["state"], device["profile"]["cpu_model"], ", ".join(usable))
    make_console().print(table)


def enrol_code(server: ServerOption = None, token: TokenOption = None) -> None:
    """Make a code that lets one new device enrol, and print the command to run there."""
    with connect(server, token) as client:
        code = client.create_enrolment_code()
    typer.echo(f"On the device:\n  kerf-agent run --server {server or DEFAULT_SERVER} --code {code}")
