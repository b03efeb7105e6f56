"""True evaluations: what each method's front is worth after so many one-shot estimates of a trained network.

All methods get the same problem (loss by the one-shot estimate, latency by the measured table), the same number of
evaluations and the same seeds. Estimates are remembered over methods and seeds, and on disk, with the seconds that each
took: a method's time is the sum over the candidates that it asked for, and its own.

Volumes are parts of the best known front's. Objectives are scaled from the joint front's best values to the reference
point: the loss of guessing, and the latency of the unpruned network.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from bench.search.networks import NetworkCase
from device_agent.contracts import content_id
from search.algorithms.base import Searcher
from search.algorithms.registry import make_searcher
from search.algorithms.sampling import draw_at_level, draw_new
from search.canonical import CanonicalForm
from search.domain.config import Method
from search.domain.objective import Metric, Objective
from search.domain.space import Decisions, Genome, SearchSpace
from search.evaluation import AccuracyEstimate
from search.known_figures import NetworkFigures
from search.latency.network import fit_network_model
from search.latency.table import LatencyTable
from search.pareto import FloatArray, hypervolume, non_dominated_mask
from search.problem import SearchProblem
from search.reconstruction.estimates import ErrorEstimates, errors_from_json, errors_to_json, estimate_errors

OBJECTIVES = (Objective(metric=Metric.LOSS), Objective(metric=Metric.LATENCY_MS))

#: Random genomes of uniformly random size: a stronger baseline than `random`, whose genes are uniform.
SPREAD_BASELINE = "random_spread"
#: All that search widths and densities. `jcw_seeded` is `jcw` with `seed_with: exact`.
METHODS = ("exact", "jcw", "jcw_seeded", "jcw_reference", "nsga2", "aacp", "policy_gradient", "random", SPREAD_BASELINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A method's front (n, 2) after some evaluations, and the minutes that they and the method took."""

    evaluations: int
    genomes: tuple[Genome, ...]
    front: FloatArray
    minutes: float


class RememberedEstimates:
    """One-shot estimates by decisions, kept in a file of JSON lines."""

    def __init__(self, case: NetworkCase, path: Path) -> None:
        self._case = case
        self._estimator = case.one_shot()
        self._path = path
        self._known: dict[str, tuple[AccuracyEstimate, float]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                estimate = AccuracyEstimate(accuracy=row["accuracy"], loss=row["loss"])
                self._known[row["decisions"]] = (estimate, row["seconds"])
        path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, decisions: Decisions) -> tuple[AccuracyEstimate, float]:
        """The estimate, and the thread-CPU seconds that it took when it was made."""
        key = content_id("d", decisions)
        known = self._known.get(key)
        if known is None:
            started = time.perf_counter()
            (estimate,) = self._estimator.estimate([decisions])
            known = self._known[key] = (estimate, time.perf_counter() - started)
            row = {"decisions": key, "accuracy": estimate.accuracy, "loss": estimate.loss, "seconds": known[1]}
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        return known


class SpreadSearcher:
    """`SPREAD_BASELINE`. Only for comparison: it cannot be stored."""

    def __init__(self, space: SearchSpace, population: int, seed: int) -> None:
        self._space, self._population, self._rng = space, population, np.random.default_rng(seed)

    def ask(self) -> tuple[Genome, ...]:
        level = self._rng.random
        return draw_new(
            self._rng, self._space, self._population, (), lambda: draw_at_level(self._rng, self._space, float(level()))
        )

    def tell(self, genomes: Sequence[Genome], objectives: FloatArray, violations: FloatArray) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        raise NotImplementedError("this baseline cannot be restored")


def problem_of(case: NetworkCase, table: LatencyTable, estimates: RememberedEstimates, path: Path) -> SearchProblem:
    """Loss against the latency that the table predicts, with estimated errors of layers, which are kept at `path`."""
    if not path.exists():
        path.write_text(errors_to_json(_errors(case, estimates)))
    figures = NetworkFigures(case.spec, case.space, fit_network_model(table))
    return SearchProblem(
        space=case.space,
        objectives=OBJECTIVES,
        known=figures,
        known_metrics=NetworkFigures.METRICS,
        tables=figures.tables,
        canonical=CanonicalForm(case.spec, case.space),
        errors=errors_from_json(path.read_text()).factors,
    )


