"""How well estimates rank candidates: Kendall's tau between each estimate and the accuracy after fine-tuning.

Candidates are random, of all sizes. All are fine-tuned alike, and judged on the test set, which no estimate has seen.
The interval is of the bootstrap over candidates. Among all sizes the number of multiply-accumulates ranks well, too;
what an estimate knows beyond it shows among pairs of about the same latency.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from bench.search.networks import EVALUATION_IMAGES, NetworkCase
from bench.search.trained import FineTuner
from bench.search.true_evaluations import RememberedEstimates
from search.accuracy.supernet import SupernetEstimator
from search.algorithms.axis_model import fit_axis_model
from search.algorithms.axis_points import AxisPoints
from search.algorithms.factors import evaluate as evaluate_factors
from search.algorithms.sampling import draw_at_level, draw_new
from search.domain.config import TrainingConfig
from search.domain.objective import Metric
from search.domain.space import Genome
from search.evaluation import evaluate
from search.pareto import FloatArray
from search.problem import SearchProblem

CANDIDATES = 32
#: Candidates below are not worth training, and at chance every estimate is a guess.
_MIN_LEVEL = 0.15
_SEED = 20211015
_RESAMPLES = 2000
#: Two latencies are about the same up to this ratio.
_ALIKE = 1.25
#: The supernet's 10 and 20 epochs, times this: about the time that fine-tuning four candidates takes.
_SUPERNET_FACTOR = 0.2
_BATCH_SIZE = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorRow:
    """Kendall's tau of one estimator, 1 is a perfect ranking; `tau_alike` is over the `pairs_alike` pairs of candidates
    whose latencies differ by at most a quarter. `seconds` are for all candidates, on one thread, without
    those of the `trainings` that it has to see first.
    """

    network: str
    estimator: str
    kendall_tau: float
    kendall_tau_ci95: tuple[float, float]
    tau_alike: float
    pairs_alike: int
    candidates: int
    seconds: float
    trainings: int = 0


@dataclass(frozen=True, slots=True)
class _Scored:
    """What an estimator says of all candidates, higher being better, and what it took."""

    scores: FloatArray
    seconds: float
    trainings: int = 0


def estimator_rows(
    case: NetworkCase, problem: SearchProblem, estimates: RememberedEstimates, settings: TrainingConfig, folder: Path
) -> list[EstimatorRow]:
    """A row for each estimator. MACs and latency are there as estimates that cost nothing."""
    rng = np.random.default_rng(_SEED)
    genomes = draw_new(
        rng, case.space, CANDIDATES, (), lambda: draw_at_level(rng, case.space, float(rng.uniform(_MIN_LEVEL, 1.0)))
    )
    decisions = [case.space.decode(genome) for genome in genomes]
    tuner = FineTuner(case, settings, folder)
    accuracies = np.array([tuner(decided)[1] for decided in decisions])
    one_shot = [estimates(decided) for decided in decisions]
    one_shot_s = sum(seconds for _, seconds in one_shot)
    known = problem.require_known((Metric.MACS, Metric.LATENCY_MS), "the comparison")(genomes)
    scored = {
        "one_shot": _Scored(np.array([-e.loss for e, _ in one_shot]), one_shot_s),
        "one_shot_accuracy": _Scored(np.array([e.accuracy for e, _ in one_shot]), one_shot_s),
        "supernet": _supernet(case, genomes),
        "additive": _additive(problem, genomes),
        "polynomial": _polynomial(case, problem, tuner, genomes),
        Metric.MACS.value: _Scored(known[Metric.MACS], 0.0),
        Metric.LATENCY_MS.value: _Scored(known[Metric.LATENCY_MS], 0.0),
    }
    rows = []
    for name, found in scored.items():
        tau, interval = tau_with_interval(found.scores, accuracies)
        tau_alike, pairs_alike = tau_among_alike(found.scores, accuracies, known[Metric.LATENCY_MS])
        rows.append(
            EstimatorRow(
                network=case.name,
                estimator=name,
                kendall_tau=tau,
                kendall_tau_ci95=interval,
                tau_alike=tau_alike,
                pairs_alike=pairs_alike,
                candidates=len(genomes),
                seconds=found.seconds,
                trainings=found.trainings,
            )
        )
    return rows


def as_json(rows: Sequence[EstimatorRow]) -> list[dict[str, Any]]:
    return [asdict(row) | {"kendall_tau_ci95": list(row.kendall_tau_ci95)} for row in rows]


def table_text(rows: Sequence[EstimatorRow]) -> str:
    lines = [
        f"{'network':<9} {'estimator':<18} {'tau':>6}  {'95 % interval':<14} {'alike':>6} {'pairs':>5} "
        f"{'candidates':>10} {'seconds':>8}"
    ]
    for row in rows:
        low, high = row.kendall_tau_ci95
        lines.append(
            f"{row.network:<9} {row.estimator:<18} {row.kendall_tau:>6.3f}  {low:.3f}..{high:.3f}   "
            f"{row.tau_alike:>6.3f} {row.pairs_alike:>5} {row.candidates:>10} {row.seconds:>8.1f}"
        )
    return "\n".join(lines)


def tau_with_interval(scores: FloatArray, truth: FloatArray) -> tuple[float, tuple[float, float]]:
    """Kendall's tau-b of two rankings (n,), and its 95 % bootstrap interval."""
    rng = np.random.default_rng(_SEED)
    resampled = []
    for _ in range(_RESAMPLES):
        chosen = rng.integers(0, len(scores), size=len(scores))
        resampled.append(stats.kendalltau(scores[chosen], truth[chosen]).statistic)
    low, high = np.nanquantile(resampled, (0.025, 0.975))
    return float(stats.kendalltau(scores, truth).statistic), (float(low), float(high))


