"""`kerf search ...`: submit a search, watch it, and take its front home."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from device_agent.contracts import encode
from kerf import Client
from kerf.local import SERVER_VARIABLE, default_data_dir
from kerf.schemas import SearchView
from search.domain.config import SearchConfig
from search.domain.result import SearchResult
from server.cli.config_file import ConfigFileError, check_files, load_config, upload, with_overrides
from server.cli.connection import ServerOption, StateOption, TokenOption, connect, is_named
from server.cli.console import JsonOption, make_console, print_fields, print_items, print_json, tell
from server.cli.local_stack import StackOptions, running_stack
from server.cli.output import print_front, write_output
from server.cli.progress import shown_progress
from server.cli.waiting import WaitOption, wait_until
from server.dashboard.formats import device_time

app = typer.Typer(help="Submit and follow searches.", no_args_is_help=True)

ConfigOption = Annotated[Path, typer.Option("--config", help="The search as YAML.", show_default=False)]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder of the files that the config names.", show_default=False)
]
OutputOption = Annotated[Path, typer.Option("--output", help="Folder for result.json and the exported files.")]
SearchArgument = Annotated[str, typer.Argument(help="A search; see `kerf search ls`.", show_default=False)]


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
    as_json: JsonOption = False,
) -> None:
    """Run a search to its end and write its front.

    Where no server is named (--server, KERF_SERVER, a profile of `kerf auth login`), or with --state or --simulated, it
    starts a server, a worker and an agent on this machine and stops them afterwards.
    """
    is_own = state is not None or simulated
    if is_own and server is not None:
        raise ConfigFileError(
            f"--state and --simulated are for a stack on this machine, and {server} is named (--server, "
            f"{SERVER_VARIABLE}): leave out one of them"
        )
    chosen = with_overrides(
        load_config(config), method=method, seed=seed, latency_from=latency_from, devices=device or ()
    )
    paths = check_files(chosen, data)
    console = make_console(as_json=as_json)
    if not is_own and is_named(server):
        with connect(server, token) as client:
            result = run_search(client, chosen, paths, output, console)
    else:
        options = StackOptions(state_dir=state or default_data_dir(), simulated=simulated)
        with running_stack(options) as stack, stack.client() as client:
            console.print(f"server and dashboard: {stack.url}")
            result = run_search(client, chosen, paths, output, console)
    if as_json:
        print_json(encode(result))


def run_search(client: Client, config: SearchConfig, paths: Any, output: Path, console: Console) -> SearchResult:
    """Submit, follow and fetch one search. Raises `kerf.SearchEnded` where it does not complete."""
    search_id = client.searches.create(upload(config, paths, client))["id"]
    console.print(f"search {search_id}")
    follow(client, search_id, console)
    result = write_output(client, search_id, output)
    print_front(result, console)
    console.print(f"\nwritten to {output}: result.json, front.png, candidates/")
    return result


def follow(client: Client, search_id: str, console: Console) -> SearchView:
    """Show progress until the search ends. Raises `kerf.SearchEnded` unless it completed."""
    with shown_progress(console) as show:
        return client.searches.open(search_id).wait(progress=show).view


@app.command()
def validate(config: ConfigOption, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Check a config, and the files that it names if --data is given, without running anything.

    With --json, print the config with every default spelled out.
    """
    chosen = load_config(config)
    if data is not None:
        check_files(chosen, data)
    tell(f"{config}: ok", encode(chosen), as_json=as_json)


@app.command()
def schema(as_json: JsonOption = False) -> None:
    """Print the JSON schema of a config, for editors and other programs. (It is JSON with and without --json.)"""
    from server.searches.config_schema import config_schema  # pydantic takes a while to import

    print_json(config_schema())


@app.command()
def submit(
    config: ConfigOption,
    data: DataOption = None,
    wait: WaitOption = False,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit a search to a running server and print its id. `kerf search export` fetches what it finds."""
    chosen = load_config(config)
    paths = check_files(chosen, data)
    with connect(server, token) as client:
        view = client.searches.create(upload(chosen, paths, client))
        if not as_json:
            typer.echo(view["id"])
        if wait:
            view = follow(client, view["id"], make_console(as_json=as_json))
        if as_json:
            print_json(view)


@app.command("ls")
def list_searches(
    limit: Annotated[int, typer.Option(help="Searches at most.", min=1)] = 50,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """List searches, newest first."""
    with connect(server, token) as client:
        searches = client.searches.list(limit=limit)
    columns: Mapping[str, Callable[[Any], str]] = {
        "id": lambda s: s["id"],
        "name": lambda s: s["name"],
        "method": lambda s: s["config"]["method"]["name"],
        "state": lambda s: s["state"],
        "stage": lambda s: s["stage"],
    }
    print_items(searches, columns, as_json=as_json)


@app.command()
def status(
    search_id: SearchArgument, server: ServerOption = None, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """Show how one search stands."""
    with connect(server, token) as client:
        _show(client.searches.get(search_id), as_json=as_json)


@app.command()
def watch(
    search_id: SearchArgument, server: ServerOption = None, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """Follow a search until it ends. With --json, print each event as a line."""
    with connect(server, token) as client:
        if as_json:
            client.searches.open(search_id).wait(progress=lambda event: typer.echo(json.dumps(event)))
        else:
            follow(client, search_id, make_console())


@app.command()
def export(
    search_id: SearchArgument,
    output: OutputOption = Path("out"),
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch the result and files of a completed search. With --json, print the result too."""
    with connect(server, token) as client:
        result = write_output(client, search_id, output)
    if as_json:
        print_json(encode(result))
    else:
        print_front(result, make_console())


@app.command()
def cancel(
    search_id: SearchArgument,
    wait: WaitOption = False,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop a search for good. --wait until its worker has let it go."""
    with connect(server, token) as client:
        _settle(client, client.searches.cancel(search_id), wait=wait, as_json=as_json)


@app.command()
def pause(
    search_id: SearchArgument,
    wait: WaitOption = False,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a search rest at its next checkpoint. --wait until it rests."""
    with connect(server, token) as client:
        _settle(client, client.searches.pause(search_id), wait=wait, as_json=as_json)


@app.command()
def resume(
    search_id: SearchArgument,
    wait: WaitOption = False,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a paused search go on. --wait until it has ended."""
    with connect(server, token) as client:
        view = client.searches.resume(search_id)
        if wait:
            view = follow(client, search_id, make_console(as_json=as_json))
    tell(view["state"], view, as_json=as_json)


def _settle(client: Client, view: SearchView, *, wait: bool, as_json: bool) -> None:
    """Wait, if that is wanted, until the search is where it was told to go, and tell its state."""
    if wait:
        view = wait_until(
            lambda: client.searches.get(view["id"]), lambda found: found["state"] not in ("pausing", "cancelling")
        )
    tell(view["state"], view, as_json=as_json)


def _show(view: SearchView, *, as_json: bool) -> None:
    progress = view["progress"]
    done = f"{progress['done']} of {progress['total']}" if "done" in progress and "total" in progress else ""
    efforts = (view["measuring"] or {}).values()
    fields = {
        "search": view["id"],
        "name": view["name"],
        "state": view["state"],
        "stage": f"{view['stage']} {done} {progress.get('note', '')}".rstrip(),
        "devices": ", ".join(view["device_ids"]),
        "device time": device_time(sum(effort["device_minutes"] for effort in efforts)) if efforts else None,
        "created": view["created_at"],
        "started": view["started_at"],
        "finished": view["finished_at"],
        "error": view["error"],
    }
    print_fields(view, fields, as_json=as_json)
