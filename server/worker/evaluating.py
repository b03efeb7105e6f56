"""The figures of candidates while a search runs: accuracy estimated, latency and counts from tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search.accuracy.crewed import CrewEstimator, OneShotWork
from search.accuracy.estimator import AccuracyEstimator, GenerationEstimator, OnProgress, untold
from search.accuracy.finetuned import FinetunedEstimator
from search.accuracy.supernet import SupernetEstimator
from search.domain.candidate import Evaluation
from search.domain.config import Estimator, TrainingConfig
from search.domain.objective import Metric
from search.domain.space import Decisions, Genome
from search.evaluation import AccuracyEstimate
from search.known_figures import NetworkFigures
from search.loop import total_violation
from search.parallel.crew import Crew
from server.worker.crews import make_crew, num_threads
from server.worker.estimates import store_estimate, stored_estimates
from server.worker.run import SearchRun
from server.worker.stages.preparing import Prepared


class CandidateEvaluator:
    """Figures of new genomes: accuracy as the config wants it estimated, and all that the genome alone decides."""

    def __init__(
        self,
        run: SearchRun,
        prepared: Prepared,
        figures: NetworkFigures,
        crew: Crew,
        known: Sequence[Genome] = (),
        on_progress: OnProgress = untold,
    ) -> None:
        """`crew` is that of `one_shot_crew`. `known` are the candidates of earlier generations, in their order, which
        some estimators build on. `on_progress` is told within each generation.
        """
        self._run = run
        self._prepared = prepared
        self._figures = figures
        self._on_progress = on_progress
        self._estimator = make_estimator(run, prepared, crew, [prepared.space.decode(genome) for genome in known])

    @property
    def scores_generations(self) -> bool:
        """Whether figures compare within a generation only: then `score_generation` is to be used."""
        return not isinstance(self._estimator, AccuracyEstimator)

    def __call__(self, genomes: Sequence[Genome]) -> list[Evaluation]:
        assert isinstance(self._estimator, AccuracyEstimator)
        estimates = self._estimator.estimate(self._decoded(genomes), self._run.check, self._on_progress)
        return self._completed(genomes, estimates)

    def score_generation(self, genomes: Sequence[Genome], generation: int) -> list[Evaluation]:
        """Figures of a whole generation, survivors included."""
        assert not isinstance(self._estimator, AccuracyEstimator)
        decoded = self._decoded(genomes)
        estimates = self._estimator.estimate_generation(decoded, generation, self._run.check, self._on_progress)
        return self._completed(genomes, estimates)

    def _decoded(self, genomes: Sequence[Genome]) -> list[Decisions]:
        return [self._prepared.space.decode(genome) for genome in genomes]

    def _completed(self, genomes: Sequence[Genome], estimates: Sequence[AccuracyEstimate]) -> list[Evaluation]:
        """The estimates, and all that the genomes alone decide."""
        known, by_device = self._figures.with_latencies_ms(genomes)
        evaluations = []
        for row, estimate in enumerate(estimates):
            metrics = {
                Metric.ERROR: 1.0 - estimate.accuracy,
                Metric.LOSS: estimate.loss,
                **{metric: float(values[row]) for metric, values in known.items()},
            }
            latencies_ms = {device: float(values[row]) for device, values in by_device.items()}
            violation = total_violation(metrics, self._run.config.constraints, latencies_ms)
            evaluations.append(
                Evaluation(
                    metrics=metrics,
                    violation=violation,
                    failure=estimate.failure,
                    latencies_ms=latencies_ms if len(latencies_ms) > 1 else {},
                )
            )
        return evaluations


def make_estimator(
    run: SearchRun, prepared: Prepared, crew: Crew, known: Sequence[Decisions] = ()
) -> AccuracyEstimator | GenerationEstimator:
    """The estimator that the search's config asks for."""
    accuracy = run.config.accuracy
    evaluation = prepared.data.split.holdout.evenly(accuracy.evaluation_images)
    if accuracy.estimator is Estimator.SUPERNET:
        return SupernetEstimator(
            prepared.model,
            prepared.spec,
            prepared.data,
            evaluation,
            seed=run.config.method.seed,
            schedule_factor=accuracy.schedule_factor,
            batch_size=accuracy.batch_size,
        )
    if accuracy.estimator is Estimator.FINETUNED:
        return FinetunedEstimator(
            model=prepared.model,
            spec=prepared.spec,
            data=prepared.data,
            evaluation=evaluation,
            settings=TrainingConfig(epochs=accuracy.finetune_epochs, batch_size=run.config.training.batch_size),
            seed=run.config.method.seed,
            folder=run.work_dir / "finetuned",
            on_tuned=run.got_further,
            known=known,
        )
    return make_one_shot_estimator(run, crew)


def make_one_shot_estimator(run: SearchRun, crew: Crew, *, evaluation_images: int | None = None) -> CrewEstimator:
    """The unpruned network's weights, pruned and judged on held-out images: as many as the config says, or as given."""
    return CrewEstimator(crew, _StoredEstimates(run), evaluation_images or run.config.accuracy.evaluation_images)


def one_shot_crew(run: SearchRun, prepared: Prepared) -> Crew:
    """Who makes one-shot estimates of this search. The caller closes it."""
    split = prepared.data.split
    work = OneShotWork(
        model=prepared.model,
        spec=prepared.spec,
        calibration=split.calibration,
        holdout=split.holdout,
        normalise=prepared.data.normalise,
        batch_size=run.config.accuracy.batch_size,
        threads=num_threads(run.settings),
        uses_gpu=run.settings.evaluator_gpus > 0,
    )
    return make_crew(run.settings, work)


@dataclass(frozen=True, slots=True)
class _StoredEstimates:
    """An `EstimateLog` in the database, so that no finished estimate is lost with this worker."""

    run: SearchRun

    def known(self, keys: Sequence[str]) -> Mapping[str, AccuracyEstimate]:
        with self.run.database.read() as session:
            return stored_estimates(session, self.run.search_id, keys)

    def record(self, key: str, estimate: AccuracyEstimate) -> None:
        with self.run.database.write() as session:
            store_estimate(session, self.run.claim, key, estimate)
