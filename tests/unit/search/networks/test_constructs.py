"""Constructs that libraries for pruning get wrong without a word: each is pruned right here, or refused with a reason.

What a pruned network must compute is told by one whose removed channels are zero where they are made, while
`search.pruning.proof` masks them where they are read. Zeros stay zeros behind ReLU, sums and pools.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search.domain.network import Axis, NetworkSpec
from search.domain.space import Decisions
from search.networks.build import build_network
from search.networks.convert import convert_module
from search.networks.inspection import inspect_network
from search.pruning.channels import remove_channels
from search.pruning.fuse import fused_modules
from search.pruning.groups import IndexArray
from search.pruning.trace import trace_network
from tests.unit.search.networks.own_networks import INPUT_SHAPE, Classifier, conv_bn
from tests.unit.search.pruning.pruning_networks import randomise
from tests.unit.search.pruning.test_trace import check_pruned


class Of(nn.Module):
    """A function of some layers, behind a stem of 8 channels with ReLU."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleDict(layers)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(F.relu(self.stem(x)), **self.layers)


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Raw(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 8, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, self.kernel, padding=1))


def join_and_gate(x: Tensor, one: nn.Module, other: nn.Module, gate: nn.Module) -> Tensor:
    x = F.relu(torch.cat([one(x), other(x)], 1))
    return x * gate(x.mean((2, 3), keepdim=True))


def cross_stage(x: Tensor, inner: nn.Module) -> Tensor:
    kept, processed = x.chunk(2, 1)
    return torch.cat([kept, processed, F.relu(inner(processed))], 1)


