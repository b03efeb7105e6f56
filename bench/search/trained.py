"""Accuracy against measured latency: chosen points of every method, fine-tuned alike and timed together.

For each latency budget (a part of dense TFLite's time) every method gives its best estimate within it; the uniform
networks (one width ratio everywhere, or one density everywhere) are the baselines. Fine-tuned weights are kept on disk,
so that a run that was stopped goes on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.search.latency import NATIVE_DENSE, TFLITE_DENSE, time_networks
from bench.search.networks import NetworkCase
from device_agent.contracts import content_id
from search.distillation import DistillationTeacher
from search.domain.config import TrainingConfig
from search.domain.objective import Metric
from search.domain.space import Decisions, Genome, VariableKind
from search.evaluation import evaluate
from search.models.checkpoint import load_checkpoint, save_checkpoint
from search.problem import SearchProblem
from search.pruning.apply import PrunedModel, apply_decisions
from search.training.finetuning import finetune
from search.training.sgd import Watcher

UNIFORM_WIDTH, UNIFORM_DENSITY = "uniform_width", "uniform_density"
#: The unpruned network as it came, and trained on for as long as the candidates are.
DENSE, DENSE_TRAINED = "dense", "dense_trained"

_SEED = 0
_ROUNDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyRow:
    """Test accuracy of a fine-tuned network, and its latency in one run with dense TFLite (medians over rounds)."""

    network: str
    method: str
    budget: float | None
    accuracy: float
    measured_latency_ms: float
    speedup_vs_tflite_dense: float
    predicted_latency_ms: float | None
    estimated_loss: float | None
    epochs: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A network to train: whose it is, and for which budget (a part of dense TFLite's latency)."""

    method: str
    budget: float | None
    decisions: Decisions
    predicted_latency_ms: float | None = None
    estimated_loss: float | None = None


def within_budgets(
    problem: SearchProblem,
    method: str,
    genomes: Sequence[Genome],
    losses: Sequence[float],
    tflite_ms: float,
    budgets: Sequence[float],
) -> list[Choice]:
    """The genome with the smallest loss within each budget, where there is one; a genome counts for one budget only."""
    latencies = problem.require_known((Metric.LATENCY_MS,), method)(genomes)[Metric.LATENCY_MS]
    chosen: dict[Genome, Choice] = {}
    for budget in budgets:
        within = [i for i in range(len(genomes)) if latencies[i] <= budget * tflite_ms]
        if not within:
            continue
        best = min(within, key=lambda i: losses[i])
        chosen.setdefault(
            genomes[best],
            Choice(
                method=method,
                budget=budget,
                decisions=problem.space.decode(genomes[best]),
                predicted_latency_ms=float(latencies[best]),
                estimated_loss=float(losses[best]),
            ),
        )
    return list(chosen.values())


def uniform_genomes(problem: SearchProblem, kind: VariableKind) -> list[Genome]:
    """The genomes in which all variables of `kind` take the same part of their choices, and others the last one."""
    space = problem.space
    most = max(n for v, n in zip(space.variables, space.num_choices, strict=True) if v.kind is kind)
    levels = np.linspace(0.0, 1.0, most)
    return [
        tuple(
            round(float(level) * (n - 1)) if v.kind is kind else n - 1
            for v, n in zip(space.variables, space.num_choices, strict=True)
        )
        for level in levels
    ]


