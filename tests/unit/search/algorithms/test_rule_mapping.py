"""The rules: which scheme and block each layer gets from its type and the latency table."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from device_agent.contracts import ContractError, PruningScheme
from search.algorithms.rule_mapping import RuleMappingSearcher
from search.domain.config import ChannelsConfig, Method, SpaceConfig, WeightsConfig
from search.domain.objective import Constraint, Metric
from search.domain.space import SearchSpace
from search.genome_costs import GenomeCosts
from search.lowering import lower
from search.mapping import network_layers
from search.space_builder import build_space
from tests.unit.search.algorithms.mapping_samples import TARGETS, kernel_ns, mapping_of, resnet_problem
from tests.unit.search.algorithms.searcher_suite import SearcherSuite, known_part
from tests.unit.search.pruning.pruning_networks import traced
from tests.unit.search.sample_networks import mobile_spec, resnet_spec


class TestRuleMapping(SearcherSuite):
    METHOD = Method.RULE_MAPPING

    def known(self, space: SearchSpace) -> dict[str, Any]:
        mapping = mapping_of(space)
        if not mapping.layers:
            mapping = dataclasses.replace(mapping, rates=mapping.rates[:1])
        return {**known_part(space), "mapping": mapping}


def rules(problem, **arguments) -> RuleMappingSearcher:
    return RuleMappingSearcher(problem, population=8, seed=0, **arguments)


def schemes_at(problem, density: float, beta: float, spec=None) -> dict[str, tuple[str, float]]:
    spec = spec or resnet_spec()
    genome = rules(problem).mapped(dict.fromkeys(spec.prunable_ops, density), beta)
    plan = lower(spec, problem.space.decode(genome))
    return {op.name: (str(op.kernel.pruning.scheme), op.kernel.pruning.block_filters) for op in plan.ops}


def test_the_smallest_block_within_the_margin_is_taken() -> None:
    """Unstructured costs twice the whole matrix here, groups of four 1.25 times, punched blocks 1.03 times."""
    problem = resnet_problem()
    layer = "layer1.0.conv2"
    assert schemes_at(problem, 0.3, 0.05)[layer] == (PruningScheme.BLOCK_PUNCHED, 8)
    assert schemes_at(problem, 0.3, 0.3)[layer] == (PruningScheme.GROUP, 4)
    assert schemes_at(problem, 0.3, 1.1)[layer] == (PruningScheme.UNSTRUCTURED, 1)


def test_without_a_block_that_is_fast_enough_the_layer_gets_narrower() -> None:
    problem = resnet_problem(schemes=("unstructured",))
    decisions = problem.space.decode(rules(problem).mapped({"layer1.0.conv1": 0.5}, 0.05))
    assert decisions.channels["layer1.0.conv1"] == 8
    assert decisions.pruning["layer1.0.conv1"].scheme is PruningScheme.DENSE


def test_without_groups_the_largest_block_is_the_measure() -> None:
    problem = resnet_problem(channels=False)
    layer = "layer1.0.conv2"
    assert schemes_at(problem, 0.3, 0.05)[layer] == (PruningScheme.BLOCK_PUNCHED, 8)
    assert schemes_at(problem, 0.3, 0.25)[layer] == (PruningScheme.GROUP, 4)


def test_hard_data_gets_patterns_on_3x3_convolutions() -> None:
    problem = resnet_problem(patterns_on_3x3=True)
    found = schemes_at(problem, 0.3, 0.2)
    assert found["layer1.0.conv2"][0] == PruningScheme.PATTERN
    assert schemes_at(resnet_problem(), 0.3, 0.2)["layer1.0.conv2"][0] != PruningScheme.PATTERN


def test_fully_connected_layers_get_rows_and_columns_of_blocks() -> None:
    spec = dataclasses.replace(resnet_spec(), prunable_ops=(*resnet_spec().prunable_ops, "linear"))
    problem = resnet_problem(spec)
    assert schemes_at(problem, 0.3, 0.05, spec)["linear"] == (PruningScheme.BLOCK, 8)
    assert schemes_at(problem, 0.3, 0.5, spec)["linear"] == (PruningScheme.GROUP, 4)  # columns alone


def test_depthwise_convolutions_stay_dense() -> None:
    spec = mobile_spec()
    problem = resnet_problem(spec)
    found = schemes_at(problem, 0.3, 0.2, spec)
    assert found["dw1"][0] == found["dw2"][0] == PruningScheme.DENSE
    assert found["pw2"][0] == PruningScheme.BLOCK_PUNCHED or found["pw2"][0] == PruningScheme.GROUP


def test_every_beta_and_rate_is_a_point_and_bounds_order_them() -> None:
    problem = resnet_problem()
    searcher = RuleMappingSearcher(problem, population=40, seed=0)
    swept = {searcher.mapped(r.densities, b) for r in problem.mapping.rates for b in problem.mapping.betas}
    assert len(swept) > len(TARGETS)
    assert swept <= set(searcher.ask())
    latencies = problem.known(np.array(sorted(swept)))[Metric.LATENCY_MS]
    bound = Constraint(metric=Metric.LATENCY_MS, max=float(np.median(latencies)))
    bounded = dataclasses.replace(problem, constraints=(bound,))
    first = RuleMappingSearcher(bounded, population=3, seed=0).ask()
    assert (problem.known(np.array(first))[Metric.LATENCY_MS] <= bound.max).all()


def test_layers_and_rates_must_be_known() -> None:
    problem = resnet_problem()
    with pytest.raises(ContractError, match="needs the latency table of every layer and pruning rates"):
        rules(dataclasses.replace(problem, mapping=None))
    with pytest.raises(ContractError, match="needs the latency table"):
        rules(dataclasses.replace(problem, mapping=dataclasses.replace(problem.mapping, rates=())))


def test_layers_behind_concatenations_have_the_latencies_of_their_kernels() -> None:
    """The mapping needs no table over all choices of the groups that such a layer reads."""
    _, spec = traced("joined")
    weights = WeightsConfig(schemes=("unstructured", "group:4x1"))
    space = build_space(spec, SpaceConfig(channels=ChannelsConfig(multiple_of=1, max_choices=4), weights=weights))
    costs = GenomeCosts(spec, space, {"ns": kernel_ns})
    layers = network_layers(spec, space, costs.sum_tables("ns"), costs.with_sums)
    assert any(layer.inputs is None for layer in layers[1:])
    genomes = np.random.default_rng(0).integers(0, space.num_choices, size=(20, len(space.variables)))
    largest = dict.fromkeys((layer.name for layer in layers), 0.0)
    for genome in (*genomes.tolist(), space.unpruned):
        kernels = {op.name: op.kernel for op in lower(spec, space.decode(tuple(genome))).ops}
        for layer in layers:
            expected = kernel_ns(kernels[layer.name])
            assert layer.latency_ns(genome) == expected
            largest[layer.name] = max(largest[layer.name], expected)
    assert all(layer.largest_latency_ns >= largest[layer.name] for layer in layers)