def run_method(
    case: NetworkCase,
    problem: SearchProblem,
    estimates: RememberedEstimates,
    method: str,
    *,
    seed: int,
    population: int,
    generations: int,
) -> list[Progress]:
    """One search; an entry for each generation."""
    searcher = _searcher(problem, method, seed, population)
    known = problem.require_known((Metric.LATENCY_MS,), method)
    genomes: list[Genome] = []
    figures: list[tuple[float, float]] = []
    seconds = 0.0
    progress = []
    for _ in range(generations):
        started = time.perf_counter()
        asked = searcher.ask()
        seconds += time.perf_counter() - started
        if not asked:
            break
        latencies = known(asked)[Metric.LATENCY_MS]
        told = []
        for genome, latency in zip(asked, latencies, strict=True):
            estimate, took_s = estimates(case.space.decode(genome))
            seconds += took_s
            told.append((estimate.loss, float(latency)))
        started = time.perf_counter()
        searcher.tell(asked, np.array(told), np.zeros(len(asked)))
        seconds += time.perf_counter() - started
        genomes += asked
        figures += told
        points = np.array(figures)
        on_front = np.flatnonzero(non_dominated_mask(points))
        progress.append(
            Progress(
                evaluations=len(genomes),
                genomes=tuple(genomes[i] for i in on_front),
                front=points[on_front],
                minutes=seconds / 60,
            )
        )
    return progress


def volume_rows(
    case: NetworkCase, problem: SearchProblem, runs: dict[tuple[str, int], list[Progress]]
) -> list[dict[str, Any]]:
    """A row for each method and generation: volumes over seeds with Student's interval of the mean, and minutes."""
    known = problem.require_known((Metric.LATENCY_MS,), "the comparison")
    reference = np.array(
        [math.log(case.data.split.train.num_classes), known([problem.space.unpruned])[Metric.LATENCY_MS][0]]
    )
    joint = np.concatenate([progress[-1].front for progress in runs.values()])
    ideal = joint.min(axis=0)

    def volume(front: FloatArray) -> float:
        return hypervolume((front - ideal) / (reference - ideal), np.ones(2))

    best = volume(joint)
    rows = []
    for method in dict.fromkeys(name for name, _ in runs):
        of_method = [progress for (name, _), progress in runs.items() if name == method]
        for generation in range(min(len(progress) for progress in of_method)):
            entries = [progress[generation] for progress in of_method]
            volumes = np.array([volume(entry.front) for entry in entries]) / best
            half = float(stats.t.ppf(0.975, len(volumes) - 1) * stats.sem(volumes)) if len(volumes) > 1 else 0.0
            rows.append(
                {
                    "network": case.name,
                    "method": method,
                    "evaluations": int(np.median([entry.evaluations for entry in entries])),
                    "hypervolume_mean": float(volumes.mean()),
                    "hypervolume_ci95": [float(volumes.mean()) - half, float(volumes.mean()) + half],
                    "minutes": float(np.mean([entry.minutes for entry in entries])),
                    "seeds": len(entries),
                }
            )
    return rows


def _errors(case: NetworkCase, estimates: RememberedEstimates) -> ErrorEstimates:
    def losses(genomes: Sequence[Genome]) -> FloatArray:
        return np.array([estimates(case.space.decode(genome))[0].loss for genome in genomes])

    return estimate_errors(case.model, case.spec, case.space, case.data.split.calibration, case.data.normalise, losses)


def _searcher(problem: SearchProblem, method: str, seed: int, population: int) -> Searcher:
    if method == SPREAD_BASELINE:
        return SpreadSearcher(problem.space, population, seed)
    make = functools.partial(make_searcher, problem=problem, population=population, seed=seed)
    if method == "jcw_reference":
        return make(Method.JCW, reproduce_reference=True)
    if method == "jcw_seeded":
        return make(Method.JCW, seed_with=Method.EXACT)
    return make(method)


def table_text(rows: Sequence[dict[str, Any]]) -> str:
    """Volumes by method (rows) and evaluations (columns), and the minutes that the last of them took."""
    columns = sorted({row["evaluations"] for row in rows})
    shown = columns[1::2] if len(columns) > 6 else columns
    lines = [f"{'network':<9} {'method':<18} " + " ".join(f"{n:>12}" for n in shown) + f" {'minutes':>8}"]
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = {row["evaluations"]: row for row in rows if row["method"] == method}
        cells = []
        for number in shown:
            row = of_method.get(number)
            if row is None:
                cells.append(f"{'':>12}")
                continue
            half = row["hypervolume_mean"] - row["hypervolume_ci95"][0]
            cells.append(f"{row['hypervolume_mean']:.3f} ±{half:.3f}".rjust(12))
        last = of_method[max(of_method)]
        lines.append(f"{last['network']:<9} {method:<18} " + " ".join(cells) + f" {last['minutes']:>8.1f}")
    return "\n".join(lines)
