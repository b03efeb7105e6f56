"""Searches whose worker is killed in the middle of a step, by method: each ends as if nothing had happened."""

from __future__ import annotations

import dataclasses

import pytest

from search.domain.config import (
    ChannelsConfig,
    DepthConfig,
    Estimator,
    Method,
    MethodConfig,
    ModelConfig,
    ResolutionConfig,
    SearchConfig,
    SpaceConfig,
)
from server.searches.repository import LAYER_ERRORS, REEVALUATED
from tests.unit.server.server_lab import ServerLab
from tests.unit.server.worker_lab import Kill, WorkerLab, quick_search


@pytest.fixture
def worker(sqlite_lab: ServerLab) -> WorkerLab:
    return WorkerLab(sqlite_lab)


@pytest.mark.slow
def test_within_the_estimation_of_errors(worker: WorkerLab) -> None:
    config = quick_search("exact", method=MethodConfig(name=Method.EXACT, population=6, generations=2))
    whole = worker.done(config)
    killed = worker.done(
        config,
        Kill(note="layers estimated", steps=4),
        # Behind the estimates, among the candidates of the first generation.
        Kill(note="layers estimated", steps=12),
    )
    assert worker.outcome(killed) == worker.outcome(whole)
    assert worker.document(killed, LAYER_ERRORS) == worker.document(whole, LAYER_ERRORS)


def test_within_the_second_look_at_the_best(worker: WorkerLab) -> None:
    config = quick_search("second look")
    config = dataclasses.replace(config, accuracy=dataclasses.replace(config.accuracy, reevaluate_top=6))
    whole = worker.done(config)
    note = "best candidates judged on"
    search_id = worker.submit(config)
    first, _ = (worker.run(search_id, Kill(note=note, steps=steps)) for steps in (1, 3))
    assert (0, "50 % of generation 1 estimated") in first.notes
    last = worker.run(search_id)
    assert worker.outcome(search_id) == worker.outcome(whole)
    assert worker.document(search_id, REEVALUATED) == worker.document(whole, REEVALUATED)
    # What was judged before is not judged again: none in the first run, two in the second. Then one after the other.
    assert [done for done, text in last.notes if note in text] == [2, 3, 4, 5, 6]


def three_dimensions() -> SearchConfig:
    config = quick_search(
        "three dimensions",
        model=ModelConfig(architecture="small_resnet", train_epochs=1),
        space=SpaceConfig(
            channels=ChannelsConfig(min_ratio=0.5, multiple_of=16),
            depth=DepthConfig(keep=("layer1.0",)),
            resolution=ResolutionConfig(sides=(6, 8)),
        ),
        method=MethodConfig(name=Method.THREE_DIMENSIONS, population=6, generations=3),
    )
    accuracy = dataclasses.replace(config.accuracy, estimator=Estimator.FINETUNED, finetune_epochs=0.2)
    return dataclasses.replace(config, accuracy=accuracy)


def test_within_a_chain_of_fine_tunings(worker: WorkerLab) -> None:
    config = three_dimensions()
    whole = worker.done(config)
    killed = worker.done(config, Kill(steps=5), Kill(steps=17))
    assert worker.outcome(killed) == worker.outcome(whole)
    reports = [[text for text in worker.messages(s) if "continuous optimum" in text] for s in (killed, whole)]
    assert reports[0] == reports[1] != []
