"""Hypervolume of the search methods at equal evaluations on a real network, over several seeds.

    python -m bench.search_methods [--table FILE]         # one-shot losses of a ResNet-20 (minutes)

The loss is the one-shot estimate of a trained ResNet-20 on held-out training images. Latency is that of `--table`, a
latency table as stored with a search; without it MACs stand in for latency, and the output says so. `bench.search` has
the operators alone, on a published table.

Hypervolumes are relative to that of the joint front of all runs, with the objectives scaled from the joint front's best
values (0) to the reference point (1): the loss of the smallest network and the latency of the unpruned one.
`random-spread` is a stronger baseline than `random`: sizes are uniform, instead of genes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.resnet20_landscape import resnet20_landscape
from bench.search.a72 import OBJECTIVES, shared_data
from search.algorithms.base import Searcher
from search.algorithms.registry import SEARCHERS, make_searcher
from search.algorithms.sampling import draw_at_level, draw_new
from search.domain.candidate import Evaluation
from search.domain.objective import Metric
from search.domain.space import Genome, SearchSpace
from search.loop import front_of, objective_matrix, run_search
from search.pareto import FloatArray, hypervolume
from search.problem import SearchProblem

SPREAD_BASELINE = "random-spread"


@dataclass(frozen=True, slots=True, kw_only=True)
class Landscape:
    """A problem with figures for its genomes. `evaluate` is deterministic."""

    name: str
    note: str
    problem: SearchProblem
    evaluate: Callable[[Sequence[Genome]], Sequence[Evaluation]]


class SpreadSearcher:
    """Random genomes of uniformly random size. Only for comparison: it cannot be stored."""

    def __init__(self, space: SearchSpace, population: int, seed: int) -> None:
        self._space, self._population, self._rng = space, population, np.random.default_rng(seed)

    def ask(self) -> tuple[Genome, ...]:
        return draw_new(
            self._rng,
            self._space,
            self._population,
            (),
            lambda: draw_at_level(self._rng, self._space, float(self._rng.random())),
        )

    def tell(self, genomes: Sequence[Genome], objectives: FloatArray, violations: FloatArray) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        raise NotImplementedError("this baseline cannot be restored")


def run_one(landscape: Landscape, method: str, seed: int, population: int, generations: int) -> FloatArray:
    """The objectives (n, 2) of the front that `method` ends on."""
    problem = landscape.problem
    searcher: Searcher
    if method == SPREAD_BASELINE:
        searcher = SpreadSearcher(problem.space, population, seed)
    else:
        searcher = make_searcher(method, problem, population=population, seed=seed)
    state = run_search(
        searcher=searcher,
        problem=problem,
        evaluate=landscape.evaluate,
        generations=generations,
    )
    return objective_matrix([item.evaluation for item in front_of(state.archive, OBJECTIVES)], OBJECTIVES)


def compare(
    landscape: Landscape, methods: Sequence[str], seeds: Sequence[int], population: int, generations: int
) -> dict[str, Any]:
    """Relative hypervolumes by method and seed."""
    space = landscape.problem.space
    smallest, unpruned = landscape.evaluate([space.smallest, space.unpruned])
    reference = np.array([smallest.metrics[Metric.LOSS], unpruned.metrics[Metric.LATENCY_MS]])
    fronts = {}
    seconds: dict[str, float] = {}
    for method in methods:
        started = time.perf_counter()
        for seed in seeds:
            fronts[method, seed] = run_one(landscape, method, seed, population, generations)
        seconds[method] = time.perf_counter() - started
    joint = np.concatenate(list(fronts.values()))
    ideal = joint.min(axis=0)

    def scaled_volume(points: FloatArray) -> float:
        return hypervolume((points - ideal) / (reference - ideal), np.ones(2))

    best = scaled_volume(joint)
    return {
        "landscape": landscape.name,
        "note": landscape.note,
        "population": population,
        "generations": generations,
        "evaluations": population * generations,
        "reference_point": reference.tolist(),
        "relative_hypervolume": {
            method: [scaled_volume(fronts[method, seed]) / best for seed in seeds] for method in methods
        },
        "seeds": list(seeds),
        "seconds": seconds,
    }


def table_text(result: dict[str, Any]) -> str:
    """The result as a table for people."""
    lines = [
        f"{result['landscape']}: {result['note']}; {result['evaluations']} evaluations "
        f"({result['generations']} x {result['population']})",
        f"{'method':<14}  {'mean':>6}  {'std':>6}  {'min':>6}  by seed",
    ]
    for method, values in result["relative_hypervolume"].items():
        by_seed = " ".join(f"{v:.3f}" for v in values)
        lines.append(f"{method:<14}  {np.mean(values):6.3f}  {np.std(values):6.3f}  {min(values):6.3f}  {by_seed}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare search methods at equal evaluations.")
    parser.add_argument("--population", type=int, default=24)
    parser.add_argument("--generations", type=int, nargs="+", default=[10])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--table", type=Path, help="latency table (JSON)")
    parser.add_argument("--json", type=Path, help="write the results here as well")
    arguments = parser.parse_args()
    note, problem, evaluate = resnet20_landscape(shared_data(), arguments.table)
    landscape = Landscape(name="resnet20", note=note, problem=problem, evaluate=evaluate)
    methods = [*(m.value for m in SEARCHERS), SPREAD_BASELINE]
    results = []
    for generations in arguments.generations:
        results.append(compare(landscape, methods, range(arguments.seeds), arguments.population, generations))
        print(table_text(results[-1]), end="\n\n")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
