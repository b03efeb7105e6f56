"""A search with thousands of candidates, as a worker leaves it in the middle of training, and others that wait."""

from __future__ import annotations

import json

import numpy as np
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from device_agent.contracts import KernelSpec, KernelTask, MeasuringSetup, decode, encode
from search.domain.config import DatasetConfig, ModelConfig, SearchConfig, SpaceConfig, WeightsConfig
from search.pareto import non_dominated_mask
from server.context import Context
from server.ids import new_id
from server.models import KernelRow, MeasurementRow, SearchTaskRow, TaskRow
from server.searches import queries, repository
from server.searches.repository import CandidateRecord, SearchEvent
from server.states import JobStage, TaskState

GENERATIONS, POPULATION = 50, 100
_SELECTED = 8
#: What the long search had measured, at most, and how many searches came after it that nothing was measured for yet.
_TASKS, _WAITING = 5_000, 30
#: Rows of one statement.
_AT_ONCE = 5000


def add_search(context: Context, device_id: str, *, rng: np.random.Generator) -> tuple[str, str]:
    """Store them; returns the id of the long one and that of one of its candidates."""
    config = SearchConfig(
        name="a long search",
        model=ModelConfig(architecture="resnet20"),
        dataset=DatasetConfig(name="digits"),
        space=SpaceConfig(weights=WeightsConfig()),
        device=device_id,
    )
    with context.database.write() as session:
        queries.insert_search(session, name=config.name, device_id=device_id, config=encode(config), created_by="bench")
    with context.database.write() as session:
        claim = repository.claim_runnable_job(session, worker="bench", stale_s=3600)
    assert claim is not None
    with context.database.write() as session:
        repository.set_stage(session, claim, JobStage.PROFILING)
        baseline = json.dumps({"tflite_dense_ns": 17.9e6, "native_dense_ns": 13.4e6})
        repository.save_checkpoint(session, claim, stage=JobStage.PROFILING, step=1, data=baseline)
        repository.set_stage(session, claim, JobStage.SEARCHING)
    latencies = rng.uniform(2.0, 13.0, GENERATIONS * POPULATION)
    errors = 0.1 + 0.5 * np.exp(-0.3 * latencies) + np.abs(rng.normal(0.0, 0.05, len(latencies)))
    names = [f"c_{place:032x}" for place in range(len(latencies))]
    front = np.flatnonzero(non_dominated_mask(np.column_stack([latencies, errors])))
    chosen = [names[i] for i in front[:: max(1, len(front) // _SELECTED)]][:_SELECTED]
    with context.database.write() as session:
        for generation in range(GENERATIONS):
            own = range(generation * POPULATION, (generation + 1) * POPULATION)
            records = [
                CandidateRecord(
                    candidate_id=names[i],
                    genome=tuple(int(v) for v in rng.integers(0, 8, 40)),
                    metrics={
                        "error": float(errors[i]),
                        "loss": float(errors[i]),
                        "latency_ms": float(latencies[i]),
                        "macs": 3e6 * float(latencies[i]),
                        "parameters": 2e4 * float(latencies[i]),
                    },
                    generation=generation,
                )
                for i in own
            ]
            repository.save_candidates(session, claim, records)
            figures = {"generation": generation + 1, "generations": GENERATIONS, "evaluations": own.stop}
            event = SearchEvent(kind="generation", data={**figures, "front": len(front)})
            repository.add_events(session, claim, [event])
        repository.mark_front(session, claim, [names[i] for i in front])
        repository.mark_selected(session, claim, chosen)
        repository.set_stage(session, claim, JobStage.TRAINING)
    with context.database.write() as session:
        _add_tasks(session, claim.search_id, device_id)
        for number in range(_WAITING):
            name = f"waiting {number}"
            queries.insert_search(session, name=name, device_id=device_id, config=encode(config), created_by="bench")
    return claim.search_id, chosen[0]


def _add_tasks(session: Session, search_id: str, device_id: str) -> None:
    """Have the search asked for measurements that the device made."""
    own = (
        select(MeasurementRow, KernelRow.spec)
        .join(KernelRow, KernelRow.id == MeasurementRow.kernel_id)
        .where(MeasurementRow.device_id == device_id)
        .order_by(MeasurementRow.result_key)
        .limit(_TASKS)
    )
    for part in session.execute(own).partitions(_AT_ONCE):
        names = [new_id("task") for _ in part]
        tasks = [
            {
                "id": name,
                "device_id": device_id,
                "profile_id": row.profile_id,
                "subject": row.kernel_id,
                "kernel_id": row.kernel_id,
                "setup_id": row.setup_id,
                "runtime": row.runtime,
                "runtime_version": row.runtime_version,
                "runtime_sha256": row.runtime_sha256,
                "repeat": name,
                "task": encode(KernelTask(kernel=decode(KernelSpec, spec), setup=MeasuringSetup(runtime=row.runtime))),
                "state": TaskState.SUCCEEDED,
                "result_key": row.result_key,
            }
            for name, (row, spec) in zip(names, part, strict=True)
        ]
        session.execute(insert(TaskRow), tasks)
        session.execute(insert(SearchTaskRow), [{"search_id": search_id, "task_id": n, "shared": False} for n in names])
        for name, (row, _) in zip(names, part, strict=True):
            row.task_id = name
        session.flush()
