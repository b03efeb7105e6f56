"""The operators alone: the volume that each method's front reaches on the A72 landscape (`a72`), by evaluations.

Every method sees noisy losses. The front that it would hand over, by what it has seen, is judged by the true figures.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pymoo.algorithms.soo.nonconvex.de import DE
from pymoo.core.problem import Problem
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from scipy import stats

from bench.search.a72 import A72Landscape
from search.algorithms.registry import make_searcher
from search.pareto import FloatArray, IntArray, non_dominated_mask

METHODS = ("jcw", "jcw_reference", "nsga2", "pymoo_de", "aacp", "random", "exact")
POPULATION = 64
#: pymoo's differential evolution finds one network within one budget: it runs once for each of so many latencies.
DE_BUDGETS = 8
#: Points on the hull, and budgets in between, that `exact` solves for.
EXACT_HULL_POINTS = 400
EXACT_BUDGETS = 24
EXACT_TIME_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRow:
    """Volumes relative to the best known front (1 is best), over seeds; the interval is Student's, of the mean."""

    method: str
    evaluations: int
    hypervolume_mean: float
    hypervolume_ci95: tuple[float, float]
    seconds: float


def operator_rows(landscape: A72Landscape, checkpoints: Sequence[int], seeds: Sequence[int]) -> list[OperatorRow]:
    """A row for each method and checkpoint, in evaluations. `exact` needs none: it knows the landscape's tables."""
    exact_volume, exact_seconds = _exact(landscape)
    volumes: dict[tuple[str, int], list[float]] = {}
    seconds: dict[tuple[str, int], list[float]] = {}
    best = exact_volume
    for method in METHODS[:-1]:
        for seed in seeds:
            for evaluations, front, elapsed_s in _progress(landscape, method, seed, checkpoints):
                volume = landscape.volume(front)
                best = max(best, volume)
                volumes.setdefault((method, evaluations), []).append(volume)
                seconds.setdefault((method, evaluations), []).append(elapsed_s)
    rows = [
        _row(method, evaluations, np.array(found) / best, float(np.mean(seconds[method, evaluations])))
        for (method, evaluations), found in volumes.items()
    ]
    return [*rows, _row("exact", 0, np.array([exact_volume / best]), exact_seconds)]


def table_text(rows: Sequence[OperatorRow]) -> str:
    """The rows for people."""
    lines = [f"{'method':<14} {'evaluations':>11}  {'volume':>7}  {'95 % interval':<15}  {'seconds':>7}"]
    for row in rows:
        low, high = row.hypervolume_ci95
        lines.append(
            f"{row.method:<14} {row.evaluations:>11}  {row.hypervolume_mean:>7.4f}  {low:.4f}..{high:.4f}   "
            f"{row.seconds:>7.2f}"
        )
    return "\n".join(lines)


def as_json(rows: Sequence[OperatorRow]) -> list[dict[str, Any]]:
    return [asdict(row) | {"hypervolume_ci95": list(row.hypervolume_ci95)} for row in rows]


def _row(method: str, evaluations: int, volumes: FloatArray, seconds: float) -> OperatorRow:
    mean = float(volumes.mean())
    half = 0.0
    if len(volumes) > 1:
        half = float(stats.t.ppf(0.975, len(volumes) - 1) * stats.sem(volumes))
    return OperatorRow(
        method=method,
        evaluations=evaluations,
        hypervolume_mean=mean,
        hypervolume_ci95=(mean - half, mean + half),
        seconds=seconds,
    )


def _progress(
    landscape: A72Landscape, method: str, seed: int, checkpoints: Sequence[int]
) -> Iterator[tuple[int, FloatArray, float]]:
    """(checkpoint, true figures of the front by then, thread-CPU seconds of the method by then)."""
    if method == "pymoo_de":
        for checkpoint in checkpoints:
            started = time.thread_time()
            genomes = _differential_evolution(landscape, seed, checkpoint)
            yield checkpoint, _true_front(landscape, genomes), time.thread_time() - started
        return
    is_reference = method == "jcw_reference"
    searcher = make_searcher(
        "jcw" if is_reference else method,
        landscape.problem,
        population=POPULATION,
        seed=seed,
        reproduce_reference=is_reference,
    )
    proposed: list[tuple[int, ...]] = []
    elapsed_s = 0.0
    left = list(checkpoints)
    while left:
        started = time.thread_time()
        # What goes beyond a checkpoint does not count for it.
        genomes = searcher.ask()
        elapsed_s += time.thread_time() - started
        proposed += genomes
        while left and len(proposed) >= left[0]:
            yield left[0], _true_front(landscape, np.array(proposed[: left[0]])), elapsed_s
            left.pop(0)
        seen = landscape.seen_figures(genomes)
        started = time.thread_time()
        searcher.tell(genomes, seen, np.zeros(len(genomes)))
        elapsed_s += time.thread_time() - started


def _true_front(landscape: A72Landscape, genomes: IntArray) -> FloatArray:
    distinct = np.unique(genomes, axis=0)
    on_front = non_dominated_mask(landscape.seen_figures(distinct))
    return landscape.true_figures(distinct[on_front])


def _differential_evolution(landscape: A72Landscape, seed: int, evaluations: int) -> IntArray:
    """All genomes that pymoo's DE evaluates, for `DE_BUDGETS` latencies evenly over the range."""
    low, high = landscape.true_figures([landscape.space.smallest, landscape.space.unpruned])[:, 1]
    upper = np.array(landscape.space.num_choices) - 1
    share = evaluations // DE_BUDGETS
    population = min(POPULATION, max(8, share // 4))
    told: list[IntArray] = []
    for number, bound_ms in enumerate(np.linspace(low, high, DE_BUDGETS + 1)[1:]):
        problem = Problem(n_var=len(upper), n_obj=1, n_ieq_constr=1, xl=np.zeros(len(upper)), xu=upper, vtype=int)
        algorithm = DE(
            pop_size=population, sampling=IntegerRandomSampling(), variant="DE/best/1/bin", repair=RoundingRepair()
        )
        algorithm.setup(problem, termination=("n_gen", 10**9), seed=seed * DE_BUDGETS + number, verbose=False)
        count = 0
        while count < share:
            infills = algorithm.ask()
            genomes = np.clip(np.rint(infills.get("X").astype(np.float64)), 0, upper).astype(np.int64)
            figures = landscape.seen_figures(genomes)
            infills.set("F", figures[:, :1])
            infills.set("G", figures[:, 1:] / bound_ms - 1.0)
            algorithm.tell(infills=infills)
            told.append(genomes[: share - count])
            count += len(genomes)
    return np.concatenate(told)


def _exact(landscape: A72Landscape) -> tuple[float, float]:
    """The volume of the exact front, and its thread-CPU seconds."""
    started = time.thread_time()
    front = landscape.exact_front()
    points = list(front.hull(EXACT_HULL_POINTS))
    low, high = points[0].cost, points[-1].cost
    points += [
        front.best_within(float(bound), time_limit_s=EXACT_TIME_LIMIT_S)
        for bound in np.linspace(low, high, EXACT_BUDGETS + 2)[1:-1]
    ]
    elapsed_s = time.thread_time() - started
    return landscape.volume(np.array([(p.error, p.cost) for p in points])), elapsed_s
