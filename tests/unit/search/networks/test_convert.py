"""Own networks become `.kerf` files that compute, train and stay what the original does; others are refused."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from device_agent.contracts import ContractError
from search.models.zoo import build_model
from search.networks import aten
from search.networks.agreement import difference
from search.networks.build import BuiltNetwork, build_network
from search.networks.convert import ConvertedNetwork, convert_module
from search.networks.file import Network, read_network, write_network
from search.networks.ops import NetworkOp
from tests.unit.search.networks.own_networks import INPUT_SHAPE, OWN_NETWORKS, Classifier, own_network


def convert(model: nn.Module) -> ConvertedNetwork:
    return convert_module(model, torch.randn(1, *INPUT_SHAPE, generator=torch.Generator().manual_seed(9)), "own")


def through_file(network: Network, folder: Path) -> BuiltNetwork:
    write_network(network, folder / "own.kerf")
    return build_network(read_network(folder / "own.kerf"))


@pytest.mark.parametrize("name", OWN_NETWORKS)
def test_construct_is_the_same_after_the_file_and_trains(name: str, tmp_path: Path) -> None:
    model = own_network(name)
    was = {n: t.clone() for n, t in model.state_dict().items()}
    converted = convert(model)
    rebuilt = through_file(converted.network, tmp_path).model
    x = torch.randn(5, *INPUT_SHAPE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = pytree.tree_leaves(copy.deepcopy(model).eval()(x))
        actual = pytree.tree_leaves(rebuilt(x))

    assert converted.notes == ()
    assert model.training
    assert all(torch.equal(t, was[n]) for n, t in model.state_dict().items())
    assert [a.shape for a in actual] == [e.shape for e in expected]
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 * max(1.0, float(theirs.abs().max())))

    before = {n: p.detach().clone() for n, p in rebuilt.named_parameters()}
    optimiser = torch.optim.SGD([p for p in rebuilt.parameters() if p.requires_grad], lr=0.1)
    rebuilt.train()
    torch.manual_seed(0)
    loss = torch.stack([(o * torch.randn(o.shape)).mean() for o in pytree.tree_leaves(rebuilt(x))]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    changed = {n for n, p in rebuilt.named_parameters() if not torch.equal(p, before[n])}
    frozen = {n for n, p in rebuilt.named_parameters() if not p.requires_grad}
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == sum(p.numel() for n, p in rebuilt.named_parameters() if n not in frozen)
    assert not changed & frozen
    # A bias in front of batch norm has no gradient, but everything else moves.
    assert len(changed) >= 0.7 * (len(before) - len(frozen))


def nodes_of(name: str) -> dict[str, NetworkOp]:
    return {node.name: node.op for node in convert(own_network(name)).network.document.nodes}


def test_what_evaluation_does_not_show_is_recovered() -> None:
    plain = {n.name: n for n in convert(own_network("plain_cnn")).network.document.nodes}
    norms = {n.name: n for n in convert(own_network("norms")).network.document.nodes}
    frozen = {n.name: n for n in convert(own_network("frozen_stem")).network.document.nodes}
    raw = {n.name: n for n in convert(own_network("raw_convolution")).network.document.nodes}

    assert (plain["3"].attributes["momentum"], plain["3"].attributes["eps"]) == (0.03, 1e-3)
    assert plain["dropout"].attributes == {"probability": 0.4, "per_channel": False}
    assert norms["last"].attributes["momentum"] is None
    assert norms["feature_dropout"].attributes["per_channel"]
    assert frozen["features.0.0"].frozen == ("weight",)
    assert frozen["features.0.1"].frozen == ("bias", "weight")
    assert frozen["features.2"].frozen == ()
    assert raw["features.blur"].frozen == ("weight",)
    assert raw["features.kernel"].frozen == ()
    assert raw["features.gain"].op is NetworkOp.PARAMETER


def test_a_module_used_again_stays_one_module() -> None:
    converted = convert(own_network("reuse"))
    uses = [node for node in converted.network.document.nodes if node.module == "features.shared"]

    assert [node.name for node in uses] == ["features.shared", "features.shared_2", "features.shared_3"]
    assert list(converted.network.tensors).count("features.shared.weight") == 1
    assert NetworkOp.DETACH in {node.op for node in converted.network.document.nodes}


def test_modules_may_be_called_as_operators_are(tmp_path: Path) -> None:
    layers = {"relu": nn.Conv2d(3, 4, 3), "dropout": nn.Sequential(nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 3))}
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)

    rebuilt = through_file(convert(model).network, tmp_path).model

    assert set(rebuilt.state_dict()) == set(model.state_dict())


@pytest.mark.parametrize("architecture", ["small_cnn", "small_resnet"])
def test_tensors_keep_the_names_of_the_original(architecture: str, tmp_path: Path) -> None:
    model = build_model(architecture)
    converted = convert_module(model, torch.zeros(1, 1, 8, 8), architecture)
    rebuilt = through_file(converted.network, tmp_path).model

    assert set(rebuilt.state_dict()) == set(model.state_dict())
    rebuilt.load_state_dict(model.state_dict())


class Changing(nn.Module):
    """Applies a function; the linear layer makes it a network."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.function(self.conv(x))  # type: ignore[operator]
        return result


