"""ONNX files become `.kerf` networks that compute the same; others are refused with the node and the remedy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper
from torch import nn
from torch.utils import _pytree as pytree

from device_agent.contracts import ContractError
from search.networks.build import build_network
from search.networks.converted import ConvertedNetwork
from search.networks.file import read_network, write_network
from search.networks.from_onnx import model as model_module
from search.networks.from_onnx import rules
from search.networks.from_onnx.convert import convert_onnx
from search.networks.inspection import inspect_network
from search.networks.ops import NetworkOp
from tests.unit.search.networks.onnx_files import exported, node, onnx_model, saved, weights
from tests.unit.search.networks.own_networks import INPUT_SHAPE, OWN_NETWORKS, own_network


def ops_of(converted: ConvertedNetwork) -> list[str]:
    return [node.op.value for node in converted.network.document.nodes]


def check_same(model: nn.Module, converted: ConvertedNetwork, folder: Path, images: int = 3) -> None:
    """The network is the module, also after the file, and its loss reaches every weight."""
    write_network(converted.network, folder / "x.kerf")
    rebuilt = build_network(read_network(folder / "x.kerf")).model
    x = torch.randn(images, *INPUT_SHAPE, generator=torch.Generator().manual_seed(3))
    expected = pytree.tree_leaves(model.eval()(x))
    actual = pytree.tree_leaves(rebuilt(x))

    assert [a.shape for a in actual] == [e.shape for e in expected]
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 * max(1.0, float(theirs.detach().abs().max())))
    torch.stack([(o * torch.randn(o.shape)).mean() for o in actual]).sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in rebuilt.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", OWN_NETWORKS)
def test_what_torch_exports_is_the_same(name: str, tmp_path: Path) -> None:
    model = own_network(name)

    converted = convert_onnx(exported(model, tmp_path / "x.onnx"), name)

    check_same(model, converted, tmp_path)
    assert len(converted.notes) == 1
    assert "says nothing of training" in converted.notes[0]


@pytest.mark.slow  # This exporter takes seconds for each.
@pytest.mark.parametrize("name", OWN_NETWORKS)
def test_what_the_newer_exporter_writes_is_the_same(name: str, tmp_path: Path) -> None:
    model = own_network(name)
    options = {"dynamo": True, "dynamic_axes": None, "input_names": None, "external_data": False, "verbose": False}

    converted = convert_onnx(exported(model, tmp_path / "x.onnx", **options), name)

    # It was traced with two images.
    check_same(model, converted, tmp_path, images=2)


def test_names_and_layers_are_those_of_the_module(tmp_path: Path) -> None:
    network = convert_onnx(exported(own_network("squeeze_excite"), tmp_path / "x.onnx"), "own").network
    names = {node.name: node.op for node in network.document.nodes}

    assert network.document.name == "own"
    assert network.document.input.shape == (3, 8, 8)
    assert names["features.0"] is NetworkOp.CONV2D
    assert names["features.2.reduce"] is NetworkOp.LINEAR
    # x * sigmoid(x) is one operator, and a gate is not repeated to the size of the image.
    assert names["features_2_mul"] is NetworkOp.SILU
    assert NetworkOp.EXPAND not in names.values()
    assert "head.weight" in network.tensors


def test_batch_norm_that_is_not_folded_stays(tmp_path: Path) -> None:
    model = own_network("plain_cnn")
    converted = convert_onnx(exported(model, tmp_path / "x.onnx", do_constant_folding=False), "own")
    found = {node.op: node for node in converted.network.document.nodes}[NetworkOp.BATCH_NORM]

    check_same(model, converted, tmp_path)
    assert (found.name, found.module) == ("3", "3")
    assert (found.attributes["eps"], found.attributes["momentum"]) == (1e-3, 0.03)


@pytest.mark.parametrize("name", ["resnet_a", "squeeze_excite", "concatenation"])
def test_groups_are_those_of_the_module(name: str, tmp_path: Path) -> None:
    """What can be pruned does not depend on the way into the format."""
    from search.networks.convert import convert_module

    model = own_network(name)
    ours = inspect_network(convert_onnx(exported(model, tmp_path / "x.onnx"), "own").network)
    theirs = inspect_network(convert_module(model, torch.zeros(1, *INPUT_SHAPE), "own").network)

    assert [n.op for n in ours.not_lowered] == [n.op for n in theirs.not_lowered]
    assert sorted(g.channels for g in ours.groups) == sorted(g.channels for g in theirs.groups)
    assert sorted(g.channels for g in ours.dense) == sorted(g.channels for g in theirs.dense)
    assert ours.macs == theirs.macs


def image_conv(*after: Any, **constants: Any) -> ModelProto:
    """A convolution to 4 channels "c", and what comes after it."""
    first = node("Conv", "x", "w", output="c", name="/first/Conv", pads=[1, 1, 1, 1])
    return onnx_model([first, *after], {"w": weights(4, 3, 3, 3), **constants})


#: Constructs that torch does not write, but others do.
BY_HAND: dict[str, tuple[Callable[[], ModelProto], list[str]]] = {
    "bias_as_a_sum": (
        lambda: image_conv(node("Add", "c", "b"), b=weights(1, 4, 1, 1)),
        ["conv2d"],
    ),
    "normalised_input": (
        lambda: onnx_model(
            [
                node("Sub", "x", "mean", output="a"),
                node("Div", "a", "std", output="b"),
                node("Conv", "b", "w"),
            ],
            {"mean": weights(1, 3, 1, 1), "std": np.abs(weights(3, 1, 1)) + 1, "w": weights(4, 3, 3, 3)},
        ),
        ["conv2d", "conv2d", "conv2d"],
    ),
    "same_upper": (
        lambda: onnx_model([node("Conv", "x", "w", auto_pad="SAME_UPPER", strides=[2, 2])], {"w": weights(4, 3, 3, 3)}),
        ["pad", "conv2d"],
    ),
    "same_lower": (
        lambda: onnx_model([node("Conv", "x", "w", auto_pad="SAME_LOWER", strides=[2, 2])], {"w": weights(4, 3, 3, 3)}),
        ["pad", "conv2d"],
    ),
    "pad_in_front": (
        lambda: onnx_model(
            [node("Pad", "x", "p", output="a"), node("Conv", "a", "w")],
            {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "w": weights(4, 3, 3, 3)},
        ),
        ["conv2d"],
    ),
    "pad_of_one_side": (
        lambda: onnx_model(
            [node("Pad", "x", "p", output="a"), node("Conv", "a", "w", pads=[0, 0, 1, 1])],
            {"p": np.array([0, 0, 1, 1, 0, 0, 0, 0]), "w": weights(4, 3, 3, 3)},
        ),
        ["conv2d"],
    ),
    "hard_swish_by_hand": (
        lambda: image_conv(
            node("Add", "c", "three", output="a"),
            node("Clip", "a", "zero", "six", output="b"),
            node("Mul", "c", "b", output="d"),
            node("Div", "d", "six"),
            three=np.float32(3),
            zero=np.float32(0),
            six=np.float32(6),
        ),
        ["conv2d", "hardswish"],
    ),
    "hard_sigmoid_by_hand": (
        lambda: image_conv(
            node("Add", "c", "three", output="a"),
            node("Max", "a", "zero", output="m"),
            node("Min", "m", "six", output="b"),
            node("Mul", "b", "sixth"),
            three=np.float32(3),
            zero=np.float32(0),
            six=np.float32(6),
            sixth=np.float32(1 / 6),
        ),
        ["conv2d", "hardsigmoid"],
    ),
    "hard_sigmoid_of_keras": (lambda: image_conv(node("HardSigmoid", "c")), ["conv2d", "affine", "clamp"]),
    "matrix_product_with_bias": (
        lambda: onnx_model(
            [
                node("GlobalAveragePool", "x", output="g"),
                node("Flatten", "g", output="f"),
                node("MatMul", "f", "w", output="m"),
                node("Add", "b", "m"),
            ],
            {"w": weights(3, 5), "b": weights(5)},
        ),
        ["adaptive_avg_pool", "flatten", "linear"],
    ),
    "gemm_with_factors": (
        lambda: onnx_model(
            [node("Flatten", "x", output="f"), node("Gemm", "f", "w", "b", alpha=0.5, beta=2.0)],
            {"w": weights(192, 5), "b": weights(1, 5)},
        ),
        ["flatten", "linear"],
    ),
    "uneven_max_pool": (
        lambda: onnx_model([node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")]),
        ["pad", "max_pool"],
    ),
    "counted_mean": (
        lambda: onnx_model(
            [node("AveragePool", "x", kernel_shape=[3, 3], pads=[0, 0, 1, 1], count_include_pad=1, strides=[2, 2])]
        ),
        ["pad", "avg_pool"],
    ),
    "uncounted_mean": (
        lambda: onnx_model([node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1])]),
        ["avg_pool"],
    ),
    "global_max": (lambda: onnx_model([node("GlobalMaxPool", "x")]), ["max_pool"]),
    "depth_to_space": (
        lambda: image_conv(node("DepthToSpace", "c", blocksize=2)),
        ["conv2d", "reshape", "permute", "reshape"],
    ),
    "space_to_depth": (lambda: onnx_model([node("SpaceToDepth", "x", blocksize=2)]), ["reshape", "permute", "reshape"]),
    "nearest_by_others": (
        lambda: onnx_model([node("Resize", "x", "", "s", mode="nearest")], {"s": np.array([1, 1, 2, 2], np.float32)}),
        ["upsample"],
    ),
    "negative_bounds": (
        lambda: onnx_model(
            [node("Slice", "x", "a", "b", "axes")],
            {"a": np.array([-6, 1]), "b": np.array([-1, 1 << 60]), "axes": np.array([-1, 2])},
        ),
        ["slice", "slice"],
    ),
    "split_by_sizes": (
        lambda: onnx_model(
            [
                helper.make_node("Split", ["x", "sizes"], ["a", "b"], axis=1),
                node("Conv", "a", "w", output="c"),
                node("Conv", "b", "v", output="d"),
                node("Add", "c", "d"),
            ],
            {"sizes": np.array([1, 2]), "w": weights(4, 1, 1, 1), "v": weights(4, 2, 1, 1)},
        ),
        ["slice", "slice", "conv2d", "conv2d", "add"],
    ),
    "sum_of_three": (
        lambda: image_conv(node("Relu", "c", output="r"), node("Sum", "c", "r", "c")),
        ["conv2d", "relu", "add", "add"],
    ),
    "dropout": (
        lambda: image_conv(node("Dropout", "c", "ratio"), ratio=np.float32(0.25)),
        ["conv2d", "dropout"],
    ),
    "one_weight_twice": (
        lambda: onnx_model(
            [
                node("Conv", "x", "w", output="a", pads=[1, 1, 1, 1]),
                node("Conv", "a", "w", output="b", pads=[1, 1, 1, 1]),
                node("Conv", "b", "w", "bias", pads=[1, 1, 1, 1]),
            ],
            {"w": weights(3, 3, 3, 3), "bias": weights(3)},
        ),
        ["conv2d", "conv2d", "conv2d"],
    ),
    "two_names_of_one_output": (
        lambda: onnx_model([node("Relu", "x"), node("Identity", "y", output="z")], outputs=("y", "z")),
        ["relu", "identity"],
    ),
    "layer_norm_without_bias": (
        lambda: onnx_model([node("LayerNormalization", "x", "w", axis=-2)], {"w": weights(8, 8)}),
        ["layer_norm"],
    ),
    "leaky_relu_of_one_slope": (
        lambda: image_conv(node("PRelu", "c", "s"), s=weights(1, 1, 1)),
        ["conv2d", "leaky_relu"],
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_what_others_write_is_the_same(name: str, tmp_path: Path) -> None:
    make, ops = BY_HAND[name]
    model = make()
    converted = convert_onnx(saved(model, tmp_path / "x.onnx"), "own")
    x = np.random.default_rng(5).standard_normal((4, 3, 8, 8), dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
    with torch.no_grad():
        result = build_network(converted.network).model(torch.from_numpy(x))
    actual = result if isinstance(result, tuple) else (result,)

    assert ops_of(converted) == ops
    for mine, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=0, atol=1e-5 * max(1.0, float(np.abs(theirs).max())))


def test_what_one_weight_of_several_layers_becomes_is_told(tmp_path: Path) -> None:
    converted = convert_onnx(saved(BY_HAND["one_weight_twice"][0](), tmp_path / "x.onnx"), "own")
    modules = [node.module for node in converted.network.document.nodes]

    # Used twice alike it stays one module; with a bias it is another.
    assert modules[0] == modules[1] != modules[2]
    assert "trained as two" in converted.notes[0]


def test_open_sizes_are_asked_for(tmp_path: Path) -> None:
    path = saved(
        onnx_model([node("Conv", "x", "w")], {"w": weights(4, 3, 3, 3)}, shape=("n", 3, "h", "w")), tmp_path / "x.onnx"
    )

    with pytest.raises(ContractError, match=r"height of the input 'x' are open \(h\).*--example-shape"):
        convert_onnx(path, "own")
    assert convert_onnx(path, "own", (3, 12, 10)).network.document.input.shape == (3, 12, 10)
    with pytest.raises(ContractError, match="channels of the input 'x' are 3, and 4 were asked for"):
        convert_onnx(path, "own", (4, 8, 8))


def test_shapes_are_inferred_without_the_weights(tmp_path: Path) -> None:
    """Inference copies all that it is given, several times."""
    nodes = [
        node("Flatten", "x", output="f"),
        node("Transpose", "w", output="t", perm=[1, 0]),
        node("MatMul", "f", "t"),
    ]
    path = saved(onnx_model(nodes, {"w": weights(500, 192)}), tmp_path / "x.onnx")
    infer = model_module.shape_inference.infer_shapes
    with mock.patch.object(model_module.shape_inference, "infer_shapes", side_effect=infer) as inferred:
        converted = convert_onnx(path, "own")

    assert ops_of(converted) == ["flatten", "linear"]
    assert path.stat().st_size > 380_000
    assert inferred.call_count == 2
    assert all(call.args[0].ByteSize() < 2_000 for call in inferred.call_args_list)


def external(tensor: str = "w") -> ModelProto:
    made = image_conv(node("Relu", "c"))
    (stored,) = (t for t in made.graph.initializer if t.name == tensor)
    stored.data_location = TensorProto.EXTERNAL
    stored.external_data.add(key="location", value="/etc/passwd")
    stored.ClearField("raw_data")
    return made


def external_constant() -> ModelProto:
    """The same in a constant inside of a branch."""
    branch = external().graph
    branch.ClearField("input")
    return onnx_model([node("If", "x", then_branch=branch, else_branch=branch)])


def in_domain(domain: str) -> ModelProto:
    made = image_conv(node("FusedConv", "c"))
    made.graph.node[1].domain = domain
    made.opset_import.append(helper.make_opsetid(domain, 1))
    return made


def unknown_shape() -> ModelProto:
    """As many rows as there are values above zero."""
    return onnx_model([node("NonZero", "x", output="n"), node("Cast", "n", to=TensorProto.FLOAT)])


def with_infinity() -> ModelProto:
    return onnx_model([node("Conv", "x", "w")], {"w": np.full((4, 3, 3, 3), np.inf, np.float32)})


REFUSED: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "external": (external, r"'w' lies in another file.*external_data=False"),
    "external_in_a_branch": (external_constant, r"lies in another file"),
    "old": (lambda: onnx_model([node("Relu", "x")], opset=11), r"opset 11.*convert_version"),
    "new": (lambda: onnx_model([node("Relu", "x")], opset=99), r"opset 99.*update onnx"),
    "domain": (lambda: in_domain("com.microsoft"), r"/FusedConv \(FusedConv\).*'com\.microsoft'.*without"),
    "unknown": (lambda: onnx_model([node("Det", "x")]), r"/Det \(Det\) cannot be converted.*no operator"),
    "erf": (lambda: onnx_model([node("Erf", "x")]), r"Erf.*opset_version=20"),
    "lstm": (lambda: onnx_model([node("Einsum", "x", equation="abcd->ab")]), r"only CNNs"),
    "quantised": (
        lambda: onnx_model([node("DequantizeLinear", "x", "s")], {"s": np.float32(1)}, input_type=TensorProto.INT8),
        r"'x' is INT8.*float32",
    ),
    "two_inputs": (
        lambda: (
            made := onnx_model([node("Add", "x", "z")]),
            made.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 3, 8, 8])),
        )[0],
        r"takes 2 inputs \('x', 'z'\)",
    ),
    "vector": (lambda: onnx_model([node("Relu", "x")], shape=("n", 3)), r"2 axes, but must have four"),
    "huge": (lambda: onnx_model([node("Relu", "x")], shape=(1, 1 << 12, 1 << 12, 9)), r"at most 2\^24"),
    "branch": (
        lambda: onnx_model(
            [
                node(
                    "If",
                    "x",
                    then_branch=onnx_model([node("Relu", "x")]).graph,
                    else_branch=onnx_model([node("Relu", "x")]).graph,
                )
            ]
        ),
        r"decides at run time",
    ),
    "unknown_shape": (unknown_shape, r"cannot be told before it runs|has no operator"),
    "batch_in_channels": (
        lambda: onnx_model([node("Transpose", "x", perm=[1, 0, 2, 3])]),
        r"moves the batch",
    ),
    "mixes_images": (
        lambda: onnx_model([node("Reshape", "x", "s")], {"s": np.array([3, -1, 8, 8])}),
        r"mixes the images.*flatten\(1\)",
    ),
    "mean_over_all": (lambda: onnx_model([node("ReduceMean", "x")]), r"mean over the batch"),
    "dynamic_weight": (lambda: onnx_model([node("Conv", "x", "x")]), r"'x' is computed from the image"),
    "half": (
        lambda: onnx_model(
            [node("Cast", "x", to=TensorProto.FLOAT16, output="h"), node("Cast", "h", to=TensorProto.FLOAT)]
        ),
        r"only float32",
    ),
    "training": (
        lambda: onnx_model(
            [helper.make_node("BatchNormalization", ["x", "a", "b", "c", "d"], ["y", "e", "f"], training_mode=1)],
            {"a": weights(3), "b": weights(3), "c": weights(3), "d": np.abs(weights(3))},
        ),
        r"evaluation mode",
    ),
    "huge_constant": (
        lambda: onnx_model(
            [
                node("ConstantOfShape", "s", output="k"),
                node("ReduceSum", "k", output="sum"),
                node("Add", "x", "sum"),
            ],
            {"s": np.array([1 << 20, 1 << 20])},
        ),
        r"more than \d+ values",
    ),
    "infinite": (with_infinity, r"not finite"),
    "no_output_of_the_image": (lambda: onnx_model([node("Relu", "k")], {"k": weights(3)}), r"nothing reads 'input'"),
    "wrong_shapes": (
        lambda: onnx_model([node("Conv", "x", "w")], {"w": weights(4, 5, 3, 3)}),
        r"conv does not fit what it reads.*channel",
    ),
    "cubic": (
        lambda: onnx_model([node("Resize", "x", "", "s", mode="cubic")], {"s": np.array([1, 1, 2, 2], np.float32)}),
        r"'cubic'.*have one",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_refused_with_the_remedy(name: str, tmp_path: Path) -> None:
    make, said = REFUSED[name]
    with pytest.raises(ContractError, match=said):
        convert_onnx(saved(make(), tmp_path / "x.onnx"), "own")


def test_what_is_no_onnx_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.onnx"
    with pytest.raises(ContractError, match="cannot read the network"):
        convert_onnx(path, "own")
    for content in (b"", b"no network", b"\xff" * 100, saved(image_conv(node("Relu", "c")), path).read_bytes()[:-40]):
        path.write_bytes(content)
        with pytest.raises(ContractError, match=r"no (sound )?ONNX file"):
            convert_onnx(path, "own")
    saved(image_conv(node("Relu", "c")), path)
    monkeypatch.setattr(model_module, "MAX_ONNX_BYTES", 100)
    with pytest.raises(ContractError, match="more than an ONNX file may have"):
        convert_onnx(path, "own")


def test_a_wrong_conversion_is_refused_with_the_first_node_that_differs(tmp_path: Path) -> None:
    path = saved(image_conv(node("LeakyRelu", "c", output="l", alpha=0.2), node("Tanh", "l")), tmp_path / "x.onnx")

    def wrong(w: rules.Writer, made: Any) -> str:
        return w.emit(made, NetworkOp.LEAKY_RELU, [w.operand(made)], slope=0.21)

    with (
        mock.patch.dict(rules.RULES, {"LeakyRelu": wrong}),
        pytest.raises(ContractError, match=r"differs from the ONNX file.*first difference is at 'leakyrelu'"),
    ):
        convert_onnx(path, "own")
