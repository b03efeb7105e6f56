"""What the mapping methods know of the networks in their tests."""

from __future__ import annotations

import numpy as np

from device_agent.contracts import KernelSpec, Op, PruningScheme
from search.domain.config import ChannelsConfig, SpaceConfig, WeightsConfig
from search.domain.network import NetworkSpec
from search.domain.objective import Metric
from search.domain.space import SearchSpace, VariableKind
from search.genome_costs import CostTable, GenomeCosts
from search.mapping import Layer, MappingInput, RateVector, network_layers
from search.problem import SearchProblem
from search.space_builder import build_space
from tests.unit.search.algorithms.searcher_suite import TWO
from tests.unit.search.sample_networks import resnet_spec

TARGETS = (0.2, 0.4, 0.7)


def mapping_of(space: SearchSpace) -> MappingInput:
    """A layer of equal latencies at each density variable of a space without a network."""
    layers = []
    for position, variable in enumerate(space.variables):
        if variable.kind is VariableKind.DENSITY:
            table = CostTable(
                operator=variable.target,
                variables=(position,),
                values=100.0 * (0.1 + np.linspace(0.0, 1.0, len(variable.choices))),
            )
            kernel = KernelSpec(op=Op.CONV2D, in_channels=8, out_channels=16, kernel_h=3, kernel_w=3, padding=1)
            layers.append(
                Layer(name=variable.target, kernel=kernel, latency=table, with_sums=np.asarray, density=position)
            )
    rates = tuple(RateVector(target=t, densities={layer.name: t for layer in layers}) for t in TARGETS)
    return MappingInput(layers=tuple(layers), rates=rates)


def kernel_ns(kernel: KernelSpec) -> float:
    """A device on which larger blocks run faster: cost per multiply-add falls with the block, whole channels best."""
    scheme = kernel.pruning.scheme
    size = kernel.pruning.block_filters * kernel.pruning.block_channels
    factor = 1.0 if scheme is PruningScheme.DENSE else 1.0 + 1.0 / size
    if scheme is PruningScheme.PATTERN:
        factor = 1.05
    return 10.0 + factor * kernel.macs


def resnet_problem(
    spec: NetworkSpec | None = None,
    *,
    schemes: tuple[str, ...] = ("unstructured", "group:4x1", "block_punched:8x4", "pattern:4x1/4"),
    channels: bool = True,
    betas: tuple[float, ...] = (0.05, 0.2, 0.5),
    patterns_on_3x3: bool = False,
) -> SearchProblem:
    """ResNet-20 with latencies by `kernel_ns` and equal rates everywhere."""
    spec = spec or resnet_spec()
    config = SpaceConfig(
        channels=ChannelsConfig(min_ratio=0.25, multiple_of=4, max_choices=4) if channels else None,
        weights=WeightsConfig(
            schemes=schemes, densities=(0.1, 0.2, 0.3, 0.5, 1.0), fully_connected=("block:8x16", "group:4x1")
        ),
    )
    space = build_space(spec, config)
    costs = GenomeCosts(spec, space, {"latency_ns": kernel_ns})
    layers = network_layers(spec, space, costs.sum_tables("latency_ns"), costs.with_sums)
    rates = tuple(RateVector(target=t, densities=dict.fromkeys(spec.prunable_ops, t)) for t in TARGETS)
    return SearchProblem(
        space=space,
        objectives=TWO,
        known=lambda genomes: {Metric.LATENCY_MS: costs.sums(genomes)[:, 0] / 1e6},
        known_metrics=frozenset({Metric.LATENCY_MS}),
        mapping=MappingInput(layers=layers, rates=rates, betas=betas, patterns_on_3x3=patterns_on_3x3),
    )
