"""Constructs that libraries for pruning get wrong without a word: each is pruned right here, or refused with a reason.

The table in docs/own-networks.md has these rows and no others.

What a pruned network must compute is told by one whose removed channels are zero where they are made, while
`search.pruning.proof` masks them where they are read. Zeros stay zeros behind ReLU, sums and pools.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from device_agent.contracts import ContractError
from search.domain.network import Axis, NetworkSpec
from search.domain.space import Decisions
from search.networks.build import build_joined
from search.networks.convert import convert_module
from search.networks.inspection import inspect_network
from search.pruning.apply import apply_decisions
from search.pruning.channels import remove_channels
from search.pruning.fold import to_plan_tensors
from search.pruning.fuse import fused_modules
from search.pruning.groups import IndexArray
from search.pruning.trace import trace_network
from tests.unit.search.networks.own_networks import INPUT_SHAPE, Classifier, conv_bn
from tests.unit.search.networks.test_network_families import halves, verify_files
from tests.unit.search.pruning.pruning_networks import randomise
from tests.unit.search.pruning.test_trace import check_pruned

DOCUMENTATION = Path(__file__).parents[4] / "docs" / "own-networks.md"


class Of(nn.Module):
    """A function of some layers, behind a stem of 8 channels with ReLU."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleDict(layers)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(F.relu(self.stem(x)), **self.layers)


class Of0(nn.Module):
    """A function, as a module."""

    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(x)


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
    """A construct, and what must come of it: channels by group and what stays dense, or why it cannot be lowered, or
    not even converted.
    """

    make: Callable[[], nn.Module]
    groups: dict[str, int] | None = None
    dense: tuple[str, ...] = ()
    refused: str = ""
    not_converted: str = ""

    @property
    def outcome(self) -> str:
        """In the words of the documentation."""
        if self.not_converted:
            return "not converted"
        if self.refused:
            return "refused by a search"
        return "pruned in part" if self.dense else "pruned"


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


class Blocks(nn.Module):
    """Control flow that only depends on shapes and settings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.blocks = nn.ModuleList([conv_bn(8, 8) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for number, block in enumerate(self.blocks):
            y = block(x)
            x = F.relu(x + y) if number % 2 == 0 and x.shape == y.shape else F.relu(y)
        return x


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.label, self.box = nn.Linear(6, 4), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x)
        return {"label": self.label(x), "box": self.box(x)}


class SharedConvolution(nn.Module):
    """A convolution for several maps with norms of their own, as in the heads of detectors."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = F.relu(norm(self.shared(x)))
        return x


class TiedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.other(F.relu(self.one(x))))


def one_activation() -> nn.Module:
    relu = nn.ReLU(inplace=True)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), relu, nn.Conv2d(6, 5, 3), relu, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)
    )


def halved_in_place(x: Tensor, one: nn.Module) -> Tensor:
    x = one(x)
    x[:, :4].mul_(0.5)
    return F.relu(x)


def written_slice(x: Tensor, one: nn.Module) -> Tensor:
    x = one(x).clone()
    x[:, :2] = 0
    return F.relu(x)


def overwritten(x: Tensor) -> Tensor:
    y = F.relu(x)
    y += 1
    return y


def behind(*layers: nn.Module, outputs: int) -> Callable[[], nn.Module]:
    """Behind a stem of 6 channels: `layers`, and a linear layer over as many values."""
    return lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), *copy.deepcopy(layers), nn.Linear(outputs, 4)
    )


