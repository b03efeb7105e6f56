"""TFLite files against the interpreter, torch, and the schema that ai-edge-litert ships."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.contracts import (
    Activation,
    ContractError,
    KernelSpec,
    NetworkPlan,
    Op,
    PlanOp,
    PruningScheme,
    WeightPruning,
)
from device_agent.formats import tflite_graph
from device_agent.formats.tflite import plan_to_tflite, read_plan
from device_agent.synthesis import kernel_inputs, kernel_plan, kernel_plan_tensors
from tests.unit.device_agent.torch_parts import activated, moved_channels, num_groups, with_second

schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="ai-edge-litert is not installed")
interpreter_module = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")


def run_model(model: bytes, *inputs: np.ndarray) -> np.ndarray:
    """The model's output for inputs (c, h, w), flattened in NCHW order."""
    interpreter = interpreter_module.Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    details = interpreter.get_input_details()
    assert len(details) == len(inputs)
    for detail, values in zip(details, inputs, strict=True):
        interpreter.set_tensor(detail["index"], np.ascontiguousarray(values.transpose(1, 2, 0))[None])
    interpreter.invoke()
    output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return (output.transpose(0, 3, 1, 2) if output.ndim == 4 else output).reshape(-1)


def torch_kernel(kernel: KernelSpec) -> tuple[list[np.ndarray], np.ndarray]:
    """The kernel's own inputs and what torch computes from them."""
    x, second = kernel_inputs(kernel)
    tensors = {name.split(".")[1]: torch.from_numpy(t) for name, t in kernel_plan_tensors(kernel).items()}
    batch = torch.from_numpy(x)[None]
    s, p, k = kernel.stride, kernel.padding, (kernel.kernel_h, kernel.kernel_w)
    if kernel.op in (Op.CONV2D, Op.DEPTHWISE_CONV2D):
        y = F.conv2d(batch, tensors["weight"], tensors["bias"], stride=s, padding=p, groups=num_groups(kernel))
    elif kernel.op is Op.FULLY_CONNECTED:
        y = F.linear(batch.flatten(1), tensors["weight"][:, :, 0, 0], tensors["bias"])
    elif kernel.op is Op.MAX_POOL:
        y = F.max_pool2d(batch, k, s, p)
    elif kernel.op is Op.AVG_POOL:
        y = F.avg_pool2d(batch, k, s, p)
    elif kernel.op is Op.GLOBAL_AVG_POOL:
        y = batch.mean((2, 3), keepdim=True)
    elif kernel.op is Op.SHORTCUT_PAD:
        before = kernel.pad_channels_before
        after = kernel.out_channels - kernel.in_channels - before
        y = F.pad(batch[:, :, ::s, ::s], (0, 0, 0, 0, before, after))
    else:
        y = moved_channels(kernel, batch)
    y = with_second(kernel, y, None if second is None else torch.from_numpy(second)[None])
    y = activated(y, kernel.activation)
    return [x] if second is None else [x, second], y.numpy().reshape(-1)


def check_kernel(kernel: KernelSpec) -> None:
    inputs, expected = torch_kernel(kernel)
    got = run_model(plan_to_tflite(kernel_plan(kernel), kernel_plan_tensors(kernel)), *inputs)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)


