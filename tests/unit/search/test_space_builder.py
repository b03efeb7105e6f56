"""The space that a config opens, and the check that its bounds can be met."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest

from device_agent.contracts import ContractError, Op, PruningScheme
from search.domain.config import ChannelsConfig, DepthConfig, ResolutionConfig, SpaceConfig, WeightsConfig
from search.domain.objective import Constraint, Metric
from search.domain.space import Genome, VariableKind
from search.errors import InfeasibleBudget
from search.known_figures import plan_figures
from search.lowering import lower
from search.space_builder import (
    build_space,
    channel_choices,
    check_budget,
    resolution_choices,
    smallest_value,
    spread,
)
from tests.unit.search.sample_networks import mobile_spec, resnet_spec

RESNET = resnet_spec()


def test_channel_choices() -> None:
    config = ChannelsConfig(min_ratio=0.25, multiple_of=4, max_choices=8)
    assert channel_choices(16, config) == (4, 8, 12, 16)
    assert channel_choices(32, config) == (8, 12, 16, 20, 24, 28, 32)
    assert channel_choices(18, config) == (8, 12, 16, 18)  # a quarter of 18 is above 4
    assert channel_choices(3, config) == (3,)
    # Each stands for two, or for 32: layers have multiples of 4 all the same.
    assert channel_choices(8, config, repeats=2) == (2, 4, 6, 8)
    assert channel_choices(4, config, repeats=32) == (1, 2, 3, 4)
    assert channel_choices(8, config, repeats=3) == (4, 8)
    thinned = channel_choices(512, config)
    assert len(thinned) == 8
    assert (thinned[0], thinned[-1]) == (128, 512)
    assert all(c % 4 == 0 for c in thinned)


def test_spread_keeps_both_ends() -> None:
    assert spread(range(10), 4) == (0, 3, 6, 9)
    assert spread(range(3), 4) == (0, 1, 2)
    assert spread(range(3), 1) == (2,)
    for count in range(2, 20):
        values = spread(range(23), count)
        assert len(set(values)) == count
        assert (values[0], values[-1]) == (0, 22)


def test_resnet20_space() -> None:
    space = build_space(RESNET, SpaceConfig(channels=ChannelsConfig(), weights=WeightsConfig()))
    kinds = [v.kind for v in space.variables]
    assert kinds.count(VariableKind.CHANNELS) == 9
    assert kinds.count(VariableKind.DENSITY) == 18  # the stem is bounded at density 1: nothing to choose
    assert all(v.target != "conv1" for v in space.variables)
    assert lower(RESNET, space.decode(space.unpruned)) == RESNET.plan


def test_stem_bound() -> None:
    space = build_space(RESNET, SpaceConfig(weights=WeightsConfig(stem_min_density=0.5)))
    stem = next(v for v in space.variables if v.target == "conv1")
    assert stem.choices == (0.5, 0.6, 0.8, 1.0)


def test_fully_connected_layers_open_with_schemes_of_their_own() -> None:
    spec = dataclasses.replace(RESNET, prunable_ops=(*RESNET.prunable_ops, "linear"))
    closed = build_space(spec, SpaceConfig(weights=WeightsConfig()))
    assert closed == build_space(RESNET, SpaceConfig(weights=WeightsConfig()))
    opened = build_space(
        spec, SpaceConfig(weights=WeightsConfig(densities=(0.25, 1.0), fully_connected=("block:8x16", "group:4x1")))
    )
    scheme = next(v for v in opened.variables if v.name == "scheme:linear")
    assert scheme.choices == ("block:8x16", "group:4x1")
    pruning = lower(spec, opened.decode(opened.smallest)).kernels[-1].pruning
    assert (pruning.scheme, pruning.density) == (PruningScheme.BLOCK, 0.25)
    assert lower(spec, opened.decode(opened.unpruned)) == RESNET.plan


def test_schemes_are_refused_where_they_cannot_be() -> None:
    with pytest.raises(ContractError, match="'block:8x16' prunes fully connected layers only"):
        WeightsConfig(schemes=("block:8x16",))
    with pytest.raises(ContractError, match="'pattern:4x1/4' needs 3x3 kernels"):
        WeightsConfig(fully_connected=("pattern:4x1/4",))


def test_dense_stays_a_choice() -> None:
    space = build_space(RESNET, SpaceConfig(weights=WeightsConfig(densities=(0.2, 0.4))))
    assert all(v.choices == (0.2, 0.4, 1.0) for v in space.variables)


def test_patterns_apply_to_3x3_only_and_dense_stays_reachable() -> None:
    spec = mobile_spec()
    space = build_space(spec, SpaceConfig(weights=WeightsConfig(schemes=("pattern:4x1/4",), stem_min_density=0.2)))
    assert {v.target for v in space.variables} == {"stem"}
    density, scheme = space.variables
    # densities above 4/9 are all the same pattern, but not the same under "dense": there they all mean 1
    assert density.choices == (0.2, 0.3, 0.4, 1.0)
    assert scheme.choices == ("pattern:4x1/4", "dense")
    assert lower(spec, space.decode(space.unpruned)) == spec.plan


def test_several_schemes_become_a_variable() -> None:
    spec = mobile_spec()
    weights = WeightsConfig(schemes=("group:4x1", "pattern:4x1/4", "block_punched:8x4"), stem_min_density=0.2)
    space = build_space(spec, SpaceConfig(weights=weights))
    by_name = {v.name: v.choices for v in space.variables}
    assert by_name["scheme:stem"] == ("pattern:4x1/4", "group:4x1", "block_punched:8x4")
    assert by_name["scheme:pw1"] == ("group:4x1", "block_punched:8x4")
    assert lower(spec, space.decode(space.unpruned)) == spec.plan
    lower(spec, space.decode(space.smallest))


def test_nothing_to_vary_is_an_error() -> None:
    with pytest.raises(ContractError, match="nothing of resnet20 may vary"):
        build_space(RESNET, SpaceConfig(weights=WeightsConfig(schemes=("dense",))))


def _measure(genome: Genome) -> Mapping[Metric, float]:
    plan = lower(RESNET, SPACE.decode(genome))
    return {Metric.MACS: plan.macs, Metric.PARAMETERS: plan.parameters, Metric.LATENCY_MS: plan.macs / 1e9}


def _bounded(genome: Genome, bound: Constraint) -> float:
    return _measure(genome)[bound.metric]


SPACE = build_space(RESNET, SpaceConfig(channels=ChannelsConfig(), weights=WeightsConfig()))


def test_possible_budget_passes() -> None:
    smallest = _measure(SPACE.smallest)[Metric.MACS]
    check_budget(SPACE, [Constraint(metric=Metric.MACS, max=smallest)], _bounded)
    check_budget(SPACE, [Constraint(metric=Metric.ERROR, max=1e-9)], _bounded)


def test_impossible_budgets_are_all_named_with_the_smallest_value() -> None:
    smallest = _measure(SPACE.smallest)
    impossible = [Constraint(metric=m, max=smallest[m] * 0.9) for m in (Metric.MACS, Metric.PARAMETERS)]
    with pytest.raises(InfeasibleBudget) as refused:
        check_budget(SPACE, [Constraint(metric=Metric.MACS, max=1e12), *impossible], _bounded)
    told = [
        f"{bound.metric} <= {bound.max:g}: the smallest found in this space is {smallest[bound.metric]:.6g}"
        for bound in impossible
    ]
    assert str(refused.value).startswith(f"no candidate reaches {told[0]}; nor {told[1]}. Raise the bounds, or")


def test_smallest_value_leaves_a_bad_corner() -> None:
    # Sparse kernels may be slower than dense ones: here every density below 1 costs three times as much.
    def latency(genome: Genome) -> float:
        plan = lower(RESNET, SPACE.decode(genome))
        return sum(k.dense_macs * (1.0 if k.pruning.density == 1.0 else 3.0) for k in plan.kernels if k.op is Op.CONV2D)

    dense_smallest = tuple(0 if v.kind is VariableKind.CHANNELS else len(v.choices) - 1 for v in SPACE.variables)
    assert smallest_value(SPACE, latency) == latency(dense_smallest)


def test_resolution_choices() -> None:
    assert resolution_choices(32, ResolutionConfig()) == (16, 20, 24, 28, 32)
    assert resolution_choices(224, ResolutionConfig()) == (128, 160, 192, 224)
    assert resolution_choices(8, ResolutionConfig()) == (4, 6, 8)
    assert resolution_choices(32, ResolutionConfig(step=6, min_ratio=0.6)) == (20, 26, 32)
    assert resolution_choices(32, ResolutionConfig(step=1, max_choices=3)) == (16, 24, 32)
    assert resolution_choices(32, ResolutionConfig(sides=(24, 16))) == (16, 24, 32)
    with pytest.raises(ContractError, match=r"sides has 40, but the network's input has 32 pixels a side"):
        resolution_choices(32, ResolutionConfig(sides=(40,)))


def test_spaces_of_one_dimension() -> None:
    depth = build_space(RESNET, SpaceConfig(depth=DepthConfig(keep=("layer1.0",))))
    assert [v.target for v in depth.variables] == [b.name for b in RESNET.blocks[1:]]
    assert depth.decode(depth.smallest).removed_blocks == tuple(b.name for b in RESNET.blocks[1:])
    assert lower(RESNET, depth.decode(depth.unpruned)) == RESNET.plan
    sides = build_space(RESNET, SpaceConfig(resolution=ResolutionConfig()))
    assert [v.kind for v in sides.variables] == [VariableKind.RESOLUTION]
    assert lower(RESNET, sides.decode(sides.smallest)).input_shape == (3, 16, 16)


def test_depth_where_there_is_none() -> None:
    with pytest.raises(ContractError, match=r"no block of mobile can be removed .it has no residual blocks"):
        build_space(mobile_spec(), SpaceConfig(depth=DepthConfig(), channels=ChannelsConfig()))
    with pytest.raises(ContractError, match=r"no removable block 'layer9.1' in resnet20; there are layer1.0"):
        build_space(RESNET, SpaceConfig(depth=DepthConfig(keep=("layer9.1",))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sides": (0,)}, "each at least 1"),
        ({"sides": ()}, "each at least 1"),
        ({"sides": (16,), "step": 4}, "not both"),
        ({"min_ratio": 0.0}, r"min_ratio 0.0 is not in"),
        ({"step": 0}, "step >= 1"),
        ({"max_choices": 1}, "max_choices >= 2"),
    ],
)
def test_resolution_settings_are_checked(settings: dict, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        ResolutionConfig(**settings)


def test_bytes_out_of_reach() -> None:
    space = build_space(RESNET, SpaceConfig(weights=WeightsConfig()))
    bound = Constraint(metric=Metric.MODEL_BYTES, max=100.0)
    with pytest.raises(InfeasibleBudget, match="no candidate reaches model_bytes <= 100"):
        check_budget(space, [bound], lambda genome, _: plan_figures(lower(RESNET, space.decode(genome)))[bound.metric])