def then(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """A function between the stem and a layer."""
    return head_on(lambda x, one: F.relu(one(function(x))), 6, one=conv_bn(8, 6))


#: What users write besides. Those that are converted are slow only because they are many.
FURTHER = {
    "flattening": Row(make=behind(nn.Flatten(), outputs=384), groups={"0": 6}),
    "adaptive pooling to sides that divide the image's": Row(
        make=behind(nn.AdaptiveAvgPool2d(2), nn.Flatten(), outputs=24), groups={"0": 6}
    ),
    "adaptive pooling to other sides": Row(
        make=behind(nn.AdaptiveAvgPool2d(3), nn.Flatten(), outputs=54), refused="sides that divide"
    ),
    "gate by `[:, :, None, None]`": Row(
        make=head_on(
            lambda x, gate, last: x * torch.sigmoid(last(gate(x.mean((2, 3)))[:, :, None, None])), 8,
            gate=nn.Sequential(nn.Linear(8, 3), nn.ReLU()), last=nn.Conv2d(3, 8, 1),
        ),
        groups={STEM: 8, "features.layers.gate.0": 3},
    ),
    "means one after the other": Row(
        make=behind(Of0(lambda x: x.mean(3).mean(2)), outputs=6), groups={"0": 6}
    ),
    "batch norm without weights": Row(
        make=head_on(
            lambda x, one, norm, other: F.relu(other(F.relu(norm(one(x))))), 5,
            one=nn.Conv2d(8, 6, 3, bias=False), norm=nn.BatchNorm2d(6, affine=False), other=conv_bn(6, 5),
        ),
        groups={STEM: 8, "features.layers.one": 6, "features.layers.other.0": 5},
    ),
    "operators in place": Row(
        make=head_on(lambda x, one, other: F.relu_(other(x).add_(one(x))), 6, one=conv_bn(8, 6), other=conv_bn(8, 6)),
        groups={STEM: 8, "features.layers.other.0": 6},
    ),
    "tensor added to itself": Row(make=then(lambda x: x + x), groups={STEM: 8, "features.layers.one.0": 6}),
    "tensor joined with itself": Row(
        make=head_on(lambda x, one: F.relu(one(torch.cat([x, x], 1))), 6, one=conv_bn(16, 6)),
        groups={STEM: 8, "features.layers.one.0": 6},
    ),
    "activation module used twice": Row(make=one_activation, groups={"0": 6, "2": 5}),
    "dropout": Row(
        make=behind(nn.Dropout2d(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), outputs=6),
        groups={"0": 6},
    ),
    "control flow by shapes and settings": Row(
        make=lambda: Classifier(Blocks(), 8), groups={"features.stem.0": 8, "features.blocks.1.0": 8}
    ),
    "outputs in a dictionary": Row(make=Heads, groups={"body.0.0": 6}),
    "last channels by a negative index": Row(
        make=head_on(lambda x, one: F.relu(one(x[:, -3:])), 6, one=conv_bn(3, 6)),
        groups={f"{STEM}:5": 3, "features.layers.one.0": 6},
        dense=(f"{STEM}:0",),
    ),
    "every second channel": Row(
        make=head_on(lambda x, one: F.relu(one(x[:, ::2])), 6, one=conv_bn(4, 6)), refused="the index"
    ),
    "gate for each pixel": Row(
        make=head_on(lambda x, one: x * torch.sigmoid(one(x)), 8, one=nn.Conv2d(8, 1, 3, padding=1)),
        refused="only a factor for each channel",
    ),
    "one channel added to many": Row(
        make=head_on(lambda x, one: F.relu(x + one(x)), 8, one=nn.Conv2d(8, 1, 1)), refused="different shapes"
    ),
    "product with a number": Row(make=then(lambda x: x * 0.5), refused="the number 0.5: put it into the weights"),
    "dilated convolution": Row(
        make=head_on(lambda x, one: F.relu(one(x)), 6, one=nn.Conv2d(8, 6, 3, dilation=2)), refused="dilation of 2"
    ),
    "padding on one side": Row(
        make=then(lambda x: F.pad(x, (0, 1, 0, 1))), refused="zeros that are equal on all sides"
    ),
    "convolution with a padding of its own for each axis": Row(
        make=head_on(lambda x, one: F.relu(one(x)), 6, one=nn.Conv2d(8, 6, (3, 1), padding=(1, 0))),
        refused="differs between height and width",
    ),
    "pooling with ceil_mode": Row(
        make=then(lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True)), refused="set it to False"
    ),
    "average pooling with padding": Row(
        make=then(lambda x: F.avg_pool2d(x, 3, 1, 1)), refused="a padding of 1 has no kernel"
    ),
    "layer norm": Row(
        make=head_on(lambda x, norm: norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 8, norm=nn.LayerNorm(8)),
        refused="LayerNorm",
    ),
    "linear layer along the width": Row(
        make=head_on(lambda x, one: F.relu(one(x)), 8, one=nn.Linear(8, 8)), refused="along the last axis"
    ),
    "difference of two maps": Row(
        make=head_on(lambda x, one, other: F.relu(one(x) - other(x)), 6, one=conv_bn(8, 6), other=conv_bn(8, 6)),
        refused="the number -1",
    ),
    "batch norm behind an activation or another one": Row(
        make=head_on(
            lambda x, one, again, other: other(F.relu(again(one(x)))), 6,
            one=conv_bn(8, 6), again=nn.BatchNorm2d(6), other=nn.BatchNorm2d(6),
        ),
        groups={STEM: 8, "features.layers.one.0": 6},
    ),
    "activation of a map that is also read without": Row(
        make=head_on(lambda x, one: torch.cat([y := one(x), F.relu(y)], 1), 12,
                     one=conv_bn(8, 6)),
        refused="that nothing else reads",
    ),
    "flattening with the channels last": Row(
        make=behind(Of0(lambda x: x.permute(0, 2, 3, 1).flatten(1)), outputs=384), refused="in the order"
    ),
    "convolution for several maps, with norms of their own": Row(
        make=lambda: Classifier(Of(lambda x, shared: shared(x), shared=SharedConvolution()), 8), refused="is used twice"
    ),
    "upsampling": Row(make=then(lambda x: F.interpolate(x, scale_factor=2.0)), refused="there is no kernel"),
    "softmax at the end": Row(
        make=lambda: nn.Sequential(Classifier(conv_bn(3, 6), 6), nn.Softmax(1)), refused="leave it out"
    ),
    "log_softmax at the end": Row(
        make=lambda: nn.Sequential(Classifier(conv_bn(3, 6), 6), nn.LogSoftmax(1)), not_converted="leave it out"
    ),
    "one weight in two layers": Row(
        make=lambda: Classifier(Of(lambda x, tied: tied(x), tied=TiedWeights()), 8), not_converted="share whole modules"
    ),
    "`.data` of a tensor": Row(make=then(lambda x: x + x.data), not_converted=r"must not use \.data"),
    "branch on values": Row(make=then(lambda x: x if x.sum() > 0 else -x), not_converted="depend on their values"),
    "dropout that goes on in evaluation": Row(
        make=then(lambda x: F.dropout(x, 0.5)), not_converted="pass training=self.training"
    ),
    "einsum": Row(
        make=then(lambda x: torch.einsum("bchw,bc->bchw", x, x.mean((2, 3)))),
        not_converted="write it with convolutions",
    ),
    "channels in reverse": Row(make=then(lambda x: x.flip(1)), not_converted="flip.* has no operator"),
    "squeeze without axes": Row(
        make=behind(nn.AdaptiveAvgPool2d(1), Of0(lambda x: x.squeeze()), outputs=6), not_converted="say which axes"
    ),
    "values written into a slice": Row(
        make=head_on(written_slice, 8, one=conv_bn(8, 8)), not_converted="put a new one together"
    ),
    "slice changed in place": Row(
        make=head_on(halved_in_place, 8, one=conv_bn(8, 8)), not_converted=r"mul_.*compute a new tensor instead"
    ),
    "tensor overwritten that its gradient needs": Row(
        make=then(overwritten), not_converted=r"cannot be trained.*compute a new tensor instead"
    ),
    "weight norm": Row(
        make=lambda: Classifier(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), 4),
        not_converted="remove_parametrizations",
    ),
    "batch norm of the batch's statistics": Row(
        make=lambda: Classifier(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), 4),
        not_converted="set track_running_stats=True",
    ),
}  # fmt: skip

