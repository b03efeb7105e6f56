"""Compares the search methods.

python -m bench.search --quick        # operators alone: 500 and 2,000 evaluations, 3 seeds, under 50 s
python -m bench.search                # everything, with 5 seeds: hours
python -m bench.search --parts operators
python -m bench.search --overhead     # what methods cost outside of accuracy, for each candidate: a minute

The parts: `operators` (on the published Cortex-A72 table), `evaluations` (one-shot estimates of trained ResNets, on
this machine's latencies), `accuracy` (chosen points fine-tuned and timed), `estimators` (how estimates rank
candidates). What takes long is kept in the work folder, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.search import estimators, operators, overhead, trained, true_evaluations
from bench.search.a72 import A72Landscape, shared_data
from bench.search.latency import measured_table, tflite_dense_ms
from bench.search.networks import NETWORKS, NetworkCase, load_case
from bench.search.trained import Choice
from bench.search.true_evaluations import Progress, RememberedEstimates
from search.domain.space import VariableKind
from search.problem import SearchProblem

PARTS = ("operators", "evaluations", "accuracy", "estimators")

_FULL, _QUICK = (500, 2000, 8192), (500, 2000)
_FULL_SEEDS, _QUICK_SEEDS = 5, 3
_POPULATION, _GENERATIONS = 16, 10
#: Parts of dense TFLite's latency for which every method gives a network. (Dense native kernels take 0.43 of it.)
_BUDGETS = (1 / 3, 0.25, 0.19)
_TIMING_ROUNDS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", help="for the parts with true evaluations; all by default")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--generations", type=int, default=_GENERATIONS, help=f"of {_POPULATION} true evaluations each")
    parser.add_argument("--epochs", type=float, help="of fine-tuning; the example's by default")
    parser.add_argument("--work", type=Path, default=Path("out/bench/search"))
    parser.add_argument("--json", type=Path, help="parts that are not run keep their figures in it")
    parser.add_argument("--overhead", action="store_true", help="time for each candidate outside of accuracy; no more")
    options = parser.parse_args()
    if options.overhead:
        torch.set_num_threads(1)
        print(overhead.overhead_text(overhead.overhead_rows()))
        return
    parts = ["operators"] if options.quick else options.parts
    num_seeds = options.seeds or (_QUICK_SEEDS if options.quick else _FULL_SEEDS)
    results = _Results(options.json)
    if "operators" in parts:
        rows = operators.operator_rows(
            A72Landscape(shared_data()), _QUICK if options.quick else _FULL, range(num_seeds)
        )
        print(operators.table_text(rows), flush=True)
        results.put("operators", operators.as_json(rows), ())
    if set(parts) - {"operators"}:
        torch.set_num_threads(1)
        for name in options.networks:
            _network_parts(name, parts, num_seeds, options, results)


def _network_parts(name: str, parts: Sequence[str], num_seeds: int, options: Any, results: _Results) -> None:
    work = options.work / name
    case = load_case(name, shared_data(), options.work / "cache")
    estimates = RememberedEstimates(case, work / "one-shot.jsonl")
    table = measured_table(case, work / "latency-table.json")
    problem = true_evaluations.problem_of(case, table, estimates, work / "layer-errors.json")
    settings = case.config.training
    if options.epochs is not None:
        settings = replace(settings, epochs=options.epochs)
    if "estimators" in parts and name == NETWORKS[0]:
        ranked = estimators.estimator_rows(case, problem, estimates, settings, work / "trained")
        print(estimators.table_text(ranked), flush=True)
        results.put("estimators", estimators.as_json(ranked), (name,))
    if not {"evaluations", "accuracy"} & set(parts):
        return
    methods = options.methods or true_evaluations.METHODS
    runs: dict[tuple[str, int], list[Progress]] = {}
    for method in methods:
        for seed in range(num_seeds if "evaluations" in parts else 1):
            runs[method, seed] = true_evaluations.run_method(
                case, problem, estimates, method, seed=seed, population=_POPULATION, generations=options.generations
            )
    if "evaluations" in parts:
        rows = true_evaluations.volume_rows(case, problem, runs)
        print(true_evaluations.table_text(rows), flush=True)
        results.put("evaluations", rows, (name,))
    if "accuracy" in parts:
        choices = _choices(case, problem, estimates, runs, work)
        accuracies = trained.accuracy_rows(case, choices, settings, work / "trained")
        print(trained.table_text(accuracies), flush=True)
        results.put("accuracy", trained.as_json(accuracies), (name,))


def _choices(
    case: NetworkCase,
    problem: SearchProblem,
    estimates: RememberedEstimates,
    runs: dict[tuple[str, int], list[Progress]],
    work: Path,
) -> list[Choice]:
    """What every method (by its first seed) and the uniform networks give for each budget."""
    tflite_ms = tflite_dense_ms(case, problem, work / "tflite-dense.json", rounds=_TIMING_ROUNDS)
    choices: list[Choice] = []
    for (method, seed), progress in runs.items():
        if seed == 0:
            last = progress[-1]
            losses = [float(loss) for loss in last.front[:, 0]]
            choices += trained.within_budgets(problem, method, last.genomes, losses, tflite_ms, _BUDGETS)
    uniform = {trained.UNIFORM_WIDTH: VariableKind.CHANNELS, trained.UNIFORM_DENSITY: VariableKind.DENSITY}
    for method, kind in uniform.items():
        genomes = trained.uniform_genomes(problem, kind)
        losses = [estimates(case.space.decode(genome))[0].loss for genome in genomes]
        choices += trained.within_budgets(problem, method, genomes, losses, tflite_ms, _BUDGETS)
    return choices


class _Results:
    """The figures file: rows by part; those of other networks, and of parts that are not run, stay as they are."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._parts: dict[str, list[dict[str, Any]]] = {}
        if path is not None and path.exists():
            self._parts = json.loads(path.read_text())

    def put(self, part: str, rows: list[dict[str, Any]], networks: Sequence[str]) -> None:
        kept = [row for row in self._parts.get(part, []) if networks and row["network"] not in networks]
        self._parts[part] = [*kept, *rows]
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self._parts, indent=1) + "\n")


if __name__ == "__main__":
    main()
