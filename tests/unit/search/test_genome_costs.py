"""Figures of many genomes by table look-up: the same as those of their plans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.contracts import ContractError, KernelSpec, NetworkPlan
from device_agent.formats.packed import weight_bytes
from search.domain.config import ChannelsConfig, DepthConfig, ResolutionConfig, SpaceConfig, WeightsConfig
from search.domain.network import NetworkSpec
from search.domain.space import SearchSpace, Variable, VariableKind
from search.genome_costs import GenomeCosts
from search.lowering import lower
from search.space_builder import build_space
from tests.unit.search.pruning.pruning_networks import traced
from tests.unit.search.sample_networks import mobile_spec, resnet_spec

SCHEMES = ("group:4x1", "unstructured", "pattern:4x1/4")
COSTS = {"macs": lambda kernel: float(kernel.macs), "parameters": lambda kernel: float(kernel.parameters)}
RESNET = resnet_spec()
EVERYTHING = build_space(
    RESNET,
    SpaceConfig(
        channels=ChannelsConfig(),
        weights=WeightsConfig(schemes=(*SCHEMES, "block_punched:8x4")),
        depth=DepthConfig(),
        resolution=ResolutionConfig(),
    ),
)
EVERYTHING_COSTS = GenomeCosts(
    RESNET, EVERYTHING, COSTS | {"bytes": lambda kernel: float(weight_bytes(kernel)), "operators": lambda kernel: 1.0}
)


def space_of(spec: NetworkSpec, *, resolutions: tuple[int, ...] = ()) -> SearchSpace:
    space = build_space(spec, SpaceConfig(channels=ChannelsConfig(), weights=WeightsConfig(schemes=SCHEMES)))
    if not resolutions:
        return space
    size = Variable(kind=VariableKind.RESOLUTION, target="", choices=resolutions)
    return replace(space, variables=(*space.variables, size))


def genomes_of(space: SearchSpace, count: int) -> np.ndarray:
    drawn = np.random.default_rng(0).integers(0, space.num_choices, size=(count, len(space.variables)))
    return np.concatenate((drawn, [space.smallest, space.unpruned]))


@pytest.mark.parametrize(
    ("spec", "resolutions"),
    [
        (resnet_spec(), ()),
        (resnet_spec(), (16, 24, 32)),
        (mobile_spec(), ()),
        (mobile_spec(), (16, 32)),
        (traced("joined")[1], ()),
    ],
    ids=["resnet", "resnet-resolutions", "mobile", "mobile-resolutions", "joined"],
)
def test_sums_are_those_of_the_plans(spec: NetworkSpec, resolutions: tuple[int, ...]) -> None:
    space = space_of(spec, resolutions=resolutions)
    genomes = genomes_of(space, 40)
    plans = [lower(spec, space.decode(tuple(int(g) for g in genome))) for genome in genomes]
    costs = GenomeCosts(spec, space, COSTS)
    assert costs.names == ("macs", "parameters")
    np.testing.assert_array_equal(costs.sums(genomes), [[plan.macs, plan.parameters] for plan in plans])
    np.testing.assert_array_equal(costs.sums(genomes[::-1]), costs.sums(genomes)[::-1])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_sums_with_everything_open_are_those_of_the_plans(data: st.DataObject) -> None:
    genome = data.draw(st.tuples(*(st.integers(0, n - 1) for n in EVERYTHING.num_choices)))
    plan = lower(RESNET, EVERYTHING.decode(genome))
    expected = [plan.macs, plan.parameters, sum(weight_bytes(k) for k in plan.kernels), len(plan.ops)]
    np.testing.assert_array_equal(EVERYTHING_COSTS.sums([genome])[0], expected)


def test_a_removed_block_costs_nothing() -> None:
    ends = EVERYTHING_COSTS.sums([EVERYTHING.unpruned, EVERYTHING.smallest])
    assert ends[0, 3] - ends[1, 3] == 2 * len(RESNET.blocks)


def test_a_kernel_is_asked_for_once() -> None:
    asked: list[KernelSpec] = []

    def cost(kernel: KernelSpec) -> float:
        asked.append(kernel)
        return 1.0

    spec = resnet_spec()
    space = space_of(spec)
    costs = GenomeCosts(spec, space, {"count": cost})
    genomes = genomes_of(space, 20)
    np.testing.assert_array_equal(costs.sums(genomes), np.full((22, 1), len(spec.plan.ops)))
    num_asked = len(asked)
    costs.sums(genomes)
    assert len(asked) == num_asked


@pytest.mark.parametrize("spec", [resnet_spec(), traced("joined")[1]], ids=["resnet", "joined"])
def test_tables_hold_what_is_summed(spec: NetworkSpec) -> None:
    space = space_of(spec)
    costs = GenomeCosts(spec, space, COSTS)
    costs.check_tables()
    tables = costs.tables("parameters")
    assert [table.operator for table in tables] == [op.name for op in spec.plan.ops]
    sums = costs.sum_tables("parameters")
    genomes = genomes_of(space, 5)
    for genome, row in zip(genomes, costs.with_sums(genomes), strict=True):
        plan: NetworkPlan = lower(spec, space.decode(tuple(int(g) for g in genome)))
        for table, summed, kernel in zip(tables, sums, plan.kernels, strict=True):
            assert table.values[tuple(genome[list(table.variables)])] == kernel.parameters
            assert summed.values[tuple(row[list(summed.variables)])] == kernel.parameters


def test_too_many_groups_for_a_table_are_refused_but_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    _, spec = traced("joined")
    space = build_space(spec, SpaceConfig(channels=ChannelsConfig(multiple_of=1, max_choices=8)))
    costs = GenomeCosts(spec, space, COSTS)
    monkeypatch.setattr("search.genome_costs._MAX_TABLE_CELLS", 1000)
    with pytest.raises(ContractError, match=r"has channels of \d groups, .*max_choices"):
        costs.tables("macs")
    with pytest.raises(ContractError, match=r"'cat\w*' has channels of \d groups, .* use another method"):
        costs.check_tables()
    genomes = genomes_of(space, 20)
    plans = [lower(spec, space.decode(tuple(int(g) for g in genome))) for genome in genomes]
    np.testing.assert_array_equal(costs.sums(genomes)[:, 0], [plan.macs for plan in plans])


def test_what_a_cost_raises_comes_out_and_nothing_is_kept_of_it() -> None:
    spec = resnet_spec()
    space = space_of(spec)
    fails = True

    def cost(kernel: KernelSpec) -> float:
        if fails:
            raise ContractError("not measured")
        return 1.0

    costs = GenomeCosts(spec, space, {"latency": cost})
    with pytest.raises(ContractError, match="not measured"):
        costs.sums([space.unpruned])
    fails = False
    assert costs.sums([space.unpruned])[0, 0] == len(spec.plan.ops)


def test_no_genomes() -> None:
    spec = resnet_spec()
    costs = GenomeCosts(spec, space_of(spec), COSTS)
    assert costs.sums([]).shape == (0, 2)