class Tied(nn.Module):
    """Two convolutions with one weight, but a bias each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x))
        return result


def weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)))


def data_skip(x: Tensor) -> Tensor:
    return x + x.data


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Changing(lambda x: torch.cumsum(x, 1)), r"cumsum.*has no operator"),
        (Changing(lambda x: x.flatten(0, 1)), r"mixes the images"),
        (Changing(lambda x: torch.cat([x, x], 0)), r"along the batch"),
        (Changing(lambda x: F.dropout(x, 0.5)), r"evaluation mode"),
        (Changing(lambda x: x if x.sum() > 0 else -x), r"cannot be traced"),
        (Changing(data_skip), r"\.data"),
        (Changing(lambda x: x.double()), r"float64"),
        (Changing(lambda x: x.relu().reshape(len(x), -1)[:, 0] * torch.rand(1)), r"cannot be converted"),
        (Tied(), r"first\.weight.*also used"),
        (weight_norm(), r"weight norm"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), r"track_running_stats"),
        (nn.Sequential(nn.Conv2d(3, 4, 3)).double(), r"float32"),
        (nn.Linear(9, 9), r"cannot be traced"),
    ],
)
def test_what_the_format_does_not_have_is_refused(model: nn.Module, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        convert(model)


class Shrunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3), nn.ELU()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.act(self.conv(x))
        return result


def test_an_error_names_the_layer_and_the_line_of_the_user_s_code() -> None:
    line = Shrunk.forward.__code__.co_firstlineno + 1

    with pytest.raises(ContractError, match=rf"elu.* in 'act', {re.escape(__file__)}:{line} cannot be converted"):
        convert(Shrunk())


def test_a_wrong_conversion_is_refused_with_the_first_node_that_differs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2), nn.Conv2d(4, 4, 3), nn.Tanh())

    def wrong(walker: aten.Walker, node: torch.fx.Node, a: dict[str, object]) -> aten.Value:
        return walker.emit(node, NetworkOp.LEAKY_RELU, [walker.operand(node, a["self"])], slope=0.21)

    with (
        mock.patch.dict(aten.RULES, {"aten.leaky_relu.default": wrong}),
        pytest.raises(ContractError, match=r"differs from the original.*first difference is at 'leaky_relu'"),
    ):
        convert(model)


def test_a_lost_detach_is_refused_though_outputs_agree() -> None:
    def lost(walker: aten.Walker, node: torch.fx.Node, a: dict[str, object]) -> aten.Value:
        return walker.operand(node, a["self"])

    with (
        mock.patch.dict(aten.RULES, {"aten.detach.default": lost}),
        pytest.raises(ContractError, match=r"gradient of 'features\.stem"),
    ):
        convert(own_network("reuse"))


class StochasticDepth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x + self.conv(x)


def test_what_training_does_otherwise_is_told() -> None:
    (note,) = convert(Classifier(StochasticDepth(), 3)).notes

    assert "in training mode the original computes something else" in note


def test_that_an_adaptive_pool_adapts_no_more_is_told() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(2), nn.AdaptiveAvgPool2d(2))
    converted = convert(model)
    (conv, pool) = converted.network.document.nodes
    first, second = converted.notes

    assert (conv.op, pool.op, pool.attributes["kernel"]) == (NetworkOp.CONV2D, NetworkOp.AVG_POOL, [4, 4])
    assert "in '1'" in first
    assert "is written as an average pool of 4x4, which is the same for 8x8 pixels but not for other" in first
    assert "an average pool of 1x1, which is the same for 2x2 pixels" in second


def test_difference_is_never_hidden() -> None:
    ones = torch.ones(2)

    assert difference(ones, torch.ones(3)) == float("inf")
    assert difference(torch.tensor([1.0, float("nan")]), ones) == float("inf")
    assert difference(10 * ones + 1, 10 * ones) == pytest.approx(0.1)
