"""Families of networks all the way: trained for some steps, converted, pruned, exported, and run as on a device."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load
from torch import Tensor, nn

from device_agent.contracts import KernelSpec, NetworkFormat, NetworkPlan, decode
from device_agent.runtimes import RuntimeUnavailable, make_runtime
from device_agent.runtimes.base import Runtime
from search.accuracy.slicing import SlicedNetwork
from search.domain.config import ChannelsConfig, SpaceConfig
from search.domain.network import NetworkSpec
from search.domain.space import Decisions
from search.export import FORMAT_FILES, ONNX_FILE, PLAN_FILE, WEIGHTS_FILE, export_files
from search.genome_costs import GenomeCosts
from search.latency.families import coordinates_of, family_of, kernel_at
from search.latency.knots import knots_for
from search.lowering import lower
from search.networks.build import build_joined
from search.networks.convert import convert_module
from search.onnx_export import INPUT
from search.pruning.apply import apply_decisions
from search.pruning.channels import remove_channels
from search.pruning.embedding import embed
from search.pruning.fold import to_plan_tensors
from search.pruning.trace import trace_network
from search.space_builder import build_space
from tests.unit.search.networks.own_networks import (
    INPUT_SHAPE,
    OWN_NETWORKS,
    Classifier,
    CrossStage,
    conv_bn,
    frozen_stem,
)
from tests.unit.search.pruning.plan_reference import run_plan

_RUNTIMES = {
    "native": NetworkFormat.PACKED,
    "tflite": NetworkFormat.TFLITE,
    "ncnn": NetworkFormat.PACKED,
}


class Shuffles(nn.Module):
    """A unit of ShuffleNetV2 with stride 2, which processes both branches, and one that splits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.short = nn.Sequential(conv_bn(8, 8, 3, 2, groups=8), conv_bn(8, 8, 1), nn.ReLU())
        self.down = nn.Sequential(conv_bn(8, 8, 1), nn.ReLU(), conv_bn(8, 8, 3, 2, groups=8), conv_bn(8, 8, 1))
        self.branch = nn.Sequential(conv_bn(8, 8, 1), nn.ReLU(), conv_bn(8, 8, groups=8), conv_bn(8, 8, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.channel_shuffle(torch.cat([self.short(x), F.relu(self.down(x))], 1), 2)
        kept, processed = x.chunk(2, dim=1)
        x = torch.cat((kept, self.branch(processed)), 1)
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width)
        return torch.transpose(x, 1, 2).contiguous().view(batch, -1, height, width)


class Groups(nn.Module):
    """A block of ResNeXt, and a depthwise convolution that makes two channels of each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.body = nn.Sequential(conv_bn(8, 12, 1), nn.ReLU(), conv_bn(12, 12, groups=3), nn.ReLU(), conv_bn(12, 8, 1))
        self.several = conv_bn(8, 16, 3, 2, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return F.relu(self.several(F.relu(x + self.body(x))))


class Raw(nn.Module):
    """Weights that no module of torch holds, and an activation behind a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 3, 3, 3) / 5)
        self.side = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(torch.cat([F.conv2d(x, self.kernel, padding=1), self.side(x)], 1))


class Heads(nn.Module):
    """Global pooling and three heads; the first is what the network is trained for."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv_bn(3, 8, stride=2), conv_bn(8, 8)
        self.label, self.box, self.last = nn.Linear(8, 4), nn.Linear(8, 2), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled = F.adaptive_avg_pool2d(F.relu(self.body(F.relu(self.stem(x)))), 1)
        return self.label(pooled.flatten(1)), torch.sigmoid(self.box(pooled.flatten(1))), self.last(pooled)


class Joins(nn.Module):
    """Dense connections, and a block as of Inception behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = conv_bn(3, 8), conv_bn(8, 4), conv_bn(12, 4)
        self.one, self.three, self.pooled = conv_bn(16, 5, 1), conv_bn(16, 8), conv_bn(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([x, F.relu(self.first(x))], 1)
        x = torch.cat((x, F.hardswish(self.second(x))), dim=1)
        return F.relu(torch.cat([self.one(x), self.three(x), self.pooled(F.max_pool2d(x, 3, 1, 1))], 1))


def plain_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(192, 4),
    )


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "plain_cnn": plain_cnn,
    **{name: OWN_NETWORKS[name] for name in ("resnet_a", "resnet_b", "mobilenet_v2", "squeeze_excite")},
    "concatenation": lambda: Classifier(Joins(), 16),
    **{name: OWN_NETWORKS[name] for name in ("grouped", "depthwise_multiplier")},
    "channel_shuffle": lambda: Classifier(Shuffles(), 16),
    "channel_split": lambda: Classifier(nn.Sequential(conv_bn(3, 8), nn.ReLU(), CrossStage()), 17),
    "groups": lambda: Classifier(Groups(), 16),
    "raw_convolution": lambda: Classifier(Raw(), 10),
    "frozen_stem": frozen_stem,
    "several_heads": Heads,
}


