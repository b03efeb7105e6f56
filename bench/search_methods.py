"""Hypervolume of jcw, nsga2 and random at equal evaluations, over several seeds.

    python -m bench.search_methods                        # the published Cortex-A72 table, synthetic loss
    python -m bench.search_methods --landscape resnet20   # real one-shot losses of a ResNet-20 (minutes)

Landscapes:
    a72       Latency is real: cells of the table that JCW's authors measured for ResNet-18 on a Cortex-A72 (shared
              data, jcw-resnet18-latency-ms.npy), over a space like JCW's: 12 widths and 20 densities. The loss is
              synthetic: a sum over layers with random sensitivities, the same for all methods and seeds.
    resnet20  Loss is real: the one-shot estimate of a trained ResNet-20 on held-out training images. Latency is that of
              `--table`, a latency table as stored with a search; without it MACs stand in for latency, and the output
              says so.

Hypervolumes are relative to that of the joint front of all runs, with the objectives scaled from the joint front's best
values (0) to the reference point (1): the loss of the smallest network and the latency of the unpruned one.
`random-spread` is a stronger baseline than `random`: sizes are uniform, instead of genes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from device_agent.contracts import PruningScheme
from search.algorithms.base import Searcher
from search.algorithms.registry import SEARCHERS, make_searcher
from search.algorithms.sampling import draw_at_level, draw_new
from search.domain.candidate import Evaluation
from search.domain.objective import Metric, Objective
from search.domain.space import Genome, SchemeChoice, SearchSpace, Variable, VariableKind
from search.loop import front_of, objective_matrix, run_search
from search.pareto import FloatArray, hypervolume
from search.problem import SearchProblem

OBJECTIVES = (Objective(metric=Metric.LOSS), Objective(metric=Metric.LATENCY_MS))
SPREAD_BASELINE = "random-spread"


@dataclass(frozen=True, slots=True, kw_only=True)
class Landscape:
    """A space with figures for its genomes. `evaluate` is deterministic."""

    name: str
    note: str
    space: SearchSpace
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


# The 12 channel groups of ResNet-18 that each convolution of the table reads and writes: first the residual streams
# (0..3), then the blocks' inner widths (4..11); -1 is the image.
_A72_INPUTS = (-1, 0, 4, 0, 5, 0, 6, 0, 1, 7, 1, 8, 1, 2, 9, 2, 10, 2, 3, 11)
_A72_OUTPUTS = (0, 4, 0, 5, 0, 6, 1, 1, 7, 1, 8, 2, 2, 9, 2, 10, 3, 3, 11, 3)
_A72_IMAGE_INDEX = 2  # the stem's three input channels are stored at this index
_EIGHTHS = 8
_TENTHS = 10
#: The bounds of JCW's published search: half of the channels, three tenths of the weights.
_MIN_EIGHTHS, _MIN_TENTHS = 4, 3
#: Layers differ in sensitivity by about a factor of e.
_SENSITIVITY_SIGMA = 1.0
_LANDSCAPE_SEED = 20211015


def a72_landscape(shared_data: Path) -> Landscape:
    """JCW's table as a landscape; see the module."""
    path = shared_data / "jcw-resnet18-latency-ms.npy"
    if not path.is_file():
        sys.exit(f"{path} is missing: set KERF_SHARED_DATA to the folder that has it")
    table_ms = np.load(path)
    layers = np.arange(len(table_ms))
    num_groups = max(_A72_OUTPUTS) + 1
    space = SearchSpace(
        variables=(
            *(
                Variable(
                    kind=VariableKind.CHANNELS,
                    target=f"group{g}",
                    choices=tuple(range(_MIN_EIGHTHS, _EIGHTHS + 1)),
                )
                for g in range(num_groups)
            ),
            *(
                Variable(
                    kind=VariableKind.DENSITY,
                    target=f"conv{i}",
                    choices=tuple(tenths / _TENTHS for tenths in range(_MIN_TENTHS, _TENTHS + 1)),
                )
                for i in layers
            ),
        ),
        default_scheme=SchemeChoice(scheme=PruningScheme.GROUP, block_filters=4),
    )
    rng = np.random.default_rng(_LANDSCAPE_SEED)
    sensitivity = np.exp(_SENSITIVITY_SIGMA * rng.standard_normal(len(layers))) / len(layers)

    def evaluate(genomes: Sequence[Genome]) -> list[Evaluation]:
        genes = np.array(genomes)
        eighths = genes[:, :num_groups] + _MIN_EIGHTHS
        tenths = genes[:, num_groups:] + _MIN_TENTHS
        outputs = eighths[:, list(_A72_OUTPUTS)]
        inputs = np.where(np.array(_A72_INPUTS) < 0, _A72_IMAGE_INDEX, eighths[:, list(_A72_INPUTS)])
        latency_ms = table_ms[layers, outputs, inputs, tenths].sum(axis=1)
        widths = np.where(np.array(_A72_INPUTS) < 0, 1.0, inputs / _EIGHTHS) * outputs / _EIGHTHS
        # What a layer loses grows ever faster with what it gives up, and is 0 where it keeps all.
        loss = (sensitivity * ((widths * tenths / _TENTHS) ** -0.5 - 1.0)).sum(axis=1)
        return [
            Evaluation(metrics={Metric.LOSS: float(e), Metric.LATENCY_MS: float(t)})
            for e, t in zip(loss, latency_ms, strict=True)
        ]

    return Landscape(name="a72", note="latency measured (Cortex-A72), loss synthetic", space=space, evaluate=evaluate)


def run_one(landscape: Landscape, method: str, seed: int, population: int, generations: int) -> FloatArray:
    """The objectives (n, 2) of the front that `method` ends on."""
    problem = SearchProblem(space=landscape.space, objectives=OBJECTIVES)
    searcher: Searcher
    if method == SPREAD_BASELINE:
        searcher = SpreadSearcher(landscape.space, population, seed)
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
    smallest, unpruned = landscape.evaluate([landscape.space.smallest, landscape.space.unpruned])
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
    parser.add_argument("--landscape", choices=("a72", "resnet20"), default="a72")
    parser.add_argument("--population", type=int, default=24)
    parser.add_argument("--generations", type=int, nargs="+", default=[10, 40])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--table", type=Path, help="latency table (JSON) for --landscape resnet20")
    parser.add_argument("--json", type=Path, help="write the results here as well")
    arguments = parser.parse_args()
    shared_data = Path(os.environ.get("KERF_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if arguments.landscape == "a72":
        landscape = a72_landscape(shared_data)
    else:
        from bench.resnet20_landscape import resnet20_landscape

        note, space, evaluate = resnet20_landscape(shared_data, arguments.table)
        landscape = Landscape(name="resnet20", note=note, space=space, evaluate=evaluate)
    methods = [*(m.value for m in SEARCHERS), SPREAD_BASELINE]
    results = []
    for generations in arguments.generations:
        results.append(compare(landscape, methods, range(arguments.seeds), arguments.population, generations))
        print(table_text(results[-1]), end="\n\n")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
