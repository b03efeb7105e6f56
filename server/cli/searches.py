"""`kerf search ...`: submit a search, watch it, and take its front home."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from kerf import Client
from kerf.local import default_data_dir
from search.domain.config import SearchConfig
from search.domain.result import SearchResult
from server.cli.config_file import check_files, load_config, upload, with_overrides
from server.cli.connection import ServerOption, StateOption, TokenOption, connect
from server.cli.console import JsonOption, make_console, print_items
from server.cli.local_stack import StackOptions, running_stack
from server.cli.output import print_front, write_output
from server.cli.progress import shown_progress

app = typer.Typer(help="Submit and follow searches.", no_args_is_help=True)

ConfigOption = Annotated[Path, typer.Option("--config", help="The search as YAML.", show_default=False)]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder of the files that the config names.", show_default=False)
]
OutputOption = Annotated[Path, typer.Option("--output", help="Folder for result.json and the exported files.")]


@app.command()
def run(
    config: ConfigOption,
    output: OutputOption = Path("out"),
    data: DataOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    state: StateOption = None,
    method: Annotated[str | None, typer.Option(help="Instead of the config's method.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the config's seed.", show_default=False)] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="Instead of the config's device; given more than once, for all of them.", show_default=False),
    ] = None,
    latency_from: Annotated[
        str | None, typer.Option(help="Take the latency table of this earlier search.", show_default=False)
    ] = None,
    simulated: Annotated[bool, typer.Option(help="Use a simulated device (for tests; every row says so).")] = False,
) -> None:
    """Run a search to its end and write its front.

    Without --server it starts a server, a worker and an agent on this machine and stops them afterwards.
    """
    chosen = with_overrides(
        load_config(config), method=method, seed=seed, latency_from=latency_from, devices=device or ()
    )
    paths = check_files(chosen, data)
    console = make_console()
    if server is not None:
        with connect(server, token) as client:
            run_search(client, chosen, paths, output, console)
        return
    options = StackOptions(state_dir=state or default_data_dir(), simulated=simulated)
    with running_stack(options) as stack, stack.client() as client:
        console.print(f"server and dashboard: {stack.url}")
        run_search(client, chosen, paths, output, console)


def run_search(client: Client, config: SearchConfig, paths: Any, output: Path, console: Console) -> SearchResult:
    """Submit, follow and fetch one search. Raises `kerf.SearchEnded` where it does not complete."""
    body = upload(config, paths, client)
    search_id = client.searches.create(body)["id"]
    console.print(f"search {search_id}")
    follow(client, search_id, console)
    result = write_output(client, search_id, output)
    print_front(result, console)
    console.print(f"\nwritten to {output}: result.json, front.png, candidates/")
    return result


def follow(client: Client, search_id: str, console: Console) -> None:
    """Show progress until the search ends. Raises `kerf.SearchEnded` unless it completed."""
    with shown_progress(console) as show:
        client.searches.open(search_id).wait(progress=show)


@app.command()
def validate(config: ConfigOption, data: DataOption = None) -> None:
    """Check a config, and the files that it names if --data is given, without running anything."""
    chosen = load_config(config)
    if data is not None:
        check_files(chosen, data)
    typer.echo(f"{config}: ok")


@app.command()
def submit(
    config: ConfigOption, data: DataOption = None, server: ServerOption = None, token: TokenOption = None
) -> None:
    """Submit a search to a running server and print its id."""
    chosen = load_config(config)
    paths = check_files(chosen, data)
    with connect(server, token) as client:
        typer.echo(client.searches.create(upload(chosen, paths, client))["id"])


@app.command("ls")
def list_searches(server: ServerOption = None, token: TokenOption = None, as_json: JsonOption = False) -> None:
    """List searches, newest first."""
    with connect(server, token) as client:
        searches = client.searches.list()
    columns = {
        "id": lambda s: s["id"],
        "name": lambda s: s["name"],
        "method": lambda s: s["config"]["method"]["name"],
        "state": lambda s: s["state"],
        "stage": lambda s: s["stage"],
    }
    print_items(searches, columns, as_json=as_json)


@app.command()
def status(search_id: str, server: ServerOption = None, token: TokenOption = None) -> None:
    """Print one search as JSON."""
    with connect(server, token) as client:
        typer.echo(json.dumps(client.searches.get(search_id), indent=1))


@app.command()
def watch(search_id: str, server: ServerOption = None, token: TokenOption = None) -> None:
    """Follow a search until it ends."""
    with connect(server, token) as client:
        follow(client, search_id, make_console())


@app.command()
def export(
    search_id: str, output: OutputOption = Path("out"), server: ServerOption = None, token: TokenOption = None
) -> None:
    """Fetch the result and files of a completed search."""
    with connect(server, token) as client:
        print_front(write_output(client, search_id, output), make_console())


@app.command()
def cancel(search_id: str, server: ServerOption = None, token: TokenOption = None) -> None:
    """Stop a search for good."""
    _act(search_id, "cancel", server, token)


@app.command()
def pause(search_id: str, server: ServerOption = None, token: TokenOption = None) -> None:
    """Let a search rest at its next checkpoint."""
    _act(search_id, "pause", server, token)


@app.command()
def resume(search_id: str, server: ServerOption = None, token: TokenOption = None) -> None:
    """Let a paused search go on."""
    _act(search_id, "resume", server, token)


def _act(search_id: str, verb: str, server: str | None, token: str | None) -> None:
    with connect(server, token) as client:
        typer.echo(getattr(client.searches, verb)(search_id)["state"])
