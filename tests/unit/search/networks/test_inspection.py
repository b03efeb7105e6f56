"""What is told of a network: sizes, proved groups, and what cannot be lowered, each with its reason."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from search.models.zoo import build_model
from search.networks.convert import convert_module
from search.networks.inspection import NetworkInspection, inspect_network
from search.pruning.trace import trace_network
from tests.unit.search.networks.own_networks import INPUT_SHAPE, own_network


def inspected(model: nn.Module, shape: tuple[int, ...] = INPUT_SHAPE) -> NetworkInspection:
    return inspect_network(convert_module(model, torch.zeros(1, *shape), "own").network)


@pytest.mark.parametrize("architecture", ["small_cnn", "small_resnet"])
def test_a_converted_network_is_traced_as_the_original(architecture: str) -> None:
    model = build_model(architecture)
    spec = trace_network(model, (1, 8, 8), architecture)
    found = inspected(model, (1, 8, 8))

    assert found.groups == spec.groups
    assert [g.name for g in found.dense] == [g.name for g in spec.refused]
    assert found.macs == spec.plan.macs
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.not_lowered == ()
    assert found.blocks == ()
    assert len(found.kept_blocks) == len(spec.blocks) + len(spec.refused_blocks)


def test_groups_of_an_own_residual_network() -> None:
    found = inspected(own_network("resnet_b"))
    members = {g.name: sorted(f"{m.op}.{m.axis.value}" for m in g.members) for g in found.groups}

    assert members["features.2.0.second.0"] == [
        "features.2.0.second.0.out",
        "features.2.0.shortcut.0.out",
        "features.2.1.first.0.in",
        "features.2.1.second.0.out",
        "head.in",
    ]
    assert len(found.groups) == 4
    assert found.dense == ()


def test_groups_of_squeeze_and_excite_written_with_linear_layers() -> None:
    found = inspected(own_network("squeeze_excite"))

    assert found.not_lowered == ()
    assert found.dense == ()
    assert "expand" not in found.ops
    assert {g.name: sorted(f"{m.op}.{m.axis.value}" for m in g.members) for g in found.groups} == {
        "features.0": ["features.0.out", "features.2.conv.0.in"],
        "features.2.conv.0": [
            "features.2.conv.0.out", "features.2.expand.out", "features.2.reduce.in", "head.in",
        ],
        "features.2.reduce": ["features.2.expand.in", "features.2.reduce.out"],
    }  # fmt: skip


def test_frozen_layers_are_counted_and_prunable() -> None:
    found = inspected(own_network("frozen_stem"))

    assert found.frozen_parameters == 8 * 27 + 16
    assert [g.name for g in found.groups] == ["features.0.0", "features.2"]


@pytest.mark.parametrize(
    ("name", "ops", "said"),
    [
        ("channel_shuffle", ["slice", "slice", "reshape", "permute", "reshape"], "cannot be lowered"),
        ("grouped", ["conv2d"], "4 groups of 8 channels"),
        ("depthwise_multiplier", ["conv2d"], "8 groups of 8 channels"),
        ("reuse", ["detach"], "no kernel"),
        ("several_heads", ["conv_transpose2d", ""], "no kernel"),
    ],
)
def test_what_cannot_be_lowered_is_listed(name: str, ops: list[str], said: str) -> None:
    found = inspected(own_network(name))

    assert [item.op for item in found.not_lowered] == ops
    assert said in found.not_lowered[0].reason
    assert found.groups == ()


def test_reasons_that_are_no_single_node() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 3, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.stem(x)
            return self.one(x), self.two(x)

    (heads,) = inspected(Heads()).not_lowered
    shared = nn.Conv2d(3, 3, 3)
    (reuse,) = inspected(nn.Sequential(shared, shared)).not_lowered

    assert "2 outputs (one, two)" in heads.reason
    assert dataclasses.asdict(reuse)["node"] == ""
    assert "'0' is used twice" in reuse.reason
    assert inspected(Heads()).outputs == {"one": (2, 6, 6), "two": (3, 6, 6)}
