"""Every method on every network of the zoo: channels, two schemes with densities, and the resolution at once.

Groups are those that the data flow claims: proving them takes long on the large networks and is tested elsewhere.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from numpy.typing import ArrayLike

from device_agent.contracts import ContractError
from search.algorithms.factors import Factor
from search.algorithms.registry import make_searcher
from search.domain.architectures import ARCHITECTURES
from search.domain.config import ChannelsConfig, Method, ResolutionConfig, SpaceConfig, WeightsConfig
from search.domain.network import NetworkSpec
from search.domain.objective import Metric
from search.domain.space import SearchSpace
from search.genome_costs import GenomeCosts
from search.lowering import lower
from search.mapping import MappingInput, RateVector, network_layers
from search.models.zoo import build_model
from search.pareto import FloatArray
from search.problem import SearchProblem
from search.pruning.fuse import fuse_network
from search.pruning.groups import discover_groups
from search.space_builder import build_space
from tests.unit.search.algorithms.searcher_suite import TWO

POPULATION = 8
#: `three_dimensions` needs the whole network's axes and has tests of its own.
METHODS = [m for m in Method if m is not Method.THREE_DIMENSIONS]


@functools.cache
def claimed_spec(architecture: str) -> NetworkSpec:
    known = ARCHITECTURES[architecture]
    model = build_model(architecture)
    fused = fuse_network(model, known.input_shape, architecture)
    groups, refused = discover_groups(fused.plan)
    convolutions = tuple(op.name for op in fused.plan.ops if op.kernel.op.value == "conv2d")
    return NetworkSpec(
        architecture=architecture, plan=fused.plan, groups=groups, refused=refused, prunable_ops=convolutions
    )


@functools.cache
def problem_of(architecture: str) -> tuple[SearchProblem, SearchSpace]:
    """Latency in ms is 10^-6 times the multiply-accumulates; the rates are equal everywhere."""
    spec = claimed_spec(architecture)
    config = SpaceConfig(
        channels=ChannelsConfig(min_ratio=0.5, max_choices=3),
        weights=WeightsConfig(schemes=("group:4x1", "unstructured"), densities=(0.2, 0.5, 1.0)),
        # Five times halved, 32 pixels are one: vgg16 takes no smaller images.
        resolution=None if architecture == "vgg16" else ResolutionConfig(max_choices=2),
    )
    space = build_space(spec, config)
    costs = GenomeCosts(spec, space, {"macs": lambda kernel: 1e-6 * kernel.macs})
    tables = costs.tables("macs")

    def known(genomes: ArrayLike) -> dict[Metric, FloatArray]:
        return {Metric.LATENCY_MS: costs.sums(genomes)[:, 0]}

    rates = tuple(RateVector(target=t, densities=dict.fromkeys(spec.prunable_ops, t)) for t in (0.2, 0.6))
    problem = SearchProblem(
        space=space,
        objectives=TWO,
        known=known,
        known_metrics=frozenset({Metric.LATENCY_MS}),
        tables=lambda _: tuple(Factor(variables=t.variables, values=t.values) for t in tables),
        mapping=MappingInput(
            layers=network_layers(spec, space, costs.sum_tables("macs"), costs.with_sums), rates=rates
        ),
    )
    return problem, space


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_two_generations(architecture: str, method: Method) -> None:
    problem, space = problem_of(architecture)
    searcher = make_searcher(method, problem, population=POPULATION, seed=1)
    rng = np.random.default_rng(0)
    asked: list[tuple[int, ...]] = []
    for _ in range(2):
        genomes = searcher.ask()
        assert genomes
        assert problem.known is not None
        latencies = problem.known(genomes)[Metric.LATENCY_MS]
        losses = 1.0 / latencies * rng.uniform(0.9, 1.1, len(genomes))
        searcher.tell(genomes, np.column_stack((losses, latencies)), np.zeros(len(genomes)))
        asked += genomes
    assert len(set(asked)) == len(asked)
    spec = claimed_spec(architecture)
    for genome in (asked[0], asked[-1]):
        plan = lower(spec, space.decode(genome))
        assert problem.known([genome])[Metric.LATENCY_MS][0] == pytest.approx(1e-6 * plan.macs)


def test_a_network_that_takes_no_smaller_images_says_so() -> None:
    with pytest.raises(ContractError, match=r"vgg16 takes no smaller images .*features_43"):
        build_space(claimed_spec("vgg16"), SpaceConfig(resolution=ResolutionConfig()))
    with pytest.raises(ContractError, match="vgg16 does not take images of 24x24"):
        build_space(claimed_spec("vgg16"), SpaceConfig(resolution=ResolutionConfig(sides=(24,))))
