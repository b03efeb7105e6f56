"""Removable blocks: found by data flow, proved on the network, and taken out so that plan and network stay one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load
from torch import Tensor, nn

from device_agent.contracts import ContractError, PruningScheme, WeightPruning
from device_agent.formats.packed import read_packed, weight_bytes, write_packed
from search.domain.network import Axis, GroupMember
from search.domain.space import Decisions
from search.lowering import lower
from search.models.zoo import build_model
from search.pruning.apply import apply_decisions
from search.pruning.blocks import discover_blocks
from search.pruning.channels import importance
from search.pruning.fold import to_plan_tensors
from search.pruning.fuse import fuse_network
from search.pruning.trace import trace_network
from tests.unit.search.pruning.plan_reference import run_plan
from tests.unit.search.pruning.pruning_networks import conv_bn, randomise, traced

pytestmark = pytest.mark.xdist_group("traced")

GROUP = WeightPruning(scheme=PruningScheme.GROUP, density=0.5, block_filters=4)


@pytest.mark.parametrize(
    ("architecture", "removable", "refused"),
    [
        ("resnet20", [f"layer{s}.{b}" for s in (1, 2, 3) for b in range(3) if s == 1 or b], 2),
        ("mobilenet_v2", [f"features.{i}" for i in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)], 0),
        ("small_resnet", ["layer1.0", "layer1.1", "layer2.1", "layer3.1"], 2),
        ("small_cnn", [], 1),
    ],
)
def test_blocks_of_the_zoo(architecture: str, removable: list[str], refused: int) -> None:
    _, spec = traced(architecture)
    assert [block.name for block in spec.blocks] == removable
    assert len(spec.refused_blocks) == refused


def test_bottlenecks_and_shortcuts_with_convolutions() -> None:
    claims, refused = discover_blocks(fuse_network(build_model("resnet50"), (3, 32, 32), "resnet50").plan)
    assert [c.modules[0] for c in claims] == [
        *("layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer2.3"),
        *(f"layer3.{i}" for i in range(1, 6)),
        *("layer4.1", "layer4.2"),
    ]
    block = claims[6].named(claims[6].modules[0])
    assert block.ops == tuple(f"layer3.2.conv{i}" for i in (1, 2, 3))
    assert (block.reads, block.writes) == ("layer3.1.conv3", "layer3.2.conv3")
    assert {b.reason for b in refused} == {"its shortcut is not the identity, so its shape changes"}


@pytest.mark.parametrize("architecture", ["resnet20", "mobilenet_v2", "small_resnet"])
@pytest.mark.parametrize("part", ["one", "all"])
def test_a_network_without_blocks_runs_as_its_plan_says(architecture: str, part: str) -> None:
    model, spec = traced(architecture)
    names = [b.name for b in spec.blocks]
    removed = {"one": names[1:2], "all": names}[part]
    channels, side, _ = spec.plan.input_shape
    decisions = Decisions(
        removed_blocks=tuple(sorted(removed)),
        channels={g.name: max(1, g.channels * (i % 3 + 2) // 5) for i, g in enumerate(spec.groups)},
        pruning=dict.fromkeys(spec.prunable_ops[::2], GROUP),
        resolution=side - 2,
    )
    x = torch.randn(2, channels, side - 2, side - 2, generator=torch.Generator().manual_seed(0))

    pruned = apply_decisions(model, spec, decisions)
    plan, tensors = to_plan_tensors(pruned, spec, decisions)

    with torch.no_grad():
        expected = pruned.model.double()(x.double())
    torch.testing.assert_close(run_plan(plan, tensors, x).flatten(1), expected, rtol=1e-4, atol=1e-4)
    gone = spec.removed_ops(removed)
    assert len(gone) >= len(removed)
    assert [op.name for op in plan.ops] == [op.name for op in spec.plan.ops if op.name not in gone]
    assert not gone & set(pruned.masks)
    read_back, stored = read_packed(write_packed(plan, tensors))
    assert read_back == plan
    assert set(stored) == set(tensors)
    assert sum(t.nbytes for t in load(write_packed(plan, tensors)).values()) <= sum(map(weight_bytes, plan.kernels))


def test_removing_a_block_leaves_the_original_and_other_names() -> None:
    model, spec = traced("resnet20")
    names = set(model.state_dict())
    pruned = apply_decisions(model, spec, Decisions(removed_blocks=("layer2.1",))).model
    assert set(model.state_dict()) == names
    assert set(pruned.state_dict()) == {n for n in names if not n.startswith("layer2.1.")}


def test_removed_layers_have_no_say_in_what_a_stream_keeps() -> None:
    model, spec = traced("mobilenet_v2")
    stream = next(g for g in spec.groups if GroupMember(op="features.6.conv.2", axis=Axis.OUT) in g.members)
    without = importance(model, spec, stream, without=spec.removed_ops(["features.6"]))
    assert not np.allclose(without, importance(model, spec, stream))
    decisions = Decisions(channels={stream.name: 9}, removed_blocks=("features.6",))
    kept = apply_decisions(model, spec, decisions).kept[stream.name]
    assert set(kept) == set(np.argsort(-without, kind="stable")[:9])


def test_unknown_block() -> None:
    _, spec = traced("resnet20")
    with pytest.raises(ContractError, match=r"no removable block 'layer2.0' in resnet20; there are layer1.0, layer1.1"):
        lower(spec, Decisions(removed_blocks=("layer2.0",)))
    with pytest.raises(ContractError, match="sorted and distinct"):
        Decisions(removed_blocks=("b", "a"))


class _Block(nn.Module):
    """A residual block whose add is followed by an activation, or not."""

    def __init__(self, activation: bool) -> None:
        super().__init__()
        self.branch = conv_bn(8, 8)
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.branch(x) + x
        return F.relu(x) if self._activation else x


class _Chain(nn.Module):
    """A stem with or without activation, then two blocks."""

    def __init__(self, stem: bool, block: bool) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.first = _Block(block)
        self.second = _Block(False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 5)
        self._stem = stem

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self._stem:
            x = F.relu(x)
        x = self.second(self.first(x))
        scores: Tensor = self.head(self.pool(x).flatten(1))
        return scores


def test_an_activation_behind_the_add_must_not_change_the_shortcut() -> None:
    spec = trace_network(randomise(_Chain(stem=False, block=True)), (3, 8, 8), "chain")
    assert [b.name for b in spec.blocks] == ["second"]
    assert spec.refused_blocks[0].name == "first.branch.0"
    assert "what follows its shortcut is not the identity" in spec.refused_blocks[0].reason


@pytest.mark.parametrize(("stem", "block"), [(True, True), (True, False), (False, False)])
def test_blocks_whose_shortcut_is_the_identity(stem: bool, block: bool) -> None:
    spec = trace_network(randomise(_Chain(stem=stem, block=block)), (3, 8, 8), "chain")
    assert [b.name for b in spec.blocks] == ["first", "second"]


class _Inline(nn.Module):
    """A block that shares its module with the stem, and one that another layer looks into."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.inner = conv_bn(8, 8)
        self.outer = conv_bn(8, 8)
        self.side = conv_bn(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        inner = F.relu(self.inner(x))
        y = F.relu(self.outer(inner) + x)
        y = F.relu(y + F.relu(self.side(inner)))
        scores: Tensor = self.head(y.mean((2, 3)))
        return scores


def test_blocks_that_others_look_into_stay() -> None:
    spec = trace_network(randomise(_Inline()), (3, 8, 8), "inline")
    assert spec.blocks == ()
    assert any("outside of it reads 'inner.0'" in b.reason for b in spec.refused_blocks)
