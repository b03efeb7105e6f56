"""A worker's sign of life in the database, so that others need not infer from its work whether it is there."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import structlog
from sqlalchemy.exc import SQLAlchemyError

from device_agent import __version__
from server.database import Database
from server.workers import repository
from server.workers.repository import HEARTBEAT_INTERVAL_S

log = structlog.get_logger(__name__)


class Presence:
    """What a worker tells of itself. `serving` is written at once, from whichever thread."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self._worker_id: str | None = None
        self._search_id: str | None = None
        self._changed = threading.Event()
        self._done = False

    @contextlib.contextmanager
    def serving(self, search_id: str) -> Iterator[None]:
        """While this lasts, the worker has the search in its hands."""
        self._tell(search_id)
        try:
            yield
        finally:
            self._tell(None)

    def _tell(self, search_id: str | None) -> None:
        self._search_id = search_id
        self._changed.set()

    def run(self) -> None:
        """Write until `stop`. A database that is away only makes the worker look silent meanwhile."""
        while not self._done:
            try:
                self._write()
            except SQLAlchemyError as error:
                log.warning("presence_not_told", error=str(error).splitlines()[0])
            self._changed.wait(HEARTBEAT_INTERVAL_S)
            self._changed.clear()
        if self._worker_id is not None:
            with contextlib.suppress(SQLAlchemyError), self._database.write() as session:
                repository.leave_worker(session, self._worker_id)

    def _write(self) -> None:
        with self._database.write() as session:
            if self._worker_id is None or not repository.beat(session, self._worker_id, self._search_id):
                self._worker_id = repository.enter_worker(
                    session, name=self._name, host=socket.gethostname(), version=__version__
                )
                repository.beat(session, self._worker_id, self._search_id)

    def stop(self) -> None:
        self._done = True
        self._changed.set()


@contextlib.contextmanager
def present(database: Database, name: str) -> Iterator[Presence]:
    """A worker that is seen, from a thread of its own, until the end of this."""
    presence = Presence(database, name)
    thread = threading.Thread(target=presence.run, name="presence", daemon=True)
    thread.start()
    try:
        yield presence
    finally:
        presence.stop()
        thread.join()
