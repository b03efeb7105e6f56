"""The landscape of a trained ResNet-20, for search_methods.py: one-shot losses, and latencies of a stored table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml
from numpy.typing import ArrayLike

from bench.search.a72 import OBJECTIVES
from search.accuracy.one_shot import OneShotEstimator
from search.data.loading import load_data
from search.domain.candidate import Evaluation
from search.domain.config import DatasetConfig, SearchConfig, parse_config
from search.domain.objective import Metric
from search.domain.space import Genome
from search.genome_costs import GenomeCosts
from search.known_figures import NetworkFigures
from search.latency.network import fit_network_model
from search.latency.table import load_table
from search.models.checkpoint import load_checkpoint
from search.models.zoo import build_model
from search.pareto import FloatArray
from search.problem import SearchProblem
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
) -> tuple[str, SearchProblem, Callable[[Sequence[Genome]], list[Evaluation]]]:
    """A note on where the figures come from, the problem, and its evaluation, which remembers every genome's loss."""
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
    if table is None:
        note = "loss one-shot on held-out CIFAR-10, MACs in place of latency"
        costs = GenomeCosts(spec, space, {"macs": lambda kernel: float(kernel.macs)})

        def latency_ms(genomes: ArrayLike) -> FloatArray:
            return costs.sums(genomes)[:, 0] / _MACS_PER_MS
    else:
        note = f"loss one-shot on held-out CIFAR-10, latency predicted from {table.name}"
        figures = NetworkFigures(spec, space, fit_network_model(load_table(table.read_text())))

        def latency_ms(genomes: ArrayLike) -> FloatArray:
            return figures(genomes)[Metric.LATENCY_MS]

    problem = SearchProblem(
        space=space,
        objectives=OBJECTIVES,
        known=lambda genomes: {Metric.LATENCY_MS: latency_ms(genomes)},
        known_metrics=frozenset({Metric.LATENCY_MS}),
    )
    losses: dict[Genome, float] = {}

    def evaluate(genomes: Sequence[Genome]) -> list[Evaluation]:
        for genome in genomes:
            if genome not in losses:
                losses[genome] = estimator.estimate([space.decode(genome)])[0].loss
        return [
            Evaluation(metrics={Metric.LOSS: losses[genome], Metric.LATENCY_MS: float(latency)})
            for genome, latency in zip(genomes, latency_ms(genomes), strict=True)
        ]

    return note, problem, evaluate
