"""Is a scheme for each layer still ahead after fine-tuning? Winners of mapping.py, trained alike and timed together.

    python -m bench.search.mapping_trained --result result.json --json trained.json

The result is what bench.search.mapping wrote. Winners of each contestant and seed within the given budgets are
fine-tuned with the example's settings and judged on the 10,000 test images; all networks are timed in one interleaved
run. What is trained already is kept in the work folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.search.a72 import shared_data
from bench.search.latency import NATIVE_DENSE, time_networks
from bench.search.mapping import CONTESTANTS
from bench.search.mapping_table import ARCHITECTURE
from bench.search.networks import NetworkCase, load_case
from bench.search.trained import FineTuner
from device_agent.contracts import content_id, decode
from search.domain.space import Decisions
from search.pruning.apply import PrunedModel

_ROUNDS = 60


def chosen_rows(result: dict[str, Any], contestants: Sequence[str], budgets: Sequence[float]) -> list[dict[str, Any]]:
    """What to train: a row for each run's winner within each budget, in the order of the contestants."""
    rows = []
    for contestant in contestants:
        for run in result["runs"]:
            if run["contestant"] != contestant:
                continue
            for row in run["rows"]:
                if row["budget"] in budgets and "decisions" in row:
                    keys = ("budget", "latency_ms", "judged_accuracy", "decisions")
                    rows.append({"contestant": contestant, "seed": run["seed"], **{key: row[key] for key in keys}})
    return rows


def trained_rows(case: NetworkCase, tuner: FineTuner, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`rows` with the accuracy after fine-tuning, and the latency in one run with the unpruned network."""
    networks: dict[str, tuple[PrunedModel, Decisions]] = {}
    accuracies: dict[str, float] = {}
    keys = []
    for number, row in enumerate(rows, start=1):
        decisions = decode(Decisions, row["decisions"])
        key = content_id("n", decisions)
        keys.append(key)
        if key not in networks:
            pruned, accuracies[key] = tuner(decisions)
            networks[key] = (pruned, decisions)
        words = f"{row['contestant']} {row['budget']:g}, seed {row['seed']}: {accuracies[key]:.4f}"
        print(f"{number}/{len(rows)} {words}", file=sys.stderr, flush=True)
    times = time_networks(case, networks, rounds=_ROUNDS)
    return [
        {
            **{name: value for name, value in row.items() if name != "decisions"},
            "accuracy": accuracies[key],
            "measured_latency_ms": times.median_ns(key) / 1e6,
            "part_of_dense": times.ratio_of(key, NATIVE_DENSE),
        }
        for row, key in zip(rows, keys, strict=True)
    ]


def table_text(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracy and measured latency by contestant and budget, means over seeds."""
    lines = [f"{'contestant':<30} {'budget':>6} {'seeds':>5} {'before':>7} {'accuracy':>8} {'ms':>7} {'x dense':>7}"]
    for contestant, budget in dict.fromkeys((row["contestant"], row["budget"]) for row in rows):
        those = [row for row in rows if (row["contestant"], row["budget"]) == (contestant, budget)]

        def mean(name: str, those: Sequence[dict[str, Any]] = those) -> float:
            return float(np.mean([row[name] for row in those]))

        lines.append(
            f"{contestant:<30} {budget:>6.2f} {len(those):>5} {100 * mean('judged_accuracy'):>7.1f} "
            f"{100 * mean('accuracy'):>8.2f} {mean('measured_latency_ms'):>7.3f} {mean('part_of_dense'):>7.3f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tunes and times the winners of bench.search.mapping.")
    parser.add_argument("--result", type=Path, required=True, help="written by bench.search.mapping")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.4, 0.6])
    parser.add_argument("--epochs", type=float, help="of fine-tuning; the example's by default")
    parser.add_argument("--work", type=Path, default=Path("out/bench/search"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    case = load_case(ARCHITECTURE, shared_data(), options.work / "cache")
    settings = case.config.training
    if options.epochs is not None:
        settings = replace(settings, epochs=options.epochs)
    tuner = FineTuner(case, settings, options.work / ARCHITECTURE / "trained")
    rows = chosen_rows(json.loads(options.result.read_text()), options.contestants, options.budgets)
    found = trained_rows(case, tuner, rows)
    options.json.write_text(json.dumps({"epochs": settings.epochs, "rows": found}, indent=1) + "\n")
    print(table_text(found))


if __name__ == "__main__":
    main()