@st.composite
def kernels(draw: st.DrawFn) -> KernelSpec:
    op = draw(st.sampled_from(list(Op)))
    size = st.integers(1, 13)
    in_channels = draw(st.integers(1, 9))
    out_channels = draw(st.integers(1, 9)) if op in (Op.CONV2D, Op.FULLY_CONNECTED) else in_channels
    groups = draw(st.sampled_from((1, 1, 2, 3))) if op in (Op.CONV2D, Op.CHANNEL_SHUFFLE) else 1
    in_channels, out_channels = in_channels * groups, out_channels * groups
    if op is Op.DEPTHWISE_CONV2D:
        out_channels *= draw(st.integers(1, 3))
    elif op in (Op.FIRST_CHANNELS, Op.LAST_CHANNELS):
        in_channels += draw(st.integers(1, 9))
    activation = draw(st.sampled_from(list(Activation)))
    seed = draw(st.integers(0, 100))
    shape: dict[str, Any] = {"input_h": draw(size), "input_w": draw(size)}
    if op is Op.FULLY_CONNECTED:
        shape = {}
    elif op is Op.SHORTCUT_PAD:
        before, after = draw(st.integers(0, 5)), draw(st.integers(0, 5))
        out_channels = in_channels + before + after
        shape |= {"stride": draw(st.integers(1, 3)), "pad_channels_before": before}
    elif op is Op.CONCAT:
        out_channels = in_channels + draw(st.integers(1, 9))
    elif op in (Op.CONV2D, Op.DEPTHWISE_CONV2D, Op.MAX_POOL, Op.AVG_POOL):
        kernel_h, kernel_w = draw(st.integers(1, 5)), draw(st.integers(1, 5))
        most = max(kernel_h, kernel_w) if op in (Op.CONV2D, Op.DEPTHWISE_CONV2D) else min(kernel_h, kernel_w)
        shape |= {"kernel_h": kernel_h, "kernel_w": kernel_w, "stride": draw(st.integers(1, 3))}
        shape["padding"] = draw(st.integers(0, most // 2))
        shape["input_h"] = max(shape["input_h"], kernel_h)
        shape["input_w"] = max(shape["input_w"], kernel_w)
    return KernelSpec(
        op=op,
        in_channels=in_channels,
        out_channels=out_channels,
        activation=activation,
        residual=op is Op.CONV2D and groups == 1 and draw(st.booleans()),
        groups=groups,
        seed=seed,
        **shape,
    )


@settings(max_examples=150, deadline=None)
@given(kernels())
def test_any_kernel_agrees_with_torch(kernel: KernelSpec) -> None:
    check_kernel(kernel)


@pytest.mark.parametrize(
    "pruning",
    [
        WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.3),
        WeightPruning(scheme=PruningScheme.GROUP, density=0.25, block_filters=4),
        WeightPruning(scheme=PruningScheme.BLOCK_PUNCHED, density=0.5, block_filters=4, block_channels=2),
        WeightPruning(scheme=PruningScheme.PATTERN, density=0.4, pattern_entries=4),
    ],
)
def test_zeros_of_pruned_weights_are_kept(pruning: WeightPruning) -> None:
    check_kernel(
        KernelSpec(
            op=Op.CONV2D,
            in_channels=6,
            out_channels=10,
            input_h=8,
            input_w=8,
            kernel_h=3,
            kernel_w=3,
            padding=1,
            pruning=pruning,
        )
    )


def test_max_pool_of_negative_values_does_not_see_padded_zeros() -> None:
    # 3x3, stride 2 and padding 1 on an even extent is not TFLite's SAME.
    pool = KernelSpec(
        op=Op.MAX_POOL, in_channels=2, out_channels=2, input_h=6, input_w=6, kernel_h=3, kernel_w=3, stride=2, padding=1
    )
    x = -1.0 - np.arange(72, dtype=np.float32).reshape(2, 6, 6)
    got = run_model(plan_to_tflite(kernel_plan(pool), {}), x)
    assert got.max() < 0
    np.testing.assert_allclose(got, F.max_pool2d(torch.from_numpy(x)[None], 3, 2, 1).numpy().reshape(-1))


def residual_plan() -> NetworkPlan:
    """Two stages of a CIFAR ResNet: strided convolution, parameter-free shortcut, fused residual, head."""

    def conv(channels_in: int, channels_out: int, extent: int, **more: Any) -> KernelSpec:
        return KernelSpec(
            op=Op.CONV2D,
            in_channels=channels_in,
            out_channels=channels_out,
            input_h=extent,
            input_w=extent,
            kernel_h=3,
            kernel_w=3,
            padding=1,
            activation=Activation.RELU,
            **more,
        )

    shortcut = KernelSpec(
        op=Op.SHORTCUT_PAD, in_channels=8, out_channels=16, input_h=16, input_w=16, stride=2, pad_channels_before=4
    )
    pool = KernelSpec(op=Op.GLOBAL_AVG_POOL, in_channels=16, out_channels=16, input_h=8, input_w=8)
    return NetworkPlan(
        name="two stages",
        input_shape=(3, 16, 16),
        ops=(
            PlanOp(name="conv1", kernel=conv(3, 8, 16), inputs=("input",)),
            PlanOp(name="shortcut", kernel=shortcut, inputs=("conv1",)),
            PlanOp(name="conv2", kernel=conv(8, 16, 16, stride=2), inputs=("conv1",)),
            PlanOp(name="conv3", kernel=conv(16, 16, 8, residual=True), inputs=("conv2",), residual="shortcut"),
            PlanOp(name="pool", kernel=pool, inputs=("conv3",)),
            PlanOp(
                name="linear",
                kernel=KernelSpec(op=Op.FULLY_CONNECTED, in_channels=16, out_channels=10),
                inputs=("pool",),
            ),
        ),
    )


def random_tensors(plan: NetworkPlan) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    tensors = {}
    for op in plan.ops:
        if op.kernel.op.has_weights:
            tensors[f"{op.name}.weight"] = generator.standard_normal(op.kernel.weight_shape).astype(np.float32)
            tensors[f"{op.name}.bias"] = generator.standard_normal(op.kernel.out_channels).astype(np.float32)
    return tensors


def test_a_network_agrees_with_torch() -> None:
    plan = residual_plan()
    tensors = random_tensors(plan)
    x = np.random.default_rng(1).standard_normal((3, 16, 16)).astype(np.float32)
    t = {name: torch.from_numpy(values) for name, values in tensors.items()}
    first = F.relu(F.conv2d(torch.from_numpy(x)[None], t["conv1.weight"], t["conv1.bias"], padding=1))
    shortcut = F.pad(first[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
    second = F.relu(F.conv2d(first, t["conv2.weight"], t["conv2.bias"], stride=2, padding=1))
    third = F.relu(F.conv2d(second, t["conv3.weight"], t["conv3.bias"], padding=1) + shortcut)
    expected = F.linear(third.mean((2, 3)), t["linear.weight"][:, :, 0, 0], t["linear.bias"]).numpy().reshape(-1)

    got = run_model(plan_to_tflite(plan, tensors), x)

    assert got.shape == (10,)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_fully_connected_inside_a_network_keeps_four_dimensions() -> None:
    linear = KernelSpec(op=Op.FULLY_CONNECTED, in_channels=3, out_channels=5, activation=Activation.RELU)
    conv = KernelSpec(op=Op.CONV2D, in_channels=5, out_channels=4)
    plan = NetworkPlan(
        name="head",
        input_shape=(3, 1, 1),
        ops=(
            PlanOp(name="linear", kernel=linear, inputs=("input",)),
            PlanOp(name="conv", kernel=conv, inputs=("linear",)),
        ),
    )
    tensors = random_tensors(plan)
    x = np.ones((3, 1, 1), np.float32)
    hidden = np.maximum(tensors["linear.weight"][:, :, 0, 0] @ x[:, 0, 0] + tensors["linear.bias"], 0)
    expected = tensors["conv.weight"][:, :, 0, 0] @ hidden + tensors["conv.bias"]
    np.testing.assert_allclose(run_model(plan_to_tflite(plan, tensors), x), expected, rtol=1e-5, atol=1e-5)


def test_the_plan_is_kept_in_the_file_and_the_bytes_are_reproducible() -> None:
    plan = residual_plan()
    model = plan_to_tflite(plan, random_tensors(plan))
    assert read_plan(model) == plan
    assert plan_to_tflite(plan, random_tensors(plan)) == model


def test_weights_are_aligned_for_xnnpack() -> None:
    plan = residual_plan()
    parsed = schema.Model.GetRootAsModel(plan_to_tflite(plan, random_tensors(plan)), 0)
    starts = [
        parsed.Buffers(i)._tab.Vector(parsed.Buffers(i)._tab.Offset(4))
        for i in range(parsed.BuffersLength())
        if parsed.Buffers(i).DataLength()
    ]
    assert len(starts) > 8
    assert all(start % 16 == 0 for start in starts)


def test_codes_are_those_of_the_schema() -> None:
    for code in tflite_graph.BuiltinOperator:
        assert getattr(schema.BuiltinOperator, code.name) == code
    names = {name.lower(): value for name, value in vars(schema.BuiltinOptions).items() if isinstance(value, int)}
    for kind in tflite_graph.BuiltinOptions:
        if kind is not tflite_graph.BuiltinOptions.NONE:
            assert names[kind.name.replace("_", "").lower() + "options"] == kind
    assert schema.TensorType.FLOAT32 == tflite_graph.TensorType.FLOAT32
    assert schema.TensorType.INT32 == tflite_graph.TensorType.INT32
    assert (schema.Padding.SAME, schema.Padding.VALID) == (tflite_graph.Padding.SAME, tflite_graph.Padding.VALID)


def test_every_field_reads_back_through_the_schema() -> None:
    """Slot numbers: a field in a wrong slot would show up under another name or not at all."""
    plan = residual_plan()
    parsed = schema.ModelT.InitFromPackedBuf(plan_to_tflite(plan, random_tensors(plan)), 0)
    graph = parsed.subgraphs[0]
    assert parsed.version == 3
    assert graph.name == b"two stages"
    assert [graph.tensors[i].name for i in graph.inputs] == [b"input"]
    assert list(graph.tensors[graph.outputs[0]].shape) == [1, 10]
    codes = [parsed.operatorCodes[op.opcodeIndex].builtinCode for op in graph.operators]
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    assert [names[code] for code in codes] == [
        "CONV_2D", "STRIDED_SLICE", "PAD", "PAD", "CONV_2D", "CONV_2D", "ADD", "MEAN", "FULLY_CONNECTED",
    ]  # fmt: skip
    first, strided, last = graph.operators[0], graph.operators[4], graph.operators[8]
    assert isinstance(first.builtinOptions, schema.Conv2DOptionsT)
    assert first.builtinOptions.padding == schema.Padding.SAME
    assert first.builtinOptions.fusedActivationFunction == schema.ActivationFunctionType.RELU
    assert (strided.builtinOptions.strideH, strided.builtinOptions.strideW) == (2, 2)
    assert (strided.builtinOptions.dilationHFactor, strided.builtinOptions.dilationWFactor) == (1, 1)
    assert strided.builtinOptions.padding == schema.Padding.VALID
    assert graph.operators[7].builtinOptions.keepDims
    assert not last.builtinOptions.keepNumDims
    assert [m.name for m in parsed.metadata] == [b"kerf.plan"]


def test_depthwise_and_pool_options_read_back_through_the_schema() -> None:
    depthwise = KernelSpec(
        op=Op.DEPTHWISE_CONV2D, in_channels=4, out_channels=4, input_h=9, input_w=9, kernel_h=3, kernel_w=3, stride=2,
        activation=Activation.RELU6,
    )  # fmt: skip
    pool = KernelSpec(
        op=Op.AVG_POOL, in_channels=4, out_channels=4, input_h=9, input_w=9, kernel_h=2, kernel_w=3, stride=2
    )
    options = [
        schema.ModelT.InitFromPackedBuf(plan_to_tflite(kernel_plan(k), kernel_plan_tensors(k)), 0)
        .subgraphs[0]
        .operators[0]
        .builtinOptions
        for k in (depthwise, pool)
    ]
    assert (options[0].strideH, options[0].strideW, options[0].depthMultiplier) == (2, 2, 1)
    assert options[0].fusedActivationFunction == schema.ActivationFunctionType.RELU6
    assert (options[1].filterHeight, options[1].filterWidth, options[1].strideH, options[1].strideW) == (2, 3, 2, 2)
    assert options[1].padding == schema.Padding.VALID


def test_convolutions_run_in_xnnpack() -> None:
    plan = residual_plan()
    interpreter = interpreter_module.Interpreter(model_content=plan_to_tflite(plan, random_tensors(plan)))
    interpreter.allocate_tensors()
    operators = interpreter._get_ops_details()
    delegated = {int(t) for op in operators if op["op_name"] == "DELEGATE" for t in op["inputs"]}
    heavy = [op for op in operators if op["op_name"] in ("CONV_2D", "FULLY_CONNECTED")]
    assert len(heavy) == 4
    assert all(int(op["inputs"][1]) in delegated for op in heavy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("conv2.bias"), "'conv2.bias' is missing"),
        (lambda t: t.update({"conv2.weight": t["conv2.weight"][:1]}), "has shape (1, 8, 3, 3)"),
        (lambda t: t.update({"conv2.bias": t["conv2.bias"].astype(np.float64)}), "float64"),
        (lambda t: t.update({"conv2.bias": np.full(16, np.nan, np.float32)}), "not finite"),
    ],
)
def test_wrong_tensors_are_named(change: Any, words: str) -> None:
    plan = residual_plan()
    tensors = random_tensors(plan)
    change(tensors)
    with pytest.raises(ContractError, match=re.escape(words)):
        plan_to_tflite(plan, tensors)


def test_a_fully_connected_layer_over_an_image_says_what_to_use_instead() -> None:
    kernel = KernelSpec(op=Op.FULLY_CONNECTED, in_channels=4, out_channels=2, input_h=7, input_w=7)
    with pytest.raises(ContractError, match="conv2d with a 7x7 kernel"):
        plan_to_tflite(kernel_plan(kernel), kernel_plan_tensors(kernel))


@pytest.mark.parametrize("model", [b"", b"PK\x03\x04" + bytes(100), b"\xff\xff\xff\x7fTFL3" + bytes(50)])
def test_reading_a_plan_from_other_files_is_a_contract_error(model: bytes) -> None:
    with pytest.raises(ContractError):
        read_plan(model)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_file_never_crashes_the_reader(data: st.DataObject) -> None:
    kernel = KernelSpec(op=Op.CONV2D, in_channels=2, out_channels=2, input_h=3, input_w=3)
    model = bytearray(plan_to_tflite(kernel_plan(kernel), kernel_plan_tensors(kernel)))
    for _ in range(data.draw(st.integers(1, 8))):
        model[data.draw(st.integers(8, len(model) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ContractError):
        read_plan(bytes(model))


def test_a_model_of_other_origin_has_no_plan() -> None:
    writer = tflite_graph.GraphWriter("other")
    x = writer.activation("x", (1, 2, 2, 1))
    y = writer.operator(
        tflite_graph.BuiltinOperator.RELU,
        [x],
        writer.activation("y", (1, 2, 2, 1)),
        tflite_graph.Options(kind=tflite_graph.BuiltinOptions.NONE),
    )
    assert read_plan(writer.finish([x], [y])) is None
