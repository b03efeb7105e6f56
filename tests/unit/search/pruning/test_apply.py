from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from device_agent.contracts import ContractError, Op, PruningScheme, WeightPruning
from search.domain.space import Decisions
from search.pruning.apply import apply_decisions
from search.pruning.channels import importance, kept_channels, remove_channels
from search.pruning.fold import PlanMismatch, to_plan_tensors
from search.pruning.trace import trace_network
from tests.unit.search.pruning.plan_reference import run_plan
from tests.unit.search.pruning.pruning_networks import traced

pytestmark = pytest.mark.xdist_group("traced")

BLOCKS = WeightPruning(scheme=PruningScheme.BLOCK, density=0.4, block_filters=8, block_channels=16)
GROUP = WeightPruning(scheme=PruningScheme.GROUP, density=0.3, block_filters=4)
SCHEMES = (
    GROUP,
    WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.5),
    WeightPruning(scheme=PruningScheme.BLOCK_PUNCHED, density=0.4, block_filters=8, block_channels=4),
    WeightPruning(scheme=PruningScheme.PATTERN, density=0.3, block_filters=4, pattern_entries=4),
)


def two_layers() -> nn.Module:
    """1x1 convolutions 1 -> 3 -> 2 with a batch norm that makes the last channel of the first layer count most."""
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([3.0, -2.0, 1.0]).reshape(3, 1, 1, 1))
        model[1].weight.copy_(torch.tensor([1.0, 1.0, -9.0]))
    return model.eval()


def test_importance_is_the_norm_of_the_filters_that_run() -> None:
    model = two_layers()
    spec = trace_network(model, (1, 4, 4), "two")

    values = importance(model, spec, spec.group("0"))

    assert values / values.sum() == pytest.approx([3 / 14, 2 / 14, 9 / 14])
    assert kept_channels(model, spec, Decisions(channels={"0": 2}))["0"].tolist() == [0, 2]
    assert kept_channels(model, spec, Decisions(channels={"0": 3})) == {}


def test_members_of_an_add_are_ranked_together() -> None:
    shared, spec = traced("resnet18")
    model = copy.deepcopy(shared)
    group = spec.group("layer2.0.conv2")
    with torch.no_grad():
        for name in ("layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2"):
            model.get_submodule(name).weight[::2] *= 0.1

    kept = kept_channels(model, spec, Decisions(channels={group.name: 64}))

    assert kept[group.name].tolist() == list(range(1, 128, 2))


def test_removes_channels_everywhere_and_leaves_the_original() -> None:
    model, spec = traced("mobilenet_v2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expansion = spec.group("features.2.conv.0.0")

    pruned = remove_channels(model, spec, {expansion.name: np.array([3, 5, 90])})

    depthwise = pruned.get_submodule("features.2.conv.1.0")
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (3, 3, 3)
    assert pruned.get_submodule("features.2.conv.1.1").num_features == 3
    assert torch.equal(
        pruned.get_submodule("features.2.conv.2").weight, before["features.2.conv.2.weight"][:, [3, 5, 90]]
    )
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    pruned_weights = {p.data_ptr() for p in pruned.parameters()}
    assert not pruned_weights & {p.data_ptr() for p in model.parameters()}


@pytest.mark.parametrize("architecture", ["resnet20", "resnet18", "mobilenet_v2", "small_cnn"])
def test_a_pruned_network_runs_as_its_plan_says(architecture: str) -> None:
    model, spec = traced(architecture)
    shape = spec.plan.input_shape
    kernels = {op.name: op.kernel for op in spec.plan.ops}
    decisions = Decisions(
        channels={g.name: max(1, g.channels * (i % 3 + 2) // 5) for i, g in enumerate(spec.groups)},
        pruning={
            name: SCHEMES[i % 4] if kernels[name].kernel_h == 3 else SCHEMES[i % 3]
            for i, name in enumerate(spec.prunable_ops)
            if kernels[name].op is Op.CONV2D
        }
        | {name: BLOCKS for name in spec.prunable_ops if kernels[name].op is Op.FULLY_CONNECTED},
        resolution=shape[1] - 4,
    )
    x = torch.randn(2, shape[0], shape[1] - 4, shape[1] - 4, generator=torch.Generator().manual_seed(0))

    pruned = apply_decisions(model, spec, decisions)
    plan, tensors = to_plan_tensors(pruned, spec, decisions)

    with torch.no_grad():
        expected = pruned.model.double()(x.double())
    torch.testing.assert_close(run_plan(plan, tensors, x).flatten(1), expected, rtol=1e-4, atol=1e-4)
    for op in plan.ops:
        if op.name in decisions.pruning:
            kept = float(np.mean(tensors[f"{op.name}.weight"] != 0))
            assert kept == pytest.approx(op.kernel.pruning.density, abs=0.08)
    assert set(pruned.masks) == set(decisions.pruning)
    assert pruned.resolution == shape[1] - 4


def test_pruned_weights_are_those_of_the_mask_and_others_are_inherited() -> None:
    model, spec = traced("small_cnn")

    pruned = apply_decisions(model, spec, Decisions(pruning={"conv3": GROUP}))

    weight = pruned.model.get_submodule("conv3").weight
    assert isinstance(weight, Tensor)
    expected = model.get_submodule("conv3").weight * pruned.masks["conv3"]
    assert torch.equal(weight, expected)
    assert torch.equal(pruned.model.get_submodule("conv4").weight, model.get_submodule("conv4").weight)


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        (Decisions(channels={"conv1": 0}), "0 channels"),
        (Decisions(channels={"conv1": 17}), "17 channels"),
        (Decisions(channels={"conv9": 4}), "no pruning group 'conv9'"),
        (Decisions(pruning={"maxpool": GROUP}), "cannot be pruned"),
    ],
)
def test_refuses_decisions_that_do_not_fit(decisions: Decisions, message: str) -> None:
    model, spec = traced("small_cnn")
    with pytest.raises(ContractError, match=message):
        apply_decisions(model, spec, decisions)


def test_folding_refuses_a_model_that_is_not_what_the_decisions_say() -> None:
    model, spec = traced("small_cnn")
    decisions = Decisions(channels={"conv1": 8}, pruning={"conv3": GROUP})
    pruned = apply_decisions(model, spec, decisions)

    with pytest.raises(PlanMismatch, match="conv1"):
        to_plan_tensors(pruned, spec, Decisions(pruning={"conv3": GROUP}))
    with pytest.raises(PlanMismatch, match="conv3: the plan says"):
        to_plan_tensors(pruned, spec, Decisions(channels={"conv1": 8}))

    with torch.no_grad():
        pruned.model.get_submodule("conv3").weight.fill_(1.0)
    with pytest.raises(PlanMismatch, match="conv3: weights are not zero"):
        to_plan_tensors(pruned, spec, decisions)
