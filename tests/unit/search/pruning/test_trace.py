"""Tracing: the fused plan computes what the module does, and groups are those of the data flow, proved."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from device_agent.contracts import Activation, Op
from search.domain.network import Axis, GroupMember, NetworkSpec
from search.domain.space import Decisions
from search.models.zoo import build_model
from search.pruning.apply import apply_decisions
from search.pruning.fold import to_plan_tensors
from search.pruning.operators import UnsupportedNetwork
from search.pruning.proof import verify_group
from search.pruning.trace import trace_network
from tests.unit.search.pruning.plan_reference import run_plan
from tests.unit.search.pruning.pruning_networks import JoinedGate, LiteralView, Mixed, conv_bn, randomise, traced

pytestmark = pytest.mark.xdist_group("traced")


@pytest.mark.parametrize("architecture", ["resnet20", "resnet18", "mobilenet_v1", "mobilenet_v2", "vgg16", "small_cnn"])
def test_fused_plan_computes_what_the_module_does(architecture: str) -> None:
    model, spec = traced(architecture)
    x = torch.randn(2, *spec.plan.input_shape, generator=torch.Generator().manual_seed(0))

    plan, tensors = to_plan_tensors(apply_decisions(model, spec, Decisions()), spec, Decisions())

    assert plan == spec.plan
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double())
    torch.testing.assert_close(run_plan(plan, tensors, x).flatten(1), expected, rtol=1e-4, atol=1e-4)


def test_ways_of_writing_a_network() -> None:
    model = randomise(Mixed())
    spec = trace_network(model, (3, 8, 8), "mixed")
    by_name = {op.name: op for op in spec.plan.ops}

    assert list(by_name) == [
        "stem.0",
        "left.0",
        "right.0",
        "max_pool2d",
        "avg_pool2d",
        "add_1",
        "depthwise.0",
        "expand",
        "hidden",
        "head",
    ]
    assert by_name["right.0"].residual == "left.0"
    assert by_name["right.0"].kernel.activation is Activation.RELU
    assert by_name["left.0"].kernel.activation is Activation.NONE
    assert by_name["stem.0"].kernel.activation is Activation.RELU6
    assert by_name["hidden"].kernel.op is Op.CONV2D
    assert (by_name["hidden"].kernel.kernel_h, by_name["hidden"].kernel.kernel_w) == (2, 2)
    assert by_name["head"].kernel.op is Op.FULLY_CONNECTED
    assert set(spec.prunable_ops) == {"stem.0", "left.0", "right.0", "expand", "head"}

    decisions = Decisions(channels={"stem.0": 3, "left.0": 5, "expand": 7, "hidden": 4})
    plan, tensors = to_plan_tensors(apply_decisions(model, spec, decisions), spec, decisions)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pruned = apply_decisions(model, spec, decisions).model
    with torch.no_grad():
        expected = pruned(x)
    torch.testing.assert_close(run_plan(plan, tensors, x).flatten(1).float(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "groups", "refused", "prunable"),
    # JCW, arXiv 2110.08013, counts the same groups and layers in its ImageNet networks, but for the classifier.
    [
        ("resnet20", 9, 3, 20),
        ("resnet18", 12, 0, 21),
        ("mobilenet_v1", 14, 0, 15),
        ("mobilenet_v2", 25, 0, 36),
        ("vgg16", 13, 0, 14),
        ("small_cnn", 4, 0, 6),
    ],
)
def test_finds_all_groups(architecture: str, groups: int, refused: int, prunable: int) -> None:
    _, spec = traced(architecture)

    assert (len(spec.groups), len(spec.refused), len(spec.prunable_ops)) == (groups, refused, prunable)


def test_members_of_a_residual_stream() -> None:
    _, spec = traced("resnet18")

    stream = spec.group("layer2.0.conv2")

    assert stream.channels == 128
    assert set(stream.members) == {
        GroupMember(op="layer2.0.conv2", axis=Axis.OUT),
        GroupMember(op="layer2.0.downsample.0", axis=Axis.OUT),
        GroupMember(op="layer2.1.conv1", axis=Axis.IN),
        GroupMember(op="layer2.1.conv2", axis=Axis.OUT),
        GroupMember(op="layer3.0.conv1", axis=Axis.IN),
        GroupMember(op="layer3.0.downsample.0", axis=Axis.IN),
    }


def test_option_a_streams_are_refused_with_the_reason() -> None:
    _, spec = traced("resnet20")

    assert [r.name for r in spec.refused] == ["conv1", "layer2.0.conv2", "layer3.0.conv2"]
    assert all("zero channels" in r.reason for r in spec.refused)


def test_a_group_that_cannot_be_removed_is_refused() -> None:
    spec = trace_network(randomise(LiteralView()), (3, 4, 4), "literal")

    assert [g.name for g in spec.groups] == ["first"]
    assert [r.name for r in spec.refused] == ["second"]
    assert "does not run" in spec.refused[0].reason


def test_the_proof_finds_a_false_claim() -> None:
    """A residual stream with a member forgotten, and one that lists a consumer of other channels."""
    model, spec = traced("resnet18")
    true = spec.group("layer2.0.conv2")
    for members in (
        true.members[:-1],
        tuple(m for m in true.members if m.op != "layer2.1.conv2"),
        (*true.members, GroupMember(op="layer2.0.conv2", axis=Axis.IN)),
    ):
        group = dataclasses.replace(true, members=members)
        claimed = dataclasses.replace(spec, groups=tuple(group if g is true else g for g in spec.groups))
        assert verify_group(model, claimed, group) is not None

    assert verify_group(model, spec, true) is None


def test_the_proof_finds_channels_that_are_read_in_another_order() -> None:
    """Hidden from tracing in a hook: slicing both sides by the same indices runs, and is wrong."""
    model = randomise(build_model("small_cnn"))
    model.get_submodule("conv4").register_forward_pre_hook(lambda module, inputs: (inputs[0].flip(1),))

    spec = trace_network(model, (1, 8, 8), "small_cnn")

    assert [g.name for g in spec.groups] == ["conv1", "conv4", "conv5"]
    assert [r.name for r in spec.refused] == ["conv2"]
    assert "differs from the masked one" in spec.refused[0].reason


def test_tracing_leaves_the_model_alone() -> None:
    model = build_model("small_cnn").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    trace_network(model, (1, 8, 8), "small_cnn")

    assert model.training
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


class Body(nn.Module):
    """`run` on the output of a convolution."""

    def __init__(self, run: object) -> None:
        super().__init__()
        self.conv = conv_bn(3, 8)
        self.norm = nn.BatchNorm2d(8)
        self.plain = nn.BatchNorm2d(8, affine=False)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, self.conv(x))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda m, x: torch.tanh(x), "'tanh' .* there is no kernel"),
        (lambda m, x: x * 2.0, "'mul' .* the number 2: put it into"),
        (lambda m, x: x * x, r"multiplies tensors of \(8, 8, 8\) and \(8, 8, 8\): only a factor for each channel"),
        (lambda m, x: x * x.mean((2, 3)), "only a factor for each channel"),
        (lambda m, x: x.unflatten(1, (2, 4)), "only a vector to"),
        (lambda m, x: F.relu(x.unflatten(1, (2, -1))), "as in a channel shuffle"),
        (lambda m, x: x.unflatten(1, (2, -1)).flatten(1, 2), "as in a channel shuffle"),
        (lambda m, x: torch.cat([x, x], 2), "concatenation over axis of 2"),
        (lambda m, x: torch.sigmoid(torch.sigmoid(x)), "follows another activation"),
        (lambda m, x: x + 1.0, "the number 1"),
        (lambda m, x: m.conv[0](x[:, :3, :, :]), "every s-th pixel"),
        (lambda m, x: m.norm(m.norm(x)), "'norm' is used twice"),
        (lambda m, x: nn.functional.relu(m.plain(F.relu(x))), "batch norm must follow"),
        (lambda m, x: F.relu(F.max_pool2d(x, 2)), "an activation must follow"),
        (lambda m, x: F.relu(x) + x, "an activation must follow"),
        (lambda m, x: F.avg_pool2d(x, 3, padding=1), "padding of 1"),
        (lambda m, x: F.max_pool2d(x, 3, ceil_mode=True), "ceil_mode"),
        (lambda m, x: x.mean(1), "a mean over 1"),
        (lambda m, x: x + x.mean((2, 3), keepdim=True), "different shapes"),
        (lambda m, x: x if x.sum() > 0 else F.relu(x), "cannot be traced"),
        (lambda m, x: (x, x), "must return one tensor"),
        (lambda m, x: F.pad(x, (1, 1, 1, 1)), "only zero channels"),
        (lambda m, x: x.reshape(x.shape[0], 16, -1), "it reshapes"),
    ],
)
def test_names_what_has_no_kernel(run: object, message: str) -> None:
    with pytest.raises(UnsupportedNetwork, match=message):
        trace_network(Body(run), (3, 8, 8), "body")


class Gated(nn.Module):
    """Squeeze-and-excite as in MobileNetV3 and with linear layers, both ways around."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, stride=2)
        self.expand, self.depthwise = conv_bn(8, 16, 1), conv_bn(16, 16, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 6, 1), nn.Conv2d(6, 16, 1)
        self.project = conv_bn(16, 8, 1)
        self.reduce, self.gate = nn.Linear(8, 4), nn.Linear(4, 8)
        self.last = conv_bn(8, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        y = F.silu(self.depthwise(F.hardswish(self.expand(x))))
        y = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))) * y
        x = x + self.project(y)
        gate = torch.sigmoid(self.gate(F.relu(self.reduce(x.mean((2, 3))))))
        x = F.relu(x * gate.unflatten(1, (-1, 1, 1)))
        return self.head(F.silu(self.last(x)).mean((2, 3)))


