"""Our counters on the networks that AACP published (arXiv 2102.00390; prune_imagenet/pruned_arch.json of its code).

The expected numbers were counted apart from this code: multiply-accumulates of the convolutions alone, in millions, and
parameters with both of batch norm's, in millions.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from torch import nn

from device_agent.contracts import Op
from search.domain.network import NetworkSpec
from search.domain.space import Decisions
from search.lowering import lower
from search.models.zoo import build_model
from search.pruning.fuse import fuse_network
from search.pruning.groups import discover_groups

_IMAGENET = (3, 224, 224)

RESNET50 = (32, 24, 24, 64, 48, 64, 64, 224, 128, 128, 128, 128, 192, 512, 512, 512)
MOBILENET_V2_STEM = 24
MOBILENET_V2_EXPANSIONS = (84, 90, 126, 96, 48, 192, 144, 96, 48, 384, 504, 144, 576, 720, 720, 720)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    conv_mmacs: float
    mega_parameters: float
    conv_channels: int


def spec_of(architecture: str) -> NetworkSpec:
    """The network as claimed: counting needs no proof."""
    plan = fuse_network(build_model(architecture), _IMAGENET, architecture).plan
    groups, refused = discover_groups(plan)
    return NetworkSpec(architecture=architecture, plan=plan, groups=groups, refused=refused, prunable_ops=())


def counts_of(spec: NetworkSpec, decisions: Decisions) -> Counts:
    plan = lower(spec, decisions)
    convolutions = [k for k in plan.kernels if k.op in (Op.CONV2D, Op.DEPTHWISE_CONV2D)]
    channels = sum(k.out_channels for k in convolutions)
    # A fused convolution has one bias where the network has batch norm's two parameters.
    return Counts(
        conv_mmacs=sum(k.macs for k in convolutions) / 1e6,
        mega_parameters=(plan.parameters + channels) / 1e6,
        conv_channels=channels,
    )


def resnet50_decisions() -> Decisions:
    blocks = [f"layer{stage}.{block}" for stage, count in enumerate((3, 4, 6, 3), start=1) for block in range(count)]
    channels = {
        f"{block}.{conv}": width for block, width in zip(blocks, RESNET50, strict=True) for conv in ("conv1", "conv2")
    }
    return Decisions(channels=channels)


def mobilenet_v2_decisions(spec: NetworkSpec) -> Decisions:
    model = build_model("mobilenet_v2")
    stem = "features.0.0"
    # The first block has no expansion: its depthwise convolution has the stem's channels.
    expansions = [
        group.name
        for group in spec.groups
        if isinstance(layer := model.get_submodule(group.name), nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.out_channels == 6 * layer.in_channels
    ]
    return Decisions(channels={stem: MOBILENET_V2_STEM} | dict(zip(expansions, MOBILENET_V2_EXPANSIONS, strict=True)))


@pytest.mark.parametrize(
    ("architecture", "dense", "pruned"),
    [
        (
            "resnet50",
            Counts(conv_mmacs=4087.1, mega_parameters=25.557, conv_channels=26560),
            Counts(conv_mmacs=2362.7, mega_parameters=21.296, conv_channels=24576),
        ),
        (
            "mobilenet_v2",
            Counts(conv_mmacs=299.5, mega_parameters=3.505, conv_channels=17056),
            Counts(conv_mmacs=208.8, mega_parameters=2.977, conv_channels=12216),
        ),
    ],
)
def test_published_vectors(architecture: str, dense: Counts, pruned: Counts) -> None:
    spec = spec_of(architecture)
    decisions = resnet50_decisions() if architecture == "resnet50" else mobilenet_v2_decisions(spec)
    for expected, counted in ((dense, counts_of(spec, Decisions())), (pruned, counts_of(spec, decisions))):
        assert counted.conv_mmacs == pytest.approx(expected.conv_mmacs, abs=0.06)
        assert counted.mega_parameters == pytest.approx(expected.mega_parameters, abs=0.0006)
        assert counted.conv_channels == expected.conv_channels
