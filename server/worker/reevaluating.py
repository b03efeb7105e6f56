"""The best candidates judged again on more images, before the front is chosen.

Estimates on few images are noisy, and of many candidates the luckiest come out on top. AACP (arXiv 2102.00390) judges
on all images from the start; here only the best few are.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from search.domain.candidate import EvaluatedCandidate, Evaluation
from search.domain.config import Estimator
from search.domain.objective import Metric
from search.errors import SearchError
from search.loop import total_violation
from search.parallel.crew import Crew
from search.selection import best_fronts
from server.searches.repository import REEVALUATED, get_document
from server.states import JobStage
from server.worker.evaluating import make_one_shot_estimator
from server.worker.run import SearchRun
from server.worker.stages.preparing import Prepared


def reevaluated(
    run: SearchRun, prepared: Prepared, crew: Crew, archive: Sequence[EvaluatedCandidate]
) -> tuple[EvaluatedCandidate, ...]:
    """The `accuracy.reevaluate_top` best of `archive` with figures from all held-out images, and no others.

    The best are the front, then the front of the rest, and so on; of a front that is too long, points spread over its
    latencies. The archive as it is, where there are no more images than were
    used before, or the estimates are not one-shot ones. What was judged is stored, so that a resumed search goes on.
    """
    accuracy = run.config.accuracy
    images = len(prepared.data.split.holdout)
    if (
        accuracy.reevaluate_top == 0
        or accuracy.estimator is not Estimator.ONE_SHOT
        or images <= accuracy.evaluation_images
    ):
        return tuple(archive)
    count = max(accuracy.reevaluate_top, run.config.selection.candidates)
    chosen = best_fronts(archive, run.config.objectives, count)
    if not chosen:
        return tuple(archive)
    with run.database.read() as session:
        stored = get_document(session, run.search_id, REEVALUATED)
    figures: dict[str, Any] = {} if stored is None else json.loads(stored)
    missing = {key: item.candidate.genome for item in chosen if (key := _key(item)) not in figures}

    def on_progress(done: int, total: int) -> None:
        note = f"best candidates judged on {images} images"
        run.progress(JobStage.SEARCHING, len(chosen) - total + done, len(chosen), note)

    if missing:
        estimator = make_one_shot_estimator(run, crew, evaluation_images=images)
        candidates = [prepared.space.decode(genome) for genome in missing.values()]
        for key, estimate in zip(missing, estimator.estimate(candidates, run.check, on_progress), strict=True):
            if estimate.failure is None:
                figures[key] = {Metric.ERROR.value: 1.0 - estimate.accuracy, Metric.LOSS.value: estimate.loss}
            else:
                figures[key] = {"failure": estimate.failure}
        run.put_document(REEVALUATED, json.dumps(figures))
    found = [_with(run, item, figures[_key(item)]) for item in chosen]
    run.message(f"the {len(chosen)} best candidates were judged again, on {images} images each; the front is theirs")
    if all(item.evaluation.failure is not None for item in found):
        raise SearchError(f"none of the best candidates could be judged again: {found[0].evaluation.failure}")
    return tuple(found)


def _key(item: EvaluatedCandidate) -> str:
    return ",".join(map(str, item.candidate.genome))


def _with(run: SearchRun, item: EvaluatedCandidate, figures: dict[str, Any]) -> EvaluatedCandidate:
    if "failure" in figures:
        return dataclasses.replace(item, evaluation=dataclasses.replace(item.evaluation, failure=figures["failure"]))
    metrics = {**item.evaluation.metrics, **{Metric(name): float(value) for name, value in figures.items()}}
    latencies_ms = item.evaluation.latencies_ms
    violation = total_violation(metrics, run.config.constraints, latencies_ms)
    evaluation = Evaluation(metrics=metrics, violation=violation, latencies_ms=latencies_ms)
    return dataclasses.replace(item, evaluation=evaluation)
