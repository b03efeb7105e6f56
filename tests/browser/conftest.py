from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvicorn

from server.app import create_app
from server.context import Context
from server.database import upgrade
from server.settings import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: Debian's chromium, without a graphics card, a sandbox (it may run as root in a container) or calls home.
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

#: Far above what a loaded machine needs: it only ends a test that would hang.
TIMEOUT_S = 60.0


class Site:
    """A running server, and its insides to change what the pages show."""

    def __init__(self, settings: Settings, port: int = 0) -> None:
        upgrade(settings)
        app = create_app(settings)
        config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=5)
        self.settings = settings
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="uvicorn", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + TIMEOUT_S
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server did not start in time"
            time.sleep(0.02)
        self.port: int = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.context: Context = app.state.context

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._server.serve()

    def stop(self) -> None:
        """End as on SIGTERM, which reaches only the main thread: event streams first, then the connections."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self.context.stopping.set)
            self._server.should_exit = True
            self._thread.join(timeout=TIMEOUT_S)
        assert not self._thread.is_alive(), "the server did not stop"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The system's browser. Skips where it is not installed; it is never downloaded.

    Not for the session: while it lives, Playwright keeps an event loop on this thread, and others' tests need it.
    """
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: install kerf[dev]")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium on this machine: install it with the system's package manager (apt install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Start a real server on a free port, or on a given one, with a database that lasts for the test."""
    sites: list[Site] = []

    def start(*, open_dashboard: bool = True, port: int = 0) -> Site:
        sites.append(Site(Settings(data_dir=tmp_path, open_dashboard=open_dashboard), port))
        return sites[-1]

    yield start
    for site in sites:
        site.stop()
