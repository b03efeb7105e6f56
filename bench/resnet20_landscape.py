"""The landscape of a trained ResNet-20, for search_methods.py: one-shot losses, and latencies of a stored table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml

from device_agent.contracts import NetworkPlan
from search.accuracy import OneShotEstimator
from search.data.loading import load_data
from search.domain.candidate import Evaluation
from search.domain.config import DatasetConfig, SearchConfig, parse_config
from search.domain.objective import Metric
from search.domain.space import Genome, SearchSpace
from search.latency.network import fit_network_model
from search.latency.table import load_table
from search.lowering import lower
from search.models.checkpoint import load_checkpoint
from search.models.zoo import build_model
from search.pruning.trace import trace_network
from search.space_builder import build_space

_EXAMPLE = Path(__file__).parent.parent / "examples" / "cifar10-resnet20.yaml"
_ARCHITECTURE = "resnet20"
_INPUT_SHAPE = (3, 32, 32)
_CALIBRATION_IMAGES = 256
_EVALUATION_IMAGES = 512
#: MACs stand in for latency at this rate, where there is no table: about one core of a phone.
_MACS_PER_MS = 4.5e6


def _example() -> SearchConfig:
    """The example search, whose space the tables of its runs cover."""
    return parse_config(yaml.safe_load(_EXAMPLE.read_text(encoding="utf-8")))


def resnet20_landscape(
    shared_data: Path, table: Path | None
) -> tuple[str, SearchSpace, Callable[[Sequence[Genome]], list[Evaluation]]]:
    """A note on where the figures come from, the space, and its evaluation, which remembers every genome."""
    torch.set_num_threads(1)
    model = build_model(_ARCHITECTURE)
    load_checkpoint(model, shared_data / "resnet20-cifar10-jpeg.safetensors")
    model.eval()
    spec = trace_network(model, _INPUT_SHAPE, _ARCHITECTURE)
    space = build_space(spec, _example().space)
    data = load_data(
        DatasetConfig(
            name="cifar10-jpeg",
            train=str(shared_data / "cifar10-jpeg-train.zip"),
            test=str(shared_data / "cifar10-jpeg-test.zip"),
        ),
        input_shape=_INPUT_SHAPE,
        calibration_images=_CALIBRATION_IMAGES,
    )
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(data.split.holdout.labels), generator=generator)[:_EVALUATION_IMAGES].numpy()
    estimator = OneShotEstimator(model, spec, data.split.calibration, data.split.holdout.subset(chosen), data.normalise)
    latency_ms: Callable[[NetworkPlan], float]
    if table is None:
        note = "loss one-shot on held-out CIFAR-10, MACs in place of latency"

        def latency_ms(plan: NetworkPlan) -> float:
            return plan.macs / _MACS_PER_MS
    else:
        note = f"loss one-shot on held-out CIFAR-10, latency predicted from {table.name}"
        latency_ms = fit_network_model(load_table(table.read_text())).latency_ms

    known: dict[Genome, Evaluation] = {}

    def evaluate(genomes: Sequence[Genome]) -> list[Evaluation]:
        for genome in genomes:
            if genome not in known:
                decisions = space.decode(genome)
                known[genome] = Evaluation(
                    metrics={
                        Metric.LOSS: estimator.estimate(decisions).loss,
                        Metric.LATENCY_MS: latency_ms(lower(spec, decisions)),
                    }
                )
        return [known[genome] for genome in genomes]

    return note, space, evaluate
