"""Lowering: shapes follow the decisions, and what is impossible is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.contracts import DENSE, ContractError, Op, PruningScheme, WeightPruning
from search.domain.config import ChannelsConfig, SpaceConfig, WeightsConfig
from search.domain.network import Axis
from search.domain.space import Decisions
from search.lowering import Lowering, lower
from search.space_builder import build_space
from tests.unit.search.sample_networks import mobile_spec, resnet_spec

RESNET = resnet_spec()
MOBILE = mobile_spec()
GROUP = WeightPruning(scheme=PruningScheme.GROUP, density=0.5, block_filters=4)


def test_no_decision_gives_the_dense_plan() -> None:
    assert lower(RESNET, Decisions()) == RESNET.plan
    assert lower(MOBILE, Decisions()) == MOBILE.plan


def test_channels_reach_producer_and_consumer_only() -> None:
    plan = lower(RESNET, Decisions(channels={"layer2.0.conv1": 12}))
    kernels = {op.name: op.kernel for op in plan.ops}
    assert kernels["layer2.0.conv1"].out_channels == 12
    assert kernels["layer2.0.conv2"].in_channels == 12
    assert kernels["layer2.0.conv2"].out_channels == 32
    changed = {op.name for op, dense in zip(plan.ops, RESNET.plan.ops, strict=True) if op != dense}
    assert changed == {"layer2.0.conv1", "layer2.0.conv2"}


def test_depthwise_follows_its_input() -> None:
    kernels = {op.name: op.kernel for op in lower(MOBILE, Decisions(channels={"pw1": 4, "pw2": 8})).ops}
    assert (kernels["dw2"].in_channels, kernels["dw2"].out_channels) == (4, 4)
    assert (kernels["pw2"].in_channels, kernels["pw2"].out_channels) == (4, 8)
    assert kernels["linear"].in_channels == 8


def test_resolution_changes_every_extent() -> None:
    plan = lower(RESNET, Decisions(resolution=24))
    assert plan.input_shape == (3, 24, 24)
    assert [op.kernel.input_h for op in plan.ops if op.kernel.op is Op.GLOBAL_AVG_POOL] == [6]
    assert plan.parameters == RESNET.plan.parameters


def test_hand_counted_macs() -> None:
    # layer1.0: conv1 16 -> 8 at density 0.5, conv2 8 -> 16 dense, on 32 x 32
    plan = lower(RESNET, Decisions(channels={"layer1.0.conv1": 8}, pruning={"layer1.0.conv1": GROUP}))
    saved = 2 * 16 * 16 * 9 * 1024 - (8 * 16 * 9 * 1024 // 2 + 16 * 8 * 9 * 1024)
    assert RESNET.plan.macs - plan.macs == saved


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        (Decisions(channels={"conv1": 8}), "no pruning group 'conv1'"),
        (Decisions(channels={"layer1.0.conv1": 0}), r"0 channels of group 'layer1.0.conv1' are not in 1..16"),
        (Decisions(channels={"layer1.0.conv1": 17}), "17 channels"),
        (Decisions(pruning={"linear": GROUP}), "'linear' cannot be pruned"),
        (Decisions(pruning={"nothing": GROUP}), "'nothing' cannot be pruned"),
        (Decisions(resolution=0), "resolution 0"),
    ],
)
def test_illegal_decisions_are_refused(decisions: Decisions, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        lower(RESNET, decisions)


def test_pattern_on_a_pointwise_convolution_names_the_operator() -> None:
    pattern = WeightPruning(scheme=PruningScheme.PATTERN, density=4 / 9, block_filters=4, pattern_entries=4)
    with pytest.raises(ContractError, match=r"pw1: patterns are defined on 3x3"):
        lower(MOBILE, Decisions(pruning={"pw1": pattern}))


def test_dense_pruning_of_an_unprunable_operator_is_no_error() -> None:
    assert lower(RESNET, Decisions(pruning={"linear": DENSE})) == RESNET.plan


def test_kernels_are_shared_between_candidates() -> None:
    lowering = Lowering(RESNET)
    one = lowering.lower(Decisions(channels={"layer1.0.conv1": 8}))
    two = lowering.lower(Decisions(channels={"layer3.0.conv1": 8}))
    assert one.ops[0] is two.ops[0]


SPACES = {
    name: (
        spec,
        build_space(
            spec,
            SpaceConfig(channels=ChannelsConfig(), weights=WeightsConfig(schemes=("group:4x1", "unstructured"))),
        ),
    )
    for name, spec in (("resnet", RESNET), ("mobile", MOBILE))
}


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(SPACES)), data=st.data())
def test_every_genome_lowers_to_a_consistent_plan(name: str, data: st.DataObject) -> None:
    spec, space = SPACES[name]
    genome = tuple(data.draw(st.integers(0, n - 1)) for n in space.num_choices)
    decisions = space.decode(genome)
    plan = lower(spec, decisions)  # NetworkPlan checks that producers and consumers agree
    kernels = {op.name: op.kernel for op in plan.ops}
    assert [op.name for op in plan.ops] == [op.name for op in spec.plan.ops]
    for group in spec.groups:
        count = decisions.channels.get(group.name, group.channels)
        for member in group.members:
            kernel = kernels[member.op]
            assert count == (kernel.out_channels if member.axis is Axis.OUT else kernel.in_channels)
    for target, pruning in decisions.pruning.items():
        assert kernels[target].pruning == pruning
    assert plan.macs <= spec.plan.macs
    assert plan.parameters <= spec.plan.parameters
    assert plan.output_shape == spec.plan.output_shape


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_smaller_choices_never_cost_more(data: st.DataObject) -> None:
    spec, space = SPACES["mobile"]
    larger = tuple(data.draw(st.integers(0, n - 1)) for n in space.num_choices)
    smaller = tuple(data.draw(st.integers(0, gene)) for gene in larger)
    assert lower(spec, space.decode(smaller)).macs <= lower(spec, space.decode(larger)).macs
