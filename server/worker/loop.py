"""The worker's loop: claim a job, run its stages, settle how it ended, and claim the next."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import structlog

from device_agent.contracts import ContractError
from search.data.dataset import DataError
from search.errors import SearchError
from search.models.checkpoint import CheckpointError
from search.parallel.crew import CrewUnavailable
from server.artifacts.store import ArtifactStore, open_store
from server.database import Database, is_away, is_full
from server.errors import ApiError, Unavailable
from server.latency.card import refresh_card
from server.latency.kernel_models import refresh_model
from server.latency.profit import refresh_profit
from server.searches import repository
from server.searches.repository import ClaimLost, JobClaim
from server.settings import Settings
from server.worker.crews import require_gpu
from server.worker.memory import is_out_of_memory, limit_memory
from server.worker.pipeline import run_stages
from server.worker.presence import present
from server.worker.run import RunInterrupted, SearchFailed, SearchRun, signal_of

#: Errors whose text names the value and the remedy; anything else is a defect of ours.
_USER_ERRORS = (SearchFailed, SearchError, ContractError, DataError, CheckpointError, ApiError)

#: What a worker without a search works out for series of measurements: what it is called, and one step of it.
_REFRESHED: dict[str, Callable[[Database], str | None]] = {
    "card": refresh_card,
    "profit_map": refresh_profit,
    "latency_model": refresh_model,
}

log = structlog.get_logger(__name__)

#: How often the table is asked for work while there is none.
IDLE_INTERVAL_S = 0.5
#: How often a worker without a search looks whether the card, the profit map or the latency model of a series is due.
REFRESH_INTERVAL_S = 5.0
#: How long it leaves cards, or models, alone after one that could not be made.
REFRESH_PAUSE_S = 600.0
#: How long a worker leaves a database in peace that did not answer.
UNAVAILABLE_INTERVAL_S = 2.0
#: Heartbeats in the time after which a job counts as abandoned: one may fail without harm.
HEARTBEATS_PER_STALE_TIME = 4


def run_worker(settings: Settings, stop: threading.Event) -> None:
    """Serve jobs until `stop` is set. The running job is put back with its state kept.

    Raises `ContractError` where the settings ask for what this machine has not.
    """
    require_gpu(settings)
    limit_memory(settings.worker_memory_bytes)
    database = Database.from_settings(settings)
    store = open_store(settings)
    store.remove_abandoned()
    # One worker a host and data folder holds this name, by the lock: after a crash it takes its job back at once.
    name = f"{socket.gethostname()}:{settings.data_dir}"
    with contextlib.ExitStack() as within:
        is_sole = within.enter_context(_sole_holder(settings))
        worker = name if is_sole else f"{name}:{os.getpid()}"
        log.info("worker_started", worker=worker)
        presence = within.enter_context(present(database, worker))
        first = is_sole
        #: What was claimed when the database, the store or the cluster went away.
        held: JobClaim | None = None
        looked = dict.fromkeys(_REFRESHED, 0.0)
        while not stop.is_set():
            try:
                with database.write() as session:
                    claim = repository.claim_runnable_job(
                        session,
                        worker=worker,
                        stale_s=settings.job_stale_s,
                        take_over_own=first,
                        held=held,
                        max_takeovers=settings.max_takeovers,
                    )
            except Exception as error:
                if not is_away(error):
                    raise
                log.warning("database_unavailable", error=_in_short(error))
                stop.wait(UNAVAILABLE_INTERVAL_S)
                continue
            held = None
            if claim is None:
                first = False
                looked = {what: _refresh(what, database, at) for what, at in looked.items()}
                stop.wait(IDLE_INTERVAL_S)
                continue
            try:
                with presence.serving(claim.search_id):
                    _serve(database, settings, store, claim, stop)
            except Exception as error:
                if not _passes(error):
                    raise
                # The search is not wrong: it is taken up again at its last checkpoint, by us or, once stale, by others.
                held = claim
                log.warning("search_interrupted", search_id=claim.search_id, error=_in_short(error))
                stop.wait(UNAVAILABLE_INTERVAL_S)
        if held is not None:
            # Away until the end: then it is as if we had died.
            with contextlib.suppress(Exception), database.write() as session:
                repository.release_job(session, held)
    database.dispose()
    log.info("worker_stopped", worker=worker)


def _refresh(what: str, database: Database, looked: float) -> float:
    """Work out what is due of one series, if anything is; returns when (monotonic) that was last looked for."""
    if time.monotonic() - looked < REFRESH_INTERVAL_S:
        return looked
    try:
        series_id = _REFRESHED[what](database)
    except Exception:
        # No search fails by it, and what is there stays as old as it says.
        log.warning(f"{what}_failed", exc_info=True)
        return time.monotonic() + REFRESH_PAUSE_S
    else:
        if series_id is not None:
            log.info(f"{what}_refreshed", series_id=series_id)
    return time.monotonic()


@contextlib.contextmanager
def _sole_holder(settings: Settings) -> Iterator[bool]:
    """Whether this process is the only worker of the data folder; the lock dies with the process."""
    import fcntl

    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with (settings.data_dir / "worker.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def _serve(
    database: Database, settings: Settings, store: ArtifactStore, claim: JobClaim, stop: threading.Event
) -> None:
    """Run one job as far as it goes, and leave it in the state that this calls for.

    Raises what `_passes`: then the job stays claimed, and the worker must look again later.
    """
    run = SearchRun(
        database=database,
        settings=settings,
        store=store,
        claim=claim,
        interrupt=threading.Event(),
        lost=threading.Event(),
    )
    bound = log.bind(search_id=claim.search_id, epoch=claim.epoch)
    bound.info("search_claimed", stage=claim.stage.value)
    with _heartbeat(run, stop):
        try:
            run_stages(run)
        except RunInterrupted:
            _settle(run)
        except ClaimLost as error:
            bound.warning("search_lost", reason=str(error))
        except Exception as error:
            if isinstance(error, CrewUnavailable):
                # It may be so for days, and whoever waits for the search cannot see the worker's log.
                with contextlib.suppress(ClaimLost):
                    run.message_once(f"{error}. The search waits for it")
            if _passes(error):
                raise
            if isinstance(error, _USER_ERRORS):
                bound.warning("search_failed", reason=str(error))
                _fail(run, run.named(str(error)))
                return
            if is_out_of_memory(error):
                bound.warning("search_out_of_memory", reason=str(error))
                _fail(run, _out_of_memory(settings))
                return
            bound.exception("search_crashed")
            _fail(run, f"an error in Kerf itself, please report it: {type(error).__name__}: {error}")
        else:
            bound.info("search_completed")


def _out_of_memory(settings: Settings) -> str:
    most = settings.worker_memory_bytes
    has = f"the {most >> 20} MiB of KERF_WORKER_MEMORY_BYTES" if most else "what the worker's machine has"
    return (
        f"the search needs more memory than {has}: make images, network or batches (training.batch_size) smaller, or "
        "give the worker more"
    )


@contextlib.contextmanager
def _heartbeat(run: SearchRun, stop: threading.Event) -> Iterator[None]:
    """Keep the claim alive from a thread, and turn the user's wishes and the process's end into an interruption."""
    done = threading.Event()
    interval_s = run.settings.job_stale_s / HEARTBEATS_PER_STALE_TIME

    def beat() -> None:
        waited_s = interval_s
        while not done.wait(min(0.2, interval_s)):
            if stop.is_set():
                run.interrupt.set()
            waited_s += 0.2
            # Wishes are looked at more often than the claim needs it, so that a cancellation is felt at once.
            if waited_s < min(interval_s, 1.0):
                continue
            waited_s = 0.0
            try:
                if signal_of(run) is not repository.JobSignal.CONTINUE:
                    run.interrupt.set()
            except ClaimLost:
                if done.is_set():
                    return
                run.lost.set()
                run.interrupt.set()
                return
            except Exception as error:
                # The database may be away for a moment. If for longer, another worker takes over and fences us off.
                log.warning("heartbeat_failed", search_id=run.search_id, error=str(error))

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _passes(error: BaseException) -> bool:
    """Whether the database, object store or cluster is away or the disk full, and not the search wrong."""
    return is_away(error) or is_full(error) or isinstance(error, (Unavailable, CrewUnavailable))


def _in_short(error: BaseException) -> str:
    """An error of the database without the statement and its parameters."""
    return str(getattr(error, "orig", None) or error)


def _settle(run: SearchRun) -> None:
    """Paused, cancelled, or put back for the next worker."""
    with contextlib.suppress(ClaimLost), run.database.write() as session:
        repository.release_job(session, run.claim)


def _fail(run: SearchRun, reason: str) -> None:
    with contextlib.suppress(ClaimLost), run.database.write() as session:
        repository.fail_job(session, run.claim, reason)
