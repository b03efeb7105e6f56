"""A worker in the test's own process, on a server whose simulated devices measure whenever the worker waits for them.

So a search runs as it does anywhere, from its submission over REST to its result, but step by step: it can be killed
between any two steps, and nothing has to be waited for.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

from device_agent.child import run_task
from device_agent.contracts import DeviceProfile, KernelTask, Lease, encode
from device_agent.runtimes.simulated import CORE_VARIABLE, SimulatedRuntime
from search.domain.config import SearchConfig, SelectionConfig
from server.artifacts.store import ArtifactStore
from server.searches import repository
from server.searches.repository import get_document
from server.states import JobStage
from server.worker.loop import _USER_ERRORS
from server.worker.pipeline import run_stages
from server.worker.run import PROGRESS_INTERVAL_S, SearchRun
from tests.end_to_end.stacks import simulated_search
from tests.unit.search.training.stopping import StopAfter, Stopped
from tests.unit.server.server_lab import PROFILE, LabAgent, ServerLab, report_of

SIMULATED = dataclasses.replace(PROFILE, simulated=True)


def quick_search(name: str, **changes: Any) -> SearchConfig:
    """A search of a second or two."""
    config = simulated_search(name)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, train_epochs=1),
        method=dataclasses.replace(config.method, population=6, generations=2),
        accuracy=dataclasses.replace(config.accuracy, evaluation_images=100, reevaluate_top=0),
        measuring=dataclasses.replace(config.measuring, calibration_networks=3, max_kernels=50),
        selection=SelectionConfig(candidates=1),
        training=dataclasses.replace(config.training, epochs=0.2),
    )
    return dataclasses.replace(config, **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """The worker dies `steps` steps after it entered `stage`, or told a progress note with `note` in it."""

    steps: int
    stage: JobStage = JobStage.SEARCHING
    note: str = ""


class WorkerLab:
    """Submits searches and runs them. `cores` are the simulated devices, by the core that each computes for."""

    def __init__(self, lab: ServerLab, cores: tuple[str, ...] = ("phone",)) -> None:
        self.lab = lab
        self.store = ArtifactStore(lab.settings.artifacts_dir)
        self.agents = {core: self._enrolled(core) for core in cores}

    def submit(self, config: SearchConfig) -> str:
        answer = self.lab.request("POST", "/v1/searches", json=encode(config))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def run(self, search_id: str, kill: Kill | None = None) -> LabRun:
        """Serve the search to its end, or until `kill`. Raises what ends a search that cannot be done."""
        with self.lab.database.write() as session:
            claim = repository.claim_runnable_job(session, worker="lab", stale_s=60.0, take_over_own=True)
        assert claim is not None
        assert claim.search_id == search_id
        run = LabRun(
            database=self.lab.database,
            settings=self.lab.settings,
            store=self.store,
            claim=claim,
            interrupt=threading.Event(),
            lost=threading.Event(),
        )
        run.measure, run.kill = self.measure, kill
        try:
            run_stages(run)
        except Stopped:
            assert kill is not None
        except _USER_ERRORS as error:
            with self.lab.database.write() as session:
                repository.fail_job(session, claim, run.named(str(error)))
            raise
        else:
            assert kill is None, f"the search ended before {kill}"
        return run

    def done(self, config: SearchConfig, *kills: Kill) -> str:
        """Run a new search to its end, through these deaths of its worker."""
        search_id = self.submit(config)
        for kill in (*kills, None):
            self.run(search_id, kill)
        return search_id

    def measure(self) -> None:
        """Every device does all that waits for it."""
        for core, agent in self.agents.items():
            with mock.patch.dict(os.environ, {CORE_VARIABLE: core}):
                while leases := self.lab.lease(agent, count=64):
                    self.lab.report(agent, *(report_of(lease, self._measured(lease)) for lease in leases))

    def _measured(self, lease: Lease) -> Any:
        task = lease.task
        artifact = None if isinstance(task, KernelTask) else self.store.path(task.artifact_sha256)
        return run_task(task, artifact, deadline_s=lease.deadline_s)

    def document(self, search_id: str, name: str) -> str:
        with self.lab.database.read() as session:
            text = get_document(session, search_id, name)
        assert text is not None, f"there is no {name}"
        return text

    def get(self, path: str) -> Any:
        answer = self.lab.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def outcome(self, search_id: str) -> tuple[str, list[Mapping[str, Any]]]:
        """What equal searches have in common: the front as searched, and as trained, exported and verified."""
        front = self.get(f"/v1/searches/{search_id}/result")["front"]
        for point in front:
            assert point["failure"] is None
            assert point["output_max_abs_error"] < 1e-4
        return self.document(search_id, repository.SEARCHED_FRONT), front

    def messages(self, search_id: str) -> list[str]:
        from server.searches.queries import events_after

        with self.lab.database.read() as session:
            events = events_after(session, search_id, 0, 1000)
        return [str(event.data["text"]) for event in events if event.kind == "message"]

    def _enrolled(self, core: str) -> LabAgent:
        with mock.patch.dict(os.environ, {CORE_VARIABLE: core}):
            runtime = SimulatedRuntime().info()
        profile: DeviceProfile = dataclasses.replace(SIMULATED, cpu_model=core)
        return self.lab.agent(device_name=core, profile=profile, runtimes=(runtime,))


class LabRun(SearchRun):
    """A run whose waiting is measuring, and which can die."""

    __slots__ = ("kill", "measure", "notes", "stopping")
    measure: Callable[[], None]
    kill: Kill | None

    def wait(self, seconds: float) -> None:
        self.measure()
        self.check()

    def check(self) -> None:
        stopping = getattr(self, "stopping", None)
        if stopping is not None:
            stopping()
        SearchRun.check(self)

    def enter(self, stage: JobStage) -> None:
        if self.kill is not None and self.kill.stage is stage and not self.kill.note:
            self._doom()
        SearchRun.enter(self, stage)

    def progress(
        self, stage: JobStage, done: int, total: int, note: str = "", *, interval_s: float = PROGRESS_INTERVAL_S
    ) -> None:
        self.notes: list[tuple[int, str]] = [*getattr(self, "notes", []), (done, note)]
        if self.kill is not None and self.kill.note and self.kill.note in note:
            self._doom()
        SearchRun.progress(self, stage, done, total, note, interval_s=interval_s)

    def _doom(self) -> None:
        if getattr(self, "stopping", None) is None:
            assert self.kill is not None
            self.stopping = StopAfter(self.kill.steps)
