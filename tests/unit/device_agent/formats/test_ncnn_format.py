"""ncnn files: their text, and what ncnn computes from them, against the reference in numpy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from device_agent.contracts import (
    NETWORK_INPUT,
    Activation,
    ContractError,
    KernelSpec,
    NetworkPlan,
    Op,
    PlanOp,
)
from device_agent.formats.ncnn import INPUT_BLOB, RESIDUAL_BLOB, NcnnModel, plan_to_ncnn
from device_agent.runtimes import RuntimeUnavailable, make_runtime
from device_agent.runtimes.reference import run_network
from device_agent.synthesis import kernel_plan, kernel_plan_tensors, synthesize_input, synthesize_weights
from tests.unit.device_agent.runtimes.runtime_samples import KERNELS, conv, same, small_network


def layers_of(model: NcnnModel) -> list[dict[str, Any]]:
    magic, counts, *lines = model.param.splitlines()
    assert magic == "7767517"
    layers = []
    for line in lines:
        kind, name, num_inputs, num_outputs, *rest = line.split()
        split = int(num_inputs), int(num_inputs) + int(num_outputs)
        layers.append(
            {"kind": kind, "name": name, "inputs": rest[: split[0]], "outputs": rest[split[0] : split[1]],
             "parameters": dict(word.split("=", 1) for word in rest[split[1] :])}
        )  # fmt: skip
    num_layers, num_blobs = map(int, counts.split())
    assert num_layers == len(layers)
    assert num_blobs == sum(len(layer["outputs"]) for layer in layers)
    return layers


def branching_network() -> tuple[NetworkPlan, dict[str, np.ndarray]]:
    """Tensors with several readers, sums, a shortcut, both pools, and convolutions behind a global pooling."""
    relu6 = Activation.RELU6
    shortcut = KernelSpec(
        op=Op.SHORTCUT_PAD, in_channels=8, out_channels=16, input_h=9, input_w=9, stride=2, pad_channels_before=4,
        activation=Activation.RELU,
    )  # fmt: skip
    one = {"kernel_h": 1, "kernel_w": 1, "padding": 0}
    steps: list[tuple[str, KernelSpec, tuple[str, ...], str | None]] = [
        ("stem conv", conv(3, 8, 9, activation=relu6), (NETWORK_INPUT,), None),
        ("deep", same(Op.DEPTHWISE_CONV2D, 8, 9, kernel_h=3, kernel_w=3, padding=1), ("stem conv",), None),
        ("body", conv(8, 8, 9, residual=True, activation=Activation.RELU), ("deep",), "stem conv"),
        ("sum", same(Op.ADD, 8, 9, activation=relu6), ("body", "stem conv"), None),
        ("short", shortcut, ("sum",), None),
        ("down", conv(8, 16, 9, stride=2, residual=True), ("sum",), "short"),
        ("max", same(Op.MAX_POOL, 16, 5, kernel_h=3, kernel_w=3, stride=2, padding=1), ("down",), None),
        ("mean", same(Op.AVG_POOL, 16, 3, kernel_h=3, kernel_w=3, padding=1), ("max",), None),
        ("small", same(Op.GLOBAL_AVG_POOL, 16, 3, activation=Activation.SILU), ("mean",), None),
        ("gate", conv(16, 16, 1, activation=Activation.SIGMOID, **one), ("small",), None),
        ("gated", same(Op.MUL, 16, 3, activation=Activation.HARDSWISH), ("mean", "gate"), None),
        (
            "both",
            KernelSpec(op=Op.CONCAT, in_channels=16, out_channels=32, input_h=3, input_w=3),
            ("gated", "mean"),
            None,
        ),
        ("narrow", conv(32, 16, 3, activation=Activation.HARDSIGMOID, **one), ("both",), None),
        ("global", same(Op.GLOBAL_AVG_POOL, 16, 3, activation=Activation.RELU), ("narrow",), None),
        ("squeeze", conv(16, 4, 1, activation=relu6, **one), ("global",), None),
        (
            "head",
            KernelSpec(op=Op.FULLY_CONNECTED, in_channels=4, out_channels=5, activation=relu6),
            ("squeeze",),
            None,
        ),
        ("last", conv(5, 6, 1, **one), ("head",), None),
    ]
    plan = NetworkPlan(
        name="branching",
        input_shape=(3, 9, 9),
        ops=tuple(
            PlanOp(name=name, kernel=replace(kernel, seed=i), inputs=inputs, residual=residual)
            for i, (name, kernel, inputs, residual) in enumerate(steps)
        ),
    )
    tensors = {f"{op.name}.{part}": values for op in plan.ops for part, values in synthesize_weights(op.kernel).items()}
    return plan, tensors


def test_every_blob_is_written_before_its_one_reader_and_names_are_words() -> None:
    model = plan_to_ncnn(*branching_network())
    unread: set[str] = set()
    names = set()
    for layer in layers_of(model):
        for blob in layer["inputs"]:
            unread.remove(blob)
        assert unread.isdisjoint(layer["outputs"])
        unread.update(layer["outputs"])
        names.add(layer["name"])
    assert unread == {model.output_blob}
    assert len(names) == len(layers_of(model))


def test_weights_follow_their_tag_in_the_order_of_the_layers() -> None:
    plan, tensors = small_network()
    model = plan_to_ncnn(plan, tensors)
    offset = 0
    for op in plan.ops:
        if not op.kernel.op.has_weights:
            continue
        assert model.bin[offset : offset + 4] == b"\0\0\0\0"
        for part in ("weight", "bias"):
            values = tensors[f"{op.name}.{part}"].reshape(-1)
            start = offset + (4 if part == "weight" else 4 + 4 * op.kernel.num_weights)
            stored = np.frombuffer(model.bin, "<f4", len(values), start)
            np.testing.assert_array_equal(stored, values)
        offset += 4 + 4 * (op.kernel.num_weights + op.kernel.out_channels)
    assert offset == len(model.bin)


def test_activations_are_fused_but_behind_a_residual() -> None:
    kernel = conv(activation=Activation.RELU6)
    fused = layers_of(plan_to_ncnn(kernel_plan(kernel), kernel_plan_tensors(kernel)))
    assert fused[-1]["kind"] == "Convolution"
    assert fused[-1]["parameters"]["-23310"] == "2,0.0,6.0"
    kernel = replace(kernel, residual=True)
    apart = layers_of(plan_to_ncnn(kernel_plan(kernel), kernel_plan_tensors(kernel)))
    assert [layer["kind"] for layer in apart] == ["Input", "Input", "Convolution", "BinaryOp", "Clip"]
    assert [layer["outputs"][0] for layer in apart[:2]] == [INPUT_BLOB, RESIDUAL_BLOB]
    assert "9" not in apart[2]["parameters"]


def test_wrong_tensors_are_refused() -> None:
    plan, tensors = small_network()
    with pytest.raises(ContractError, match=r"body\.bias.*missing"):
        plan_to_ncnn(plan, {name: values for name, values in tensors.items() if name != "body.bias"})
    with pytest.raises(ContractError, match="not finite"):
        plan_to_ncnn(plan, tensors | {"stem.bias": np.full(8, np.nan, np.float32)})


def test_a_fully_connected_layer_over_an_image_is_refused() -> None:
    kernel = KernelSpec(op=Op.FULLY_CONNECTED, in_channels=3, out_channels=4, input_h=2, input_w=2)
    with pytest.raises(ContractError, match="lower it as a conv2d with a 2x2 kernel"):
        plan_to_ncnn(kernel_plan(kernel), kernel_plan_tensors(kernel))


@pytest.mark.parametrize("name", KERNELS)
def test_every_sample_kernel_has_an_ncnn_form(name: str) -> None:
    kernel = KERNELS[name]
    assert layers_of(plan_to_ncnn(kernel_plan(kernel), kernel_plan_tensors(kernel)))


def test_ncnn_computes_what_the_reference_does() -> None:
    plan, tensors = branching_network()
    try:
        executable = make_runtime("ncnn").load_plan(plan, tensors, 1)  # type: ignore[attr-defined]
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    for seed in range(2):
        x = synthesize_input(plan.input_shape, seed)
        expected = run_network(plan, tensors, x).reshape(-1)
        np.testing.assert_allclose(executable.run(x), expected, rtol=1e-4, atol=1e-5)
