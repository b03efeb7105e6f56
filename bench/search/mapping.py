"""Does a scheme for each layer beat the best single scheme at equal measured latency?

    python -m bench.search.mapping --table table.json --json result.json   # the table: bench.search.mapping_table

The claim of Y. Gong et al. (arXiv 2111.11581), on a trained ResNet-20 and this machine's native kernels. A contestant
is a search space: one scheme with a density for each layer, whole channels, or a free choice for each layer. All are
searched by the same method with the same number of evaluations of the one-shot loss, and the best within each latency
budget wins. Budgets are parts of the unpruned network's latency. Winners are chosen on some held-out images and judged
on others (`judged`), as the best of many is flattered by the images it was chosen on. Latencies are those of measured
kernels; winners are measured as whole networks, too, with `--measure`. `mapping_trained` fine-tunes them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.search.a72 import OBJECTIVES, shared_data
from bench.search.mapping_table import (
    ARCHITECTURE,
    CHANNELS,
    DENSITIES,
    INPUT_SHAPE,
    SCHEMES,
    mapping_space,
    measured_network_ms,
)
from device_agent.contracts import encode
from search.accuracy.one_shot import OneShotEstimator
from search.algorithms.factors import Factor
from search.algorithms.registry import make_searcher
from search.data.loading import load_data
from search.domain.candidate import EvaluatedCandidate, Evaluation
from search.domain.config import DatasetConfig, MappingConfig, SpaceConfig, WeightsConfig
from search.domain.objective import Metric
from search.domain.space import Decisions, Genome, SearchSpace, VariableKind, space_id
from search.known_figures import NetworkFigures
from search.latency.network import fit_network_model
from search.latency.table import load_table
from search.loop import run_search
from search.lowering import lower
from search.mapping import MappingInput, network_layers
from search.models.checkpoint import load_checkpoint
from search.models.zoo import build_model
from search.pareto import FloatArray
from search.problem import SearchProblem
from search.pruning.trace import trace_network
from search.rates import threshold_rates
from search.reconstruction.estimates import errors_from_json, errors_to_json, estimate_errors
from search.space_builder import build_space
from search.training.reweighted import group_scores
from server.worker.mapping import rated_groups

BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_CALIBRATION_IMAGES = 128
_SEARCH_IMAGES = 256
_JUDGING_IMAGES = 1024
MAPPING, CHANNELS_ONLY, GROUP_AND_CHANNELS = "mapping", "whole-channel", "group:4x1 + whole-channel"
_WITHOUT_CHANNELS = "mapping without whole-channel"
CONTESTANTS = (
    MAPPING,
    "group:4x1",
    "unstructured",
    "block_punched:8x4",
    CHANNELS_ONLY,
    GROUP_AND_CHANNELS,
    "pattern:4x1/4",
    "block_punched:4x4",
    "group:8x1",
    _WITHOUT_CHANNELS,
    "block_punched:8x16",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Winner:
    """The best of a contestant within a budget: its loss where it was chosen."""

    decisions: Decisions
    latency_ms: float
    loss: float


class Bench:
    """The network, its data and its table. Losses are remembered over all contestants."""

    def __init__(self, table: Path) -> None:
        torch.set_num_threads(1)
        self._folder = table.parent
        data_dir = shared_data()
        self.model = build_model(ARCHITECTURE)
        load_checkpoint(self.model, data_dir / "resnet20-cifar10-jpeg.safetensors")
        self.model.eval()
        self.spec = trace_network(self.model, INPUT_SHAPE, ARCHITECTURE)
        self.latency = fit_network_model(load_table(table.read_text()))
        self.data = load_data(
            DatasetConfig(
                name="cifar10-jpeg",
                train=str(data_dir / "cifar10-jpeg-train.zip"),
                test=str(data_dir / "cifar10-jpeg-test.zip"),
                # With these the checkpoint was trained.
                mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225),
            ),
            input_shape=INPUT_SHAPE,
            calibration_images=_CALIBRATION_IMAGES,
        )
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(self.data.split.holdout.labels), generator=generator).numpy()
        self._searching = self._estimator(order[:_SEARCH_IMAGES])
        self._judging = self._estimator(order[_SEARCH_IMAGES : _SEARCH_IMAGES + _JUDGING_IMAGES])
        self._losses: dict[str, float] = {}
        self._judged: dict[str, tuple[float, float]] = {}
        self.dense_ms = self.latency.predict(lower(self.spec, Decisions())).latency_ns / 1e6

    def _estimator(self, images: Any) -> OneShotEstimator:
        split = self.data.split
        return OneShotEstimator(
            self.model, self.spec, split.calibration, split.holdout.subset(images), self.data.normalise
        )

    def space(self, contestant: str) -> SearchSpace:
        everything = WeightsConfig(schemes=SCHEMES, densities=DENSITIES)
        if contestant == MAPPING:
            return mapping_space(self.spec)
        if contestant == _WITHOUT_CHANNELS:
            return build_space(self.spec, SpaceConfig(weights=everything))
        if contestant == CHANNELS_ONLY:
            return build_space(self.spec, SpaceConfig(channels=CHANNELS))
        weights = WeightsConfig(schemes=(contestant.partition(" + ")[0],), densities=DENSITIES)
        channels = CHANNELS if contestant == GROUP_AND_CHANNELS else None
        return build_space(self.spec, SpaceConfig(channels=channels, weights=weights))

    def _mapping(self, space: SearchSpace, figures: NetworkFigures) -> MappingInput:
        """Rates are those of magnitude: no epochs of training are spent on them here."""
        macs = {op.name: float(op.kernel.dense_macs) for op in self.spec.plan.ops}
        smallest = {v.target: float(v.choices[0]) for v in space.variables if v.kind is VariableKind.DENSITY}
        rates = threshold_rates(
            group_scores(self.model, rated_groups(space)), macs, MappingConfig().targets, min_density=smallest
        )
        layers = network_layers(self.spec, space, figures.latency_tables(), figures.with_sums)
        return MappingInput(layers=layers, rates=rates)

    def _errors(self, space: SearchSpace) -> tuple[Factor, ...]:
        """Estimated errors of layers, kept beside the table; for each network and space there is one file."""
        path = self._folder / f"errors-{space_id(space)}.json"
        if not path.exists():

            def losses(genomes: Sequence[Genome]) -> FloatArray:
                return np.array([self.loss(space.decode(genome)) for genome in genomes])

            split = self.data.split
            found = estimate_errors(self.model, self.spec, space, split.calibration, self.data.normalise, losses)
            path.write_text(errors_to_json(found))
        return errors_from_json(path.read_text()).factors

    def loss(self, decisions: Decisions) -> float:
        key = repr((sorted(decisions.channels.items()), sorted((k, repr(v)) for k, v in decisions.pruning.items())))
        if key not in self._losses:
            self._losses[key] = self._searching.estimate([decisions])[0].loss
        return self._losses[key]

    def judged(self, decisions: Decisions) -> tuple[float, float]:
        """Loss and accuracy on images that no search saw."""
        key = repr(decisions)
        if key not in self._judged:
            found = self._judging.estimate([decisions])[0]
            self._judged[key] = (found.loss, found.accuracy)
        return self._judged[key]

    def search(self, space: SearchSpace, method: str, seed: int, population: int, generations: int) -> list[Winner]:
        """Everything that a search evaluated."""
        figures = NetworkFigures(self.spec, space, self.latency)
        problem = SearchProblem(
            space=space,
            objectives=OBJECTIVES,
            known=figures,
            known_metrics=frozenset({Metric.LATENCY_MS}),
            tables=figures.tables,
            mapping=self._mapping(space, figures) if method in ("rule_mapping", "policy_gradient") else None,
            errors=self._errors(space) if method == "exact" else (),
        )

        def evaluate(genomes: Sequence[Genome]) -> list[Evaluation]:
            latencies = figures(genomes)[Metric.LATENCY_MS]
            return [
                Evaluation(metrics={Metric.LOSS: self.loss(space.decode(g)), Metric.LATENCY_MS: float(ms)})
                for g, ms in zip(genomes, latencies, strict=True)
            ]

        state = run_search(
            searcher=make_searcher(method, problem, population=population, seed=seed),
            problem=problem,
            evaluate=evaluate,
            generations=generations,
        )
        return [_winner(space, item) for item in state.archive]


def _winner(space: SearchSpace, item: EvaluatedCandidate) -> Winner:
    metrics = item.evaluation.metrics
    return Winner(
        decisions=space.decode(item.candidate.genome),
        latency_ms=metrics[Metric.LATENCY_MS],
        loss=metrics[Metric.LOSS],
    )


def best_within(found: Sequence[Winner], budget_ms: float) -> Winner | None:
    """The smallest loss within the budget; None where nothing is so fast."""
    fitting = [w for w in found if w.latency_ms <= budget_ms and np.isfinite(w.loss)]
    return min(fitting, key=lambda w: (w.loss, w.latency_ms), default=None)


def schemes_of(decisions: Decisions) -> dict[str, int]:
    """How many layers got each scheme."""
    counts: dict[str, int] = {}
    for pruning in decisions.pruning.values():
        name = pruning.scheme.value
        if name not in ("dense", "unstructured"):
            name += f":{pruning.block_filters}x{pruning.block_channels}"
        counts[name] = counts.get(name, 0) + 1
    return counts


def row_of(bench: Bench, found: Sequence[Winner], *, measure: bool) -> list[dict[str, Any]]:
    """A contestant's figures for each budget."""
    rows = []
    for part in BUDGETS:
        winner = best_within(found, part * bench.dense_ms)
        if winner is None:
            rows.append({"budget": part})
            continue
        loss, accuracy = bench.judged(winner.decisions)
        row: dict[str, Any] = {
            "budget": part,
            "latency_ms": winner.latency_ms,
            "loss": winner.loss,
            "judged_loss": loss,
            "judged_accuracy": accuracy,
            "schemes": schemes_of(winner.decisions),
            "decisions": encode(winner.decisions),
        }
        if measure:
            row["measured_ms"] = measured_network_ms(bench.model, bench.spec, winner.decisions)
        rows.append(row)
    return rows