def tau_among_alike(scores: FloatArray, truth: FloatArray, latency_ms: FloatArray) -> tuple[float, int]:
    """Kendall's tau of two rankings (n,) over the pairs of about the same latency (n,), and the number of those pairs;
    nan without any. Pairs that are equal in either count as neither right nor wrong.
    """
    first, second = np.triu_indices(len(scores), k=1)
    alike = np.abs(np.log(latency_ms[first] / latency_ms[second])) <= np.log(_ALIKE)
    first, second = first[alike], second[alike]
    agreement = np.sign(scores[first] - scores[second]) * np.sign(truth[first] - truth[second])
    return (float(agreement.mean()) if len(first) else float("nan")), len(first)


def _supernet(case: NetworkCase, genomes: Sequence[Genome]) -> _Scored:
    estimator = SupernetEstimator(
        case.model,
        case.spec,
        case.data,
        case.data.split.holdout.evenly(EVALUATION_IMAGES[case.name]),
        seed=0,
        schedule_factor=_SUPERNET_FACTOR,
        batch_size=_BATCH_SIZE,
    )
    started = time.perf_counter()
    found = estimator.estimate_generation([case.space.decode(genome) for genome in genomes], 0)
    return _Scored(np.array([-estimate.loss for estimate in found]), time.perf_counter() - started)


def _additive(problem: SearchProblem, genomes: Sequence[Genome]) -> _Scored:
    """The sum of the layers' estimated errors; what estimating them took is not counted."""
    started = time.perf_counter()
    errors = evaluate_factors(problem.errors, np.array(genomes, dtype=np.int64))
    return _Scored(-errors, time.perf_counter() - started)


def _polynomial(case: NetworkCase, problem: SearchProblem, tuner: FineTuner, genomes: Sequence[Genome]) -> _Scored:
    """Three-dimensional pruning's polynomial of rank 1 (Wang et al., arXiv 2010.04879), over width and density: fitted
    to networks that are pruned along one axis each, fine-tuned like the candidates and judged on held-out images.
    """
    axes = AxisPoints(problem.space, with_density=True)
    sampled = axes.samples(())
    trained = [tuner(case.space.decode(genome))[0] for genome in sampled]
    started = time.perf_counter()
    held_out = case.data.split.holdout
    accuracies = [evaluate(pruned.model, held_out, case.data.normalise).accuracy for pruned in trained]
    model = fit_axis_model(axes.coordinates(sampled), np.array(accuracies))
    scores = model(axes.coordinates(genomes))
    return _Scored(scores, time.perf_counter() - started, trainings=len(sampled))
