"""`kerf devices` and `kerf enrol-code`: the fleet from the command line."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from server.cli.connection import DEFAULT_SERVER, ServerOption, TokenOption, connect
from server.cli.console import JsonOption, print_items

app = typer.Typer(help="Look at the fleet.", no_args_is_help=True)


@app.command("ls")
def list_devices(server: ServerOption = None, token: TokenOption = None, as_json: JsonOption = False) -> None:
    """List devices with their state and runtimes."""
    with connect(server, token) as client:
        devices = client.devices.list()
    columns = {
        "id": lambda d: d["id"],
        "name": lambda d: d["name"],
        "state": lambda d: f"{d['state']}, drifted" if d.get("drifted_series") else d["state"],
        "cpu": lambda d: _cpu_words(d["profile"]),
        "runtimes": lambda d: ", ".join(r["name"] for r in d["runtimes"] if not r.get("unavailable")),
    }
    print_items(devices, columns, as_json=as_json)


def _cpu_words(profile: dict[str, Any]) -> str:
    """The processor, with what its latencies are where they are not measured ones."""
    mark = next((f" ({name})" for name in ("imported", "simulated", "emulated") if profile.get(name)), "")
    return f"{profile['cpu_model']}{mark}"


def enrol_code(
    server: ServerOption = None,
    token: TokenOption = None,
    uses: Annotated[int, typer.Option(help="how many devices may enrol with it")] = 1,
) -> None:
    """Make a code that lets new devices enrol, and print the command to run there."""
    with connect(server, token) as client:
        code = client.devices.create_enrolment_code(max_uses=uses)["code"]
    typer.echo(f"On the device:\n  kerf-agent run --server {server or DEFAULT_SERVER} --code {code}")
