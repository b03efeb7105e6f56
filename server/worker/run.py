"""One search job in the hands of this worker: its checkpoints, events and artifacts, all fenced by the claim."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from search.domain.config import SearchConfig
from server.artifacts.store import ArtifactStore
from server.database import Database
from server.searches import repository
from server.searches.repository import Checkpoint, ClaimLost, JobClaim, JobSignal, SearchEvent
from server.settings import Settings
from server.states import JobStage

#: A progress line is written at most so often: watchers see it live, and the event table stays short.
PROGRESS_INTERVAL_S = 0.5


class SearchFailed(Exception):
    """The search cannot be done. The text tells the user why and what to do."""


class RunInterrupted(Exception):
    """The run stops at this point: paused, cancelled, or the worker is going away. The checkpoints hold its state."""


@dataclass(slots=True, kw_only=True)
class SearchRun:
    """What the stages of one job need of the outside world. Not shared between threads but for `interrupt`."""

    database: Database
    settings: Settings
    store: ArtifactStore
    claim: JobClaim
    #: Set by the heartbeat when the job must stop, and by the loop when the process must.
    interrupt: threading.Event
    #: The error of the heartbeat, if the claim was lost.
    lost: threading.Event
    _last_progress_s: float = field(default=0.0)
    _last_progress: Mapping[str, Any] = field(default_factory=dict)
    _device_names: dict[str, str] = field(default_factory=dict)
    _is_further: bool = field(default=False)
    _began_s: float = field(default_factory=time.monotonic)
    _waited_s: float = field(default=0.0)

    @property
    def search_id(self) -> str:
        return self.claim.search_id

    @property
    def config(self) -> SearchConfig:
        return self.claim.config

    @property
    def work_dir(self) -> Path:
        """A folder for this job's large intermediate files. It may vanish: everything in it can be made again."""
        path = self.settings.data_dir / "work" / self.search_id
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def device_names(self) -> Mapping[str, str]:
        """The names of the search's devices by their ids, in the order of the config."""
        if not self._device_names:
            with self.database.read() as session:
                self._device_names = repository.device_names(session, self.claim.device_ids)
        return self._device_names

    def where(self, device_id: str) -> str:
        """What a message about one device ends in: nothing where the search has no other."""
        return f" on {self.device_names[device_id]!r}" if len(self.device_names) > 1 else ""

    def named(self, text: str) -> str:
        """`text` with the ids of the search's devices replaced by their names."""
        for device_id, name in self.device_names.items():
            text = text.replace(device_id, repr(name))
        return text

    def check(self) -> None:
        """Raise `RunInterrupted`, `ClaimLost` or `SearchFailed` where the run must stop.

        Called between units of work.
        """
        if self.lost.is_set():
            raise ClaimLost(f"search {self.search_id} was taken over by another worker")
        if self.interrupt.is_set():
            raise RunInterrupted
        most_s = self.settings.max_work_s
        if most_s and time.monotonic() - self._began_s - self._waited_s > most_s:
            raise SearchFailed(
                f"the search took its worker more than the {most_s:g} s of KERF_MAX_WORK_S, without what it waited for "
                "devices: make the network, its images, the search or its training smaller, or give it more"
            )

    def wait(self, seconds: float) -> None:
        """Sleep, but not through an interruption. It does not count as work."""
        before_s = time.monotonic()
        self.interrupt.wait(seconds)
        self._waited_s += time.monotonic() - before_s
        self.check()

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def load(self, stage: JobStage) -> tuple[int, Any] | None:
        """The latest checkpoint of a stage as (step, data), or None."""
        with self.database.read() as session:
            found: Checkpoint | None = repository.load_checkpoint(session, self.search_id, stage)
        return None if found is None else (found.step, json.loads(found.data))

    def save(self, stage: JobStage, step: int, data: Any) -> None:
        """Store the state of a stage after `step`."""
        with self.database.write() as session:
            repository.save_checkpoint(session, self.claim, stage=stage, step=step, data=json.dumps(data))

    def got_further(self) -> None:
        """Something is finished that is kept elsewhere than with the search: a measurement, an epoch of training.

        Only after workers that ended without a word does this need to be told, once.
        """
        if self.claim.takeovers and not self._is_further:
            with self.database.write() as session:
                repository.got_further(session, self.claim)
            self._is_further = True

    # -- what watchers see ------------------------------------------------------------------------------------------

    def enter(self, stage: JobStage) -> None:
        with self.database.write() as session:
            repository.set_stage(session, self.claim, stage)

    def progress(
        self, stage: JobStage, done: int, total: int, note: str = "", *, interval_s: float = PROGRESS_INTERVAL_S
    ) -> None:
        """Tell how far a stage is; the last of a stage is always told, others at most every `interval_s`.

        What was told last is not told again: a search may wait for a device for days.
        """
        now_s = time.monotonic()
        if done < total and now_s - self._last_progress_s < interval_s:
            return
        data = {"stage": stage.value, "done": done, "total": total, "note": note}
        if data == self._last_progress:
            return
        self._last_progress_s, self._last_progress = now_s, data
        with self.database.write() as session:
            write_progress(session, self.claim, data)

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        with self.database.write() as session:
            repository.add_events(session, self.claim, [SearchEvent(kind=kind, data=data)])

    def message(self, text: str) -> None:
        """A line for the user."""
        self.event("message", {"text": text})

    def message_once(self, text: str) -> None:
        """A line for the user, unless it is the last one that there is."""
        with self.database.read() as session:
            last = repository.last_message(session, self.search_id)
        if last != text:
            self.message(text)

    def put_document(self, name: str, text: str) -> None:
        with self.database.write() as session:
            repository.put_document(session, self.claim, name, text)

    def stage_seconds(self) -> dict[str, float]:
        """Wall time from entering each stage to entering the next, over all workers, by the database's clock."""
        with self.database.read() as session:
            return repository.stage_seconds(session, self.search_id)

    def num_evaluations(self) -> int:
        """Distinct candidates that the search has estimated."""
        with self.database.read() as session:
            return repository.count_candidates(session, self.search_id)

    # -- artifacts --------------------------------------------------------------------------------------------------

    def put_artifact(self, data: bytes) -> str:
        """Store bytes by content and return their SHA-256."""
        return self.store.put_bytes(self.database, data, created_by=self.search_id)

    def artifact_path(self, sha256: str) -> Path:
        """The file of an artifact. Raises `SearchFailed` where it is not stored."""
        path = self.store.path(sha256)
        if not path.is_file():
            raise SearchFailed(f"the artifact {sha256} is not stored any more: upload it and submit the search again")
        return path


def write_progress(session: Session, claim: JobClaim, data: Mapping[str, Any]) -> None:
    """What a progress display shows: kept with the job, and told to watchers."""
    repository.set_progress(session, claim, data)
    repository.add_events(session, claim, [SearchEvent(kind="progress", data=data)])


def signal_of(run: SearchRun) -> JobSignal:
    """Send a heartbeat and return what the user wants. Raises `ClaimLost`."""
    with run.database.write() as session:
        return repository.heartbeat(session, run.claim)