def trained(make: Callable[[], nn.Module]) -> nn.Module:
    """After some steps on random images: no weight is as it was made, but for those that are frozen."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = make().train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
        for _ in range(4):
            outputs = model(torch.randn(16, *INPUT_SHAPE))
            first = outputs[0] if isinstance(outputs, tuple) else outputs
            loss = F.cross_entropy(first, torch.randint(0, 4, (16,)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def halves(spec: NetworkSpec) -> Decisions:
    return Decisions(channels={group.name: max(1, (group.channels + 1) // 2) for group in spec.groups})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_trained_pruned_exported_and_verified(name: str) -> None:
    original = trained(FAMILIES[name])
    network = convert_module(original, torch.zeros(1, *INPUT_SHAPE), name).network
    model = build_joined(network).model
    spec = trace_network(model, INPUT_SHAPE, name)
    x = torch.randn(1, *INPUT_SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = original(x) if name == "several_heads" else (original(x),)
        torch.testing.assert_close(model(x), torch.cat([o.flatten(1) for o in outputs], 1), rtol=1e-4, atol=1e-5)

    decisions = halves(spec)
    pruned = apply_decisions(model, spec, decisions)
    plan, tensors = to_plan_tensors(pruned, spec, decisions)
    with torch.no_grad():
        expected = pruned.model(x)[0]
        torch.testing.assert_close(embed(pruned, model, spec)(x)[0], expected, rtol=1e-4, atol=1e-5)
    assert plan.macs < 0.8 * spec.plan.macs
    verify_files(plan, tensors, x[0].numpy(), expected.numpy())

    check_space(spec)
    check_shared_weights(model, spec)
    assert any(not p.requires_grad for p in pruned.model.parameters()) == (name == "frozen_stem")


def verify_files(plan: NetworkPlan, tensors: dict[str, np.ndarray], x: np.ndarray, expected: np.ndarray) -> None:
    """Every runtime that is here, and the plain tensors by the plan beside them, compute from the exported files what
    torch does.
    """
    files = export_files(plan, tensors)
    read = decode(NetworkPlan, json.loads(files[PLAN_FILE]))
    by_plan = run_plan(read, load(files[WEIGHTS_FILE]), torch.from_numpy(x)[None])
    np.testing.assert_allclose(by_plan.numpy().reshape(-1), expected.reshape(-1), rtol=1e-4, atol=1e-5)
    session = onnxruntime.InferenceSession(files[ONNX_FILE], providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {INPUT: x[None]})
    np.testing.assert_allclose(output.reshape(-1), expected.reshape(-1), rtol=1e-4, atol=1e-5)
    for name, form in _RUNTIMES.items():
        runtime = make_runtime(name) if name == "native" else runtime_or_none(name)
        if runtime is not None:
            loaded = runtime.load_network(files[FORMAT_FILES[form]], form, plan.input_shape, 1)
            np.testing.assert_allclose(loaded.run(x).reshape(-1), expected.reshape(-1), rtol=1e-4, atol=1e-5)


def runtime_or_none(name: str) -> Runtime | None:
    try:
        return make_runtime(name)
    except RuntimeUnavailable:
        return None


def check_space(spec: NetworkSpec) -> None:
    """Costs of genomes are those of their plans, and every kernel lies between those that are measured."""
    space = build_space(spec, SpaceConfig(channels=ChannelsConfig()))
    drawn = np.random.default_rng(0).integers(0, space.num_choices, size=(12, len(space.variables)))
    genomes = np.concatenate((drawn, [space.smallest, space.unpruned]))
    plans = [lower(spec, space.decode(tuple(int(g) for g in genome))) for genome in genomes]
    sums = GenomeCosts(spec, space, {"macs": lambda kernel: float(kernel.macs)}).sums(genomes)
    np.testing.assert_array_equal(sums[:, 0], [plan.macs for plan in plans])
    reach: dict[object, list[tuple[float, ...]]] = {}
    for kernel in knots_for(spec, space, 400):
        reach.setdefault(family_of(kernel), []).append(coordinates_of(kernel))
    for kernel in {kernel for plan in plans for kernel in plan.kernels}:
        places = np.array(reach[family_of(kernel)])
        assert (places.min(axis=0) <= coordinates_of(kernel)).all()
        assert (coordinates_of(kernel) <= places.max(axis=0)).all()
        assert same_kernel(kernel_at(kernel, coordinates_of(kernel)), kernel)


def same_kernel(one: KernelSpec, other: KernelSpec) -> bool:
    return dataclasses.replace(one, seed=0) == dataclasses.replace(other, seed=0)


def check_shared_weights(model: nn.Module, spec: NetworkSpec) -> None:
    """A form of the network on shared weights is the pruned network, and grows again."""
    sliced = SlicedNetwork(model, spec)
    x = torch.randn(4, *INPUT_SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for decisions in (halves(spec), Decisions()):
            alone = remove_channels(model, spec, sliced.kept(decisions)).train()
            sliced.select(decisions, with_masks=False)
            torch.testing.assert_close(sliced.form(x), alone(x), rtol=1e-4, atol=1e-5)
