"""Searches whose candidates are estimated and trained in several processes, and what is left when these are killed."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from typing import Any

import pytest
import torch
from sqlalchemy import func, select

from device_agent.contracts import ContractError
from search.compute import CPU
from search.domain.config import SearchConfig, SelectionConfig
from search.parallel.processes import ProcessCrew
from server.models import EstimateRow
from server.settings import Settings
from server.worker.crews import require_gpu
from server.worker.loop import run_worker
from tests.unit.server.server_lab import ServerLab
from tests.unit.server.worker_lab import Kill, WorkerLab, quick_search


def several(name: str, **changes: Any) -> SearchConfig:
    return quick_search(name, selection=SelectionConfig(candidates=2), **changes)


@pytest.fixture
def worker(sqlite_lab: ServerLab) -> WorkerLab:
    set_evaluators(sqlite_lab, 1)
    return WorkerLab(sqlite_lab)


def set_evaluators(lab: ServerLab, count: int) -> None:
    lab.settings = dataclasses.replace(lab.settings, evaluators=count, evaluator_threads=1)


def num_estimates(lab: ServerLab, search_id: str) -> int:
    with lab.database.read() as session:
        count = session.scalar(select(func.count()).select_from(EstimateRow).where(EstimateRow.search_id == search_id))
    return int(count or 0)


def test_a_worker_that_dies_within_a_generation_loses_no_finished_estimate(worker: WorkerLab) -> None:
    whole = worker.done(several("whole"))
    search_id = worker.submit(several("whole"))
    # It stops before the fifth of the first generation's candidates.
    worker.run(search_id, Kill(steps=5))
    assert num_estimates(worker.lab, search_id) == 4
    worker.run(search_id, Kill(steps=2))
    assert num_estimates(worker.lab, search_id) == 5
    worker.run(search_id)
    assert worker.outcome(search_id) == worker.outcome(whole)
    assert num_estimates(worker.lab, search_id) == 0


@pytest.mark.slow
def test_several_processes_end_on_the_same_front_and_weights(
    worker: WorkerLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = worker.outcome(worker.done(several("processes")))
    killed: list[int] = []
    submit = ProcessCrew.submit

    def deadly(crew: ProcessCrew, ticket: int, piece: Any) -> None:
        submit(crew, ticket, piece)
        if ticket == 1 and len(killed) < 2:
            # Once among estimates, and once among trainings, which have fewer pieces.
            killed.append(crew.process_ids[0])
            os.kill(killed[-1], signal.SIGKILL)

    monkeypatch.setattr(ProcessCrew, "submit", deadly)
    set_evaluators(worker.lab, 2)
    search_id = worker.done(several("processes"))
    assert len(killed) == 2
    assert worker.outcome(search_id) == whole


def test_estimates_and_trainings_ask_for_a_gpu_where_the_settings_do(
    worker: WorkerLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def no_gpu(stage: str) -> torch.device:
        asked.append(stage)
        return CPU

    for stage in ("accuracy", "training"):
        monkeypatch.setattr(f"search.{stage}.crewed.gpu", lambda stage=stage: no_gpu(stage))
    whole = worker.outcome(worker.done(several("gpu")))
    assert not asked
    worker.lab.settings = dataclasses.replace(worker.lab.settings, evaluator_gpus=0.5)
    assert worker.outcome(worker.done(several("gpu"))) == whole
    assert set(asked) == {"accuracy", "training"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_worker_whose_gpu_torch_does_not_see_does_not_start(sqlite_lab: ServerLab) -> None:
    settings = dataclasses.replace(sqlite_lab.settings, evaluator_gpus=1.0)
    with pytest.raises(ContractError, match="KERF_EVALUATOR_GPUS asks for a GPU"):
        run_worker(settings, threading.Event())
    # The processes of a cluster may be on hosts that have one.
    require_gpu(dataclasses.replace(settings, ray_address="auto"))


@pytest.mark.parametrize("part", [-0.5, 1.5, float("nan")])
def test_a_process_uses_at_most_one_gpu(part: float) -> None:
    with pytest.raises(ContractError, match=r"evaluator_gpus .* is not in 0\.\.1"):
        Settings(evaluator_gpus=part)