class FineTuner:
    """Fine-tunes networks alike, and keeps their weights in `folder`: what is there is not trained again."""

    def __init__(self, case: NetworkCase, settings: TrainingConfig, folder: Path) -> None:
        self._case = case
        self._settings = settings
        self._folder = folder
        self._teacher = DistillationTeacher(case.model, case.data) if settings.distillation > 0 else None

    def __call__(self, decisions: Decisions) -> tuple[PrunedModel, float]:
        """The fine-tuned network and its accuracy on the test set."""
        case = self._case
        pruned = apply_decisions(case.model, case.spec, decisions)
        weights = self._folder / f"{content_id('n', [decisions, self._settings, _SEED])}.safetensors"
        if weights.exists():
            load_checkpoint(pruned.model, weights)
            pruned.apply_masks()
        else:
            started = time.perf_counter()
            self._folder.mkdir(parents=True, exist_ok=True)
            state = weights.with_suffix(".training.safetensors")
            generator = torch.Generator().manual_seed(_SEED)
            watcher = Watcher(checkpoint_path=state)
            pruned = finetune(pruned, case.data, self._settings, generator, teacher=self._teacher, watcher=watcher)
            save_checkpoint(pruned.model, weights)
            state.unlink(missing_ok=True)
            print(f"{case.name}: trained in {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        test = case.data.split.test
        return pruned, evaluate(pruned.model, test, case.data.normalise, resolution=pruned.resolution).accuracy


def accuracy_rows(
    case: NetworkCase, choices: Sequence[Choice], settings: TrainingConfig, folder: Path
) -> list[AccuracyRow]:
    """Fine-tune and time all of `choices` and the unpruned network."""
    dense = Choice(method=DENSE_TRAINED, budget=None, decisions=Decisions())
    tuner = FineTuner(case, settings, folder)
    trained: dict[str, tuple[PrunedModel, Decisions]] = {}
    accuracies: dict[str, float] = {}
    by_key = {content_id("n", c.decisions): c for c in (dense, *choices)}
    for number, (key, choice) in enumerate(by_key.items(), start=1):
        pruned, accuracies[key] = tuner(choice.decisions)
        trained[key] = (pruned, choice.decisions)
        words = f"{choice.method} {choice.budget}: {accuracies[key]:.4f}"
        print(f"{case.name} {number}/{len(by_key)} {words}", file=sys.stderr, flush=True)
    times = time_networks(case, trained, rounds=_ROUNDS)
    baseline = evaluate(case.model, case.data.split.test, case.data.normalise).accuracy
    rows = [
        AccuracyRow(
            network=case.name,
            method=DENSE,
            budget=None,
            accuracy=baseline,
            measured_latency_ms=times.median_ns(NATIVE_DENSE) / 1e6,
            speedup_vs_tflite_dense=times.ratio_of(TFLITE_DENSE, NATIVE_DENSE),
            predicted_latency_ms=None,
            estimated_loss=None,
            epochs=0.0,
        )
    ]
    for choice in (dense, *choices):
        key = content_id("n", choice.decisions)
        rows.append(
            AccuracyRow(
                network=case.name,
                method=choice.method,
                budget=choice.budget,
                accuracy=accuracies[key],
                measured_latency_ms=times.median_ns(key) / 1e6,
                speedup_vs_tflite_dense=times.ratio_of(TFLITE_DENSE, key),
                predicted_latency_ms=choice.predicted_latency_ms,
                estimated_loss=choice.estimated_loss,
                epochs=settings.epochs,
            )
        )
    return rows


def as_json(rows: Sequence[AccuracyRow]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def table_text(rows: Sequence[AccuracyRow]) -> str:
    """The rows for people, fastest last."""
    lines = [f"{'network':<9} {'method':<18} {'budget':>6} {'accuracy':>8} {'ms':>7} {'predicted':>9} {'x TFLite':>8}"]
    for row in sorted(rows, key=lambda r: (r.network, r.method, r.speedup_vs_tflite_dense)):
        budget = "" if row.budget is None else f"{row.budget:.3f}"
        predicted = "" if row.predicted_latency_ms is None else f"{row.predicted_latency_ms:.3f}"
        lines.append(
            f"{row.network:<9} {row.method:<18} {budget:>6} {100 * row.accuracy:>8.2f} "
            f"{row.measured_latency_ms:>7.3f} {predicted:>9} {row.speedup_vs_tflite_dense:>8.2f}"
        )
    return "\n".join(lines)
