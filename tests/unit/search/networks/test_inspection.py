"""What is told of a network: sizes, proved groups, and what cannot be lowered, each with its reason."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from device_agent.contracts import PruningScheme
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
        ("reuse", [""], "is used twice"),
        ("several_heads", ["conv_transpose2d"], "no kernel"),
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

    assert "'one' has the shape 2x6x6: of several outputs, each must be a vector" in heads.reason
    assert dataclasses.asdict(reuse)["node"] == ""
    assert "'0' is used twice" in reuse.reason
    assert inspected(Heads()).outputs == {"one": (2, 6, 6), "two": (3, 6, 6)}


def test_layers_say_which_runtime_skips_zeros_where() -> None:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
    body = nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU())
    tail = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    found = inspected(nn.Sequential(stem, body, tail))
    layers = {layer.name: layer for layer in found.layers}
    runtimes = {item.runtime: item for item in found.runtimes}

    assert [layer.kernel.op.value for layer in found.layers] == [
        "conv2d", "conv2d", "depthwise_conv2d", "global_avg_pool", "fully_connected",
    ]  # fmt: skip
    assert sum(layer.macs for layer in found.layers) == found.macs
    assert sum(layer.parameters for layer in found.layers) == found.parameters
    assert {name: set(layer.zeros) for name, layer in layers.items()} == {
        "0.0": {"native"}, "1.0": {"native", "tflite-sparse"}, "1.2": set(), found.layers[3].name: set(),
        "2.2": {"native"},
    }  # fmt: skip
    assert PruningScheme.PATTERN in layers["0.0"].zeros["native"]
    assert PruningScheme.PATTERN not in layers["1.0"].zeros["native"]
    assert PruningScheme.BLOCK in layers["2.2"].zeros["native"]
    assert (layers["0.0"].out_group, layers["1.2"].out_group, layers["2.2"].out_group) == ("0.0", "1.0", None)
    assert {name: item.layers_with_zeros for name, item in runtimes.items()} == {
        "native": 3, "tflite-sparse": 1, "tflite": 0, "ncnn": 0
    }  # fmt: skip
    assert "two thirds" in runtimes["tflite-sparse"].note
    assert "multiplies by zeros" in runtimes["tflite"].note


def test_why_no_layer_takes_the_sparse_path_is_told() -> None:
    found = inspected(own_network("mobilenet_v2"))
    (item,) = (item for item in found.runtimes if item.runtime == "tflite-sparse")

    assert item.layers_with_zeros == 0
    assert "stride 2" in item.note
    assert not any("tflite-sparse" in layer.zeros for layer in found.layers)
    assert inspected(own_network("norms")).layers == ()
