"""`kerf devices` and `kerf enrol-code`: the fleet from the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from kerf import Client
from kerf.schemas import DeviceView
from server.cli.connection import ServerOption, TokenOption, connect
from server.cli.console import JsonOption, print_fields, print_items, tell

app = typer.Typer(help="Look at the fleet, and steer it.", no_args_is_help=True)

#: A fleet has fewer: a list of all of them, by name.
MOST_DEVICES = 10_000

DeviceArgument = Annotated[str, typer.Argument(help="Name or id; see `kerf devices ls`.", show_default=False)]


@app.command("ls")
def list_devices(server: ServerOption = None, token: TokenOption = None, as_json: JsonOption = False) -> None:
    """List devices with their state and runtimes."""
    with connect(server, token) as client:
        devices = client.devices.list(limit=MOST_DEVICES)
    columns: Mapping[str, Callable[[Any], str]] = {
        "id": lambda d: d["id"],
        "name": lambda d: d["name"],
        "state": lambda d: f"{d['state']}, drifted" if d.get("drifted_series") else d["state"],
        "cpu": lambda d: _cpu_words(d["profile"]),
        "runtimes": lambda d: ", ".join(r["name"] for r in d["runtimes"] if not r.get("unavailable")),
    }
    print_items(devices, columns, as_json=as_json)


@app.command()
def show(
    device_id: DeviceArgument, server: ServerOption = None, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """Show one device: its processor, runtimes, condition and work. `kerf doctor` says what is wrong with it."""
    with connect(server, token) as client:
        _show(client.devices.get(_id_of(client, device_id)), as_json=as_json)


@app.command()
def enable(
    device_id: DeviceArgument, server: ServerOption = None, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """Give a device work again."""
    with connect(server, token) as client:
        view = client.devices.enable(_id_of(client, device_id))
    tell(view["state"], view, as_json=as_json)


@app.command()
def disable(
    device_id: DeviceArgument, server: ServerOption = None, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """Give a device no new work; it finishes what it holds."""
    with connect(server, token) as client:
        view = client.devices.disable(_id_of(client, device_id))
    tell(view["state"], view, as_json=as_json)


def _id_of(client: Client, device: str) -> str:
    """The id of the device of this name, as configs name it; anything else is an id, or for the server to refuse."""
    return next((known["id"] for known in client.devices.list(limit=MOST_DEVICES) if known["name"] == device), device)


def enrol_code(
    server: ServerOption = None,
    token: TokenOption = None,
    uses: Annotated[int, typer.Option(help="How many devices may enrol with it.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Make a code that lets new devices enrol, and print the command to run there."""
    with connect(server, token) as client:
        made = client.devices.create_enrolment_code(max_uses=uses)
        command = f"kerf-agent run --server {client.server} --code {made['code']}"
    tell(f"On the device:\n  {command}", {**made, "command": command}, as_json=as_json)


def _show(device: DeviceView, *, as_json: bool) -> None:
    conditions = device["conditions"]
    celsius = None if conditions is None else conditions["temperature_celsius"]
    fields = {
        "device": device["id"],
        "name": device["name"],
        "state": device["state"],
        "last seen": device["last_seen_at"],
        "cpu": _cpu_words(device["profile"]),
        "system": f"{device['profile']['system']} {device['profile']['os_build']}",
        "agent": device["agent_version"],
        "temperature": None if celsius is None else f"{celsius:.0f} °C",
        "governor": None if conditions is None else conditions["governor"],
        "work": f"{device['pending_tasks']} waiting, {device['leased_tasks']} in hand",
        "drifted": ", ".join(device["drifted_series"]),
    }
    for runtime in device["runtimes"]:
        why_not = runtime["unavailable"]
        fields[runtime["name"]] = f"unavailable: {why_not}" if why_not else f"{runtime['version']} {runtime['isa']}"
    print_fields(device, fields, as_json=as_json)


def _cpu_words(profile: Mapping[str, Any]) -> str:
    """The processor, with what its latencies are where they are not measured ones."""
    mark = next((f" ({name})" for name in ("imported", "simulated", "emulated") if profile.get(name)), "")
    return f"{profile['cpu_model']}{mark}"
