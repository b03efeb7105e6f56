"""A search with thousands of candidates, as a worker leaves it in the middle of training."""

from __future__ import annotations

import json

import numpy as np

from device_agent.contracts import encode
from search.domain.config import DatasetConfig, ModelConfig, SearchConfig, SpaceConfig, WeightsConfig
from search.pareto import non_dominated_mask
from server.context import Context
from server.searches import queries, repository
from server.searches.repository import CandidateRecord, SearchEvent
from server.states import JobStage

GENERATIONS, POPULATION = 50, 100
_SELECTED = 8


def add_search(context: Context, device_id: str, *, rng: np.random.Generator) -> tuple[str, str]:
    """Store it; returns its id and that of one of its candidates."""
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
    return claim.search_id, chosen[0]