def shuffle_units(x: Tensor, **units: nn.Module) -> Tensor:
    """Two units of ShuffleNetV2: the second cuts what the first has shuffled."""
    for unit in units.values():
        kept, processed = x[:, :4], x[:, 4:]
        x = torch.cat((kept, F.relu(unit(processed))), 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
    return x


def option_a(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    return F.relu(second(F.relu(first(x))) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))


def frozen() -> nn.Module:
    body = Of(lambda x, after: F.relu(after(x)), after=conv_bn(8, 6))
    body.stem.requires_grad_(False)
    return Classifier(body, 6)


def head_on(forward: Callable[..., Tensor], channels: int, **layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: Classifier(Of(forward, **layers), channels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A construct, and what must come of it: channels by group and what stays dense, or why it cannot be lowered."""

    make: Callable[[], nn.Module]
    groups: dict[str, int] | None = None
    dense: tuple[str, ...] = ()
    refused: str = ""


STEM = "features.stem"
ROWS = {
    "concatenation and gate": Row(
        make=head_on(
            join_and_gate, 10, one=conv_bn(8, 4), other=conv_bn(8, 6),
            gate=nn.Sequential(nn.Conv2d(10, 4, 1), nn.ReLU(), nn.Conv2d(4, 10, 1), nn.Sigmoid()),
        ),
        groups={STEM: 8, "features.layers.one.0": 4, "features.layers.other.0": 6, "features.layers.gate.0": 4},
    ),
    "activation behind a concatenation": Row(
        make=head_on(lambda x, one: F.relu(torch.cat([x, one(x)], 1)), 12, one=conv_bn(8, 4)),
        groups={STEM: 8, "features.layers.one.0": 4},
    ),
    "flattening with a written size": Row(
        make=lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), Of0(lambda x: x.view(-1, 6 * 8 * 8)), nn.Linear(384, 4)
        ),
        groups={"0": 6},
    ),
    "transposed convolution": Row(
        make=head_on(lambda x, up: F.relu(up(x)), 6, up=nn.ConvTranspose2d(8, 6, 2, 2)), refused="ConvTranspose2d"
    ),
    "module used twice": Row(
        make=head_on(lambda x, one: F.relu(one(F.relu(one(x)))), 8, one=nn.Conv2d(8, 8, 3, padding=1)),
        refused="is used twice",
    ),
    "grouped convolution": Row(
        make=head_on(lambda x, one, other: F.relu(other(F.relu(one(x)))), 6, one=conv_bn(8, 12, groups=4),
                     other=conv_bn(12, 6, 1, groups=2)),
        groups={STEM: 2, "features.layers.one.0": 3, "features.layers.other.0": 3},
    ),
    "depthwise multiplier": Row(
        make=head_on(lambda x, one: F.relu(one(x)), 24, one=conv_bn(8, 24, groups=8)), groups={STEM: 8}
    ),
    "parameter for each channel": Row(make=head_on(lambda x, gain: gain(x), 8, gain=Gain()), refused="gain"),
    "group norm": Row(make=head_on(lambda x, norm: norm(x), 8, norm=nn.GroupNorm(2, 8)), refused="GroupNorm"),
    "channel split": Row(
        make=head_on(cross_stage, 13, inner=conv_bn(4, 5)),
        groups={f"{STEM}:0": 4, f"{STEM}:4": 4, "features.layers.inner.0": 5},
    ),
    "slice with written numbers": Row(
        make=head_on(lambda x, inner: torch.cat([F.relu(inner(x[:, 2:5])), x[:, 4:]], 1), 9, inner=conv_bn(3, 5)),
        groups={f"{STEM}:2": 2, f"{STEM}:5": 3, "features.layers.inner.0": 5},
        # The first two are read by nobody, and one channel alone cannot lose any.
        dense=(f"{STEM}:0", f"{STEM}:4"),
    ),
    "channel shuffle": Row(
        make=head_on(shuffle_units, 8, one=conv_bn(4, 4), other=conv_bn(4, 4)),
        groups={f"{STEM}:0": 2, f"{STEM}:2": 2, f"{STEM}:4": 4},
    ),
    "shuffle without a split": Row(
        make=head_on(lambda x, one: F.relu(one(F.channel_shuffle(x, 2))), 6, one=conv_bn(8, 6, groups=2)),
        groups={STEM: 2, "features.layers.one.0": 3},
    ),
    "zeros around a shortcut's channels": Row(
        make=head_on(option_a, 12, first=conv_bn(8, 12, stride=2), second=conv_bn(12, 12)),
        groups={"features.layers.first.0": 12},
        dense=(STEM, "features.layers.second.0"),
    ),
    "raw convolution": Row(make=head_on(lambda x, raw: raw(x), 6, raw=Raw()),
                           groups={STEM: 8, "features.layers.raw.kernel": 6}),
    "pixel shuffle": Row(make=head_on(lambda x: F.pixel_shuffle(x, 2), 2), refused="pixel_shuffle"),
    "detached shortcut": Row(
        make=head_on(lambda x, one: F.relu(one(x) + x.detach()), 8, one=conv_bn(8, 8)), groups={STEM: 8}
    ),
    "frozen stem": Row(make=frozen, groups={STEM: 8, "features.layers.after.0": 6}),
    "reshaped to other channels": Row(
        make=head_on(lambda x, one: F.relu(one(x.reshape(len(x), 4, 16, 8))), 6, one=conv_bn(4, 6)),
        refused="reshapes to",
    ),
    "permuted axes": Row(
        make=head_on(lambda x, one: F.relu(one(x.permute(0, 1, 3, 2))), 6, one=conv_bn(8, 6)), refused="order"
    ),
}  # fmt: skip


class Of0(nn.Module):
    """A function, as a module."""

    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(x)


@pytest.mark.parametrize("name", ROWS)
def test_every_construct_is_pruned_right_or_refused(name: str) -> None:
    row = ROWS[name]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        network = convert_module(row.make(), torch.zeros(1, *INPUT_SHAPE), "tried").network
    if row.groups is None:
        found = inspect_network(network)
        assert any(row.refused in item.reason for item in found.not_lowered), found.not_lowered
        assert found.groups == ()
        return
    model = randomise(build_network(network).model)
    spec = trace_network(model, INPUT_SHAPE, "tried")

    assert {group.name: group.channels for group in spec.groups} == row.groups
    assert tuple(refused.name for refused in spec.refused) == row.dense
    rng = np.random.default_rng(0)
    kept = {
        group.name: np.sort(rng.permutation(group.channels)[: max(1, group.channels // 2)]) for group in spec.groups
    }
    for chosen in (*({name: indices} for name, indices in kept.items()), kept):
        x = torch.randn(2, *INPUT_SHAPE, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = masked_where_made(model, spec, chosen)(x)
            torch.testing.assert_close(remove_channels(model, spec, chosen)(x), expected, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(expected, model(x), rtol=1e-4, atol=1e-5)
    check_pruned(model, spec, Decisions(channels={name: len(indices) for name, indices in kept.items()}))


def masked_where_made(model: nn.Module, spec: NetworkSpec, kept: dict[str, IndexArray]) -> nn.Module:
    """`model` with zeros in place of the channels that are not kept, in front of the activation."""
    masked = copy.deepcopy(model)
    modules = fused_modules(model, spec.plan.input_shape)
    for name, indices in kept.items():
        group = spec.group(name)
        removed = np.setdiff1d(np.arange(group.channels), indices)
        for member in group.members:
            if member.axis is Axis.OUT and member.op in modules:
                entry = modules[member.op]
                for path in (entry.weights, *((entry.norm,) if entry.norm else ())):
                    layer = masked.get_submodule(path)
                    for part in ("weight", "bias", "running_mean"):
                        values = getattr(layer, part, None)
                        if values is not None:
                            values.data[np.arange(values.shape[0])[member.channels(group.channels)][removed]] = 0.0
    return masked