def test_a_gate_has_the_channels_of_what_it_multiplies() -> None:
    model = randomise(Gated())
    spec = trace_network(model, (3, 12, 12), "gated")

    assert {g.name: g.channels for g in spec.groups} == {
        "stem.0": 8, "expand.0": 16, "squeeze": 6, "reduce": 4, "last.0": 12,
    }  # fmt: skip
    assert spec.refused == ()
    assert set(spec.group("expand.0").members) == {
        GroupMember(op="expand.0", axis=Axis.OUT),
        GroupMember(op="depthwise.0", axis=Axis.OUT),
        GroupMember(op="squeeze", axis=Axis.IN),
        GroupMember(op="excite", axis=Axis.OUT),
        GroupMember(op="project.0", axis=Axis.IN),
    }
    decisions = Decisions(channels={"stem.0": 5, "expand.0": 9, "squeeze": 2, "reduce": 3, "last.0": 7})
    check_pruned(model, spec, decisions)


def test_parts_of_a_concatenation_are_groups_of_their_own() -> None:
    model, spec = traced("joined")
    members = {g.name: {(m.op, m.axis.value, m.offset) for m in g.members} for g in spec.groups}

    assert spec.refused == ()
    assert members == {
        "stem.0": {
            ("stem.0", "out", 0), ("first.0", "in", 0), ("second.0", "in", 0), ("depthwise.0", "out", 0),
            ("one", "in", 0), ("three.0", "in", 0), ("reduce", "in", 0), ("left.0", "in", 17), ("right.0", "in", 17),
        },
        "first.0": {
            ("first.0", "out", 0), ("second.0", "in", 8), ("depthwise.0", "out", 8),
            ("one", "in", 8), ("three.0", "in", 8), ("reduce", "in", 8), ("left.0", "in", 25), ("right.0", "in", 25),
        },
        "second.0": {
            ("second.0", "out", 0), ("depthwise.0", "out", 12),
            ("one", "in", 12), ("three.0", "in", 12), ("reduce", "in", 12), ("left.0", "in", 29), ("right.0", "in", 29),
        },
        "reduce": {("reduce", "out", 0), ("left.0", "in", 12), ("right.0", "in", 12)},
        "one": {("one", "out", 0), ("left.0", "in", 0), ("right.0", "in", 0)},
        "three.0": {("three.0", "out", 0), ("left.0", "in", 5), ("right.0", "in", 5)},
        "left.0": {
            ("left.0", "out", 0), ("low", "out", 0), ("low", "in", 0), ("high", "in", 0), ("hidden", "in", 0),
        },
        "right.0": {
            ("right.0", "out", 0), ("high", "out", 0), ("low", "in", 4), ("high", "in", 4), ("hidden", "in", 4),
        },
        "hidden": {("hidden", "out", 0), ("head", "in", 0)},
    }  # fmt: skip
    for channels in (
        {"stem.0": 5, "first.0": 1, "second.0": 4, "reduce": 2, "one": 3, "three.0": 6, "left.0": 3, "right.0": 2},
        {"first.0": 3, "right.0": 5, "hidden": 4},
    ):
        check_pruned(model, spec, Decisions(channels=channels))