ALL = {**ROWS, **FURTHER}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in FURTHER and not row.not_converted else [])
        for name, row in ALL.items()
    ],
)
def test_every_construct_is_pruned_right_or_refused(name: str) -> None:
    row = ALL[name]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        module = row.make()
    if row.not_converted:
        with pytest.raises(ContractError, match=row.not_converted):
            convert_module(module, torch.zeros(1, *INPUT_SHAPE), "tried")
        return
    network = convert_module(module, torch.zeros(1, *INPUT_SHAPE), "tried").network
    if row.refused:
        found = inspect_network(network)
        assert any(row.refused in item.reason for item in found.not_lowered), found.not_lowered
        assert found.groups == ()
        return
    model = randomise(build_joined(network).model)
    spec = trace_network(model, INPUT_SHAPE, "tried")

    assert row.groups
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


@pytest.mark.slow  # Runs each in every runtime that is here.
@pytest.mark.parametrize("name", [name for name, row in ALL.items() if row.groups])
def test_every_pruned_construct_runs_as_exported(name: str) -> None:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        network = convert_module(ALL[name].make(), torch.zeros(1, *INPUT_SHAPE), "tried").network
    model = randomise(build_joined(network).model)
    spec = trace_network(model, INPUT_SHAPE, "tried")
    decisions = halves(spec)
    pruned = apply_decisions(model, spec, decisions)
    x = torch.randn(1, *INPUT_SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = pruned.model(x)[0]
    verify_files(*to_plan_tensors(pruned, spec, decisions), x[0].numpy(), expected.numpy())


def test_the_documentation_has_the_same_table() -> None:
    text = DOCUMENTATION.read_text()
    section = text.partition("\n## Construct by construct\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    assert rows[0][:2] == ["construct", "what comes of it"]
    assert {name: outcome for name, outcome, _ in rows[2:]} == {name: row.outcome for name, row in ALL.items()}
    assert len(rows) == 2 + len(ALL)


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
