"""The application: `create_app(settings)`, for uvicorn and for tests."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import FrameType
from typing import Any

import structlog
from fastapi import Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from device_agent import __version__
from server import handlers, metrics, openapi, status
from server.accounts import endpoints as accounts
from server.accounts.tokens import SecretHasher
from server.allocator import share_heaps
from server.artifacts import endpoints as artifacts
from server.artifacts.store import open_store
from server.catalog import datasets, networks
from server.catalog import endpoints as catalog
from server.context import Context
from server.counters import Counters
from server.dashboard import views as dashboard
from server.database import Database
from server.errors import BadRequest
from server.failures import Failures
from server.fleet import devices, leases, quarantine_endpoints, service, watching
from server.fleet import endpoints as agents
from server.fleet.unknown_reports import UnknownReports
from server.fleet.waiting import LeaseWaiters
from server.headers import SecurityHeaders
from server.latency import endpoints as latency
from server.latency import listing_endpoints as listing
from server.latency import model_endpoints as latency_models
from server.latency.exchange import endpoints as exchange
from server.logs import configure_logging
from server.rates import RateLimit
from server.request_log import RequestLog
from server.searches import endpoints as searches
from server.searches import events
from server.settings import Settings
from server.streams import OpenStreams
from server.workers import endpoints as workers

log = structlog.get_logger(__name__)

#: How often the folder of artifacts is looked through for what killed processes left there.
TIDY_INTERVAL_S = 3600.0


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application. The database must have the newest schema: see `server.database.upgrade`."""
    settings = settings or Settings.from_env()
    configure_logging(as_json=settings.log_json)
    app = FastAPI(
        title="Kerf",
        version=__version__,
        description="On-device latency profiling and search for pruned convolutional networks.",
        lifespan=_lifespan,
        dependencies=[Depends(_refuse_nul)],
        # The interactive pages load their scripts from elsewhere. /openapi.json stays.
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(Failures)
    app.add_middleware(SecurityHeaders)
    app.state.counters = Counters()
    # The outermost: what the others answer themselves is counted, too.
    app.add_middleware(RequestLog, counters=app.state.counters)
    app.state.settings = settings
    for module in (
        status,
        searches,
        events,
        devices,
        quarantine_endpoints,
        agents,
        latency,
        listing,
        latency_models,
        exchange,
        artifacts,
        catalog,
        datasets,
        networks,
        accounts,
        workers,
        metrics,
    ):
        app.include_router(module.router)
    app.include_router(dashboard.router)
    handlers.install(app)
    openapi.install(app)
    return app


def create_process_app(settings: Settings | None = None) -> FastAPI:
    """`create_app` for a process that serves nothing else.

    What is loaded by now stays as long as the process does: each look of the garbage collector at all of it would make
    every request wait for 0.1 s. Memory that one thread freed is used by the others.
    """
    share_heaps()
    app = create_app(settings)
    gc.collect()
    gc.freeze()
    return app


async def _refuse_nul(request: Request) -> None:
    """PostgreSQL cannot compare with a NUL, so no identity has one."""
    if "\0" in request.url.path or "%00" in request.url.query:
        raise BadRequest("the address holds a NUL character")


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    database = Database.from_settings(settings)
    context = Context(
        settings=settings,
        database=database,
        hasher=SecretHasher.from_settings(settings),
        store=open_store(settings),
        waiters=LeaseWaiters(),
        stopping=asyncio.Event(),
        requests=RateLimit(settings.max_requests_per_minute),
        failed_sign_ins=RateLimit(settings.max_failed_sign_ins_per_minute),
        streams=OpenStreams(settings.max_streams),
        counters=app.state.counters,
        unknown_reports=UnknownReports(),
    )
    app.state.context = context
    with _on_stop_signals(asyncio.get_running_loop(), lambda: _stop(context)):
        context.background[:] = [
            asyncio.create_task(_watch_tasks(context), name="watch tasks"),
            _regularly(context, "reap leases", service.reap, "reaping_failed", settings.reap_interval_s),
            _regularly(context, "watch for drift", watching.watch, "watching_failed", settings.reap_interval_s),
            _regularly(context, "remove abandoned uploads", _tidy, "tidying_failed", TIDY_INTERVAL_S),
        ]
        try:
            yield
        finally:
            _stop(context)
            await asyncio.gather(*context.background, return_exceptions=True)
            database.dispose()


def _stop(context: Context) -> None:
    """Send waiting agents and event streams away, so that their connections close."""
    context.stopping.set()
    context.waiters.close()


async def _watch_tasks(context: Context) -> None:
    """Wake agents for the tasks that workers, which are other processes, make."""

    def ready(device_ids: list[str]) -> dict[str, int]:
        with context.database.read() as session:
            return leases.ready_tasks(session, device_ids)

    async def ready_async(device_ids: Any) -> dict[str, int]:
        return await run_in_threadpool(ready, list(device_ids))

    await context.waiters.watch(ready_async, context.settings.poll_interval_s)


def _tidy(context: Context) -> None:
    context.store.remove_abandoned()


def _regularly(
    context: Context, name: str, work: Callable[[Context], None], failure: str, interval_s: float
) -> asyncio.Task[None]:
    """Begin to do `work` at once and then each `interval_s`, in a thread; what fails is logged as `failure`."""

    async def loop() -> None:
        while not context.stopping.is_set():
            try:
                await run_in_threadpool(work, context)
            except Exception:
                log.warning(failure, exc_info=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(context.stopping.wait(), interval_s)

    return asyncio.create_task(loop(), name=name)


@contextlib.contextmanager
def _on_stop_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on SIGTERM and SIGINT, before whoever else handles them.

    uvicorn runs the end of the lifespan only after all connections have closed, which a long poll or an event stream
    would put off until uvicorn's own time-out.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stop)
        handler = earlier[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    # With a default action there is nobody to hand the signal on to, and the process must still end.
    chained = [number for number, handler in earlier.items() if callable(handler)]
    for number in chained:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in chained:
            signal.signal(number, earlier[number])