def test_batch_norm_in_front_of_a_layer() -> None:
    """Pre-activation, as in DenseNet."""
    model, spec = traced("pre_activation")
    kernels = {op.name: op.kernel for op in spec.plan.ops}

    assert kernels["norms.1"].op is Op.DEPTHWISE_CONV2D
    assert (kernels["norms.1"].kernel_h, kernels["norms.1"].in_channels) == (1, 12)
    assert kernels["norms.1"].activation is Activation.RELU
    assert spec.refused == ()
    assert {g.name: g.channels for g in spec.groups} == {"stem": 8, "convs.0": 4, "convs.1": 6, "transition": 10}
    assert set(spec.group("convs.0").members) == {
        GroupMember(op="convs.0", axis=Axis.OUT),
        GroupMember(op="norms.1", axis=Axis.OUT, offset=8),
        GroupMember(op="convs.1", axis=Axis.IN, offset=8),
        GroupMember(op="last_norm", axis=Axis.OUT, offset=8),
        GroupMember(op="transition", axis=Axis.IN, offset=8),
    }
    assert not {"norms.1", "last_norm", "head_norm"} & set(spec.prunable_ops)
    check_pruned(model, spec, Decisions(channels={"stem": 5, "convs.0": 2, "convs.1": 3, "transition": 7}))


