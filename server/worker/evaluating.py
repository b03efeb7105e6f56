"""The figures of candidates while a search runs: accuracy estimated, latency and counts from tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search.accuracy.estimator import AccuracyEstimator
from search.accuracy.one_shot import OneShotEstimator
from search.data.dataset import ImageData
from search.domain.candidate import Evaluation
from search.domain.objective import Metric
from search.domain.space import Genome
from search.known_figures import NetworkFigures
from search.loop import total_violation
from server.worker.run import SearchRun
from server.worker.stages.preparing import Prepared


class CandidateEvaluator:
    """Figures of new genomes: accuracy as the config wants it estimated, and all that the genome alone decides."""

    def __init__(self, run: SearchRun, prepared: Prepared, figures: NetworkFigures) -> None:
        self._run = run
        self._prepared = prepared
        self._figures = figures
        self._estimator = make_estimator(run, prepared)

    def __call__(self, genomes: Sequence[Genome]) -> list[Evaluation]:
        known = self._figures(genomes)
        candidates = [self._prepared.space.decode(genome) for genome in genomes]
        evaluations = []
        for row, estimate in enumerate(self._estimator.estimate(candidates, self._run.check)):
            metrics = {
                Metric.ERROR: 1.0 - estimate.accuracy,
                Metric.LOSS: estimate.loss,
                **{metric: float(values[row]) for metric, values in known.items()},
            }
            violation = total_violation(metrics, self._run.config.constraints)
            evaluations.append(Evaluation(metrics=metrics, violation=violation, failure=estimate.failure))
        return evaluations


def make_estimator(run: SearchRun, prepared: Prepared) -> AccuracyEstimator:
    """The estimator that the search's config asks for."""
    accuracy = run.config.accuracy
    return OneShotEstimator(
        prepared.model,
        prepared.spec,
        prepared.data.split.calibration,
        _evenly(prepared.data.split.holdout, accuracy.evaluation_images),
        prepared.data.normalise,
        batch_size=accuracy.batch_size,
    )


def _evenly(data: ImageData, count: int) -> ImageData:
    """At most `count` images, evenly over the data set, so that classes keep their shares."""
    if len(data) <= count:
        return data
    return data.subset(np.linspace(0, len(data) - 1, count).round().astype(np.int64))
