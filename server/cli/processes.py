"""`kerf up`, `kerf server` and `kerf worker`: the processes of the service."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

import typer

from kerf.local import default_data_dir
from server.cli.connection import StateOption
from server.cli.console import plain_console
from server.cli.local_stack import StackOptions, running_stack
from server.settings import Settings

#: uvicorn without a limit never ends while an event stream is open.
GRACEFUL_TIMEOUT_S = 5


def up(
    state: StateOption = None,
    host: Annotated[str, typer.Option(envvar="KERF_HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="KERF_PORT", help="Port to listen on.")] = 8321,
    agent: Annotated[bool, typer.Option(help="Also run an agent on this machine.")] = True,
    simulated: Annotated[bool, typer.Option(help="Let the agent simulate its device.")] = False,
) -> None:
    """Run server, worker and a local agent together until Ctrl-C."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    options = StackOptions(
        state_dir=state or default_data_dir(), host=host, port=port, with_agent=agent, simulated=simulated
    )
    console = plain_console(soft_wrap=True)
    # Standard output says when it runs.
    parts = "server, worker and agent" if agent else "server and worker"
    plain_console(stderr=True, soft_wrap=True).print(f"starting {parts}; logs are in {options.state_dir / 'logs'}")
    with running_stack(options) as stack:
        console.print(f"Kerf runs at {stack.url} (state in {stack.state_dir}). Ctrl-C stops it.")
        while not stop.wait(0.5):
            stack.check()
        console.print("stopping")


def server(
    host: Annotated[str, typer.Option(envvar="KERF_HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="KERF_PORT", help="Port to listen on.")] = 8321,
) -> None:
    """Run the HTTP server alone. Migrate the database first: `kerf db upgrade`."""
    import uvicorn

    from server.http_protocol import BoundedHttpProtocol

    uvicorn.run(
        "server.app:create_process_app",
        factory=True,
        host=host,
        port=port,
        http=BoundedHttpProtocol,
        # There are none, and each is one way in less.
        ws="none",
        timeout_graceful_shutdown=GRACEFUL_TIMEOUT_S,
        log_level="warning",
    )


def worker() -> None:
    """Run a worker, which carries searches from stage to stage, until SIGTERM."""
    from server.logs import configure_logging
    from server.worker.loop import run_worker

    settings = Settings.from_env()
    configure_logging(as_json=settings.log_json)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    run_worker(settings, stop)