def test_gates_over_concatenations() -> None:
    model = randomise(JoinedGate(fits=True))
    spec = trace_network(model, (3, 8, 8), "joined")

    assert spec.refused == ()
    assert [m for m in spec.group("right").members if m.op == "last.0"] == [
        GroupMember(op="last.0", axis=Axis.IN, offset=4),
        GroupMember(op="last.0", axis=Axis.IN, offset=14),
    ]
    check_pruned(model, spec, Decisions(channels={"left": 3, "right": 2, "last.0": 4}))

    # What makes a gate as a whole is cut where the parts meet.
    model = randomise(JoinedGate(fits=False))
    spec = trace_network(model, (3, 8, 8), "joined")
    assert spec.refused == ()
    assert {g.name: g.channels for g in spec.groups} == {"stem.0": 8, "left": 4, "right": 6, "last.0": 6}
    assert [m for m in spec.group("right").members if m.op == "whole"] == [
        GroupMember(op="whole", axis=Axis.IN, offset=4),
        GroupMember(op="whole", axis=Axis.OUT, offset=4),
    ]
    check_pruned(model, spec, Decisions(channels={"left": 3, "right": 2, "last.0": 4}))


def test_the_proof_finds_parts_in_another_order() -> None:
    model, spec = traced("joined")
    group = spec.group("one")
    moved = tuple(dataclasses.replace(m, offset=m.offset + 1 if m.axis is Axis.IN else 0) for m in group.members)
    false = dataclasses.replace(group, members=moved)
    claimed = dataclasses.replace(spec, groups=tuple(false if g is group else g for g in spec.groups))

    assert verify_group(model, spec, group) is None
    assert verify_group(model, claimed, false) is not None


def check_pruned(model: nn.Module, spec: NetworkSpec, decisions: Decisions) -> None:
    """The plan of the pruned network computes what its module does."""
    pruned = apply_decisions(model, spec, decisions)
    plan, tensors = to_plan_tensors(pruned, spec, decisions)
    x = torch.randn(2, *spec.plan.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = pruned.model(x)
    torch.testing.assert_close(run_plan(plan, tensors, x).flatten(1).float(), expected, rtol=1e-4, atol=1e-4)


def test_names_convolutions_that_have_no_kernel() -> None:
    for layer, message in (
        (nn.Conv2d(4, 8, 3, dilation=2), "dilation of 2"),
        (nn.Conv2d(4, 8, 3, stride=(1, 2)), "stride differs"),
        (nn.Conv2d(4, 8, 3, padding="same"), "given as numbers"),
        (nn.ConvTranspose2d(4, 8, 3), "no kernel for ConvTranspose2d"),
    ):
        with pytest.raises(UnsupportedNetwork, match=message):
            trace_network(nn.Sequential(layer), (4, 8, 8), "layer")


def test_a_module_used_twice_has_no_name_of_its_own() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    with pytest.raises(UnsupportedNetwork, match="is used twice"):
        trace_network(nn.Sequential(shared, nn.ReLU(), shared), (4, 8, 8), "shared")