def table_text(result: dict[str, Any]) -> str:
    """Judged loss and accuracy by contestant and budget, means over seeds."""
    lines = ["contestant (method)".ljust(46) + "".join(f"{f'{b:g} x dense':>16}" for b in BUDGETS)]
    names = dict.fromkeys((r["contestant"], r["method"]) for r in result["runs"])
    for name, method in names:
        runs = [r["rows"] for r in result["runs"] if (r["contestant"], r["method"]) == (name, method)]
        cells = []
        for place in range(len(BUDGETS)):
            reached = [rows[place] for rows in runs if "judged_loss" in rows[place]]
            if len(reached) < len(runs):
                cells.append("-")
                continue
            loss = np.mean([row["judged_loss"] for row in reached])
            accuracy = 100 * np.mean([row["judged_accuracy"] for row in reached])
            cells.append(f"{loss:.3f} / {accuracy:.1f}")
        lines.append(f"{name} ({method}) x{len(runs)}".ljust(46) + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Per-layer schemes against single schemes at equal latency.")
    parser.add_argument("--table", type=Path, required=True, help="written by bench.search.mapping_table")
    parser.add_argument("--json", type=Path, required=True, help="results; runs that are in it already are kept")
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--methods", nargs="+", default=["jcw"])
    parser.add_argument("--population", type=int, default=16)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--measure", action="store_true", help="measure the winners as whole networks")
    arguments = parser.parse_args()
    bench = Bench(arguments.table)
    result: dict[str, Any] = {"runs": []}
    if arguments.json.exists():
        result = json.loads(arguments.json.read_text())
    result["dense_ms"] = bench.dense_ms
    result["dense"] = bench.judged(Decisions())
    done = {(r["contestant"], r["method"], r["seed"]) for r in result["runs"]}
    for seed in range(arguments.seeds):
        for method in arguments.methods:
            for contestant in arguments.contestants:
                if (contestant, method, seed) in done:
                    continue
                space = bench.space(contestant)
                found = bench.search(space, method, seed, arguments.population, arguments.generations)
                run = {
                    "contestant": contestant,
                    "method": method,
                    "seed": seed,
                    "evaluations": len(found),
                    "rows": row_of(bench, found, measure=arguments.measure),
                }
                result["runs"].append(run)
                arguments.json.write_text(json.dumps(result, indent=1) + "\n")
                print(f"{contestant} by {method}, seed {seed}: {len(found)} evaluations", file=sys.stderr, flush=True)
    print(table_text(result))


if __name__ == "__main__":
    main()
