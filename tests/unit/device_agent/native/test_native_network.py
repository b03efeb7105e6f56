"""Whole networks on the executor against torch: layouts, shared buffers, branches, and times per operator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
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
from device_agent.formats.packed import read_packed, write_packed
from device_agent.native.errors import UnsupportedKernelError
from device_agent.native.executor import NativeNetwork
from device_agent.native.library import Kind, load_library
from device_agent.synthesis import kernel_plan, synthesize_input, synthesize_weights
from tests.unit.device_agent.native.native_samples import convolutions, prunings, torch_network

Tensors = dict[str, np.ndarray]


def weights_of(plan: NetworkPlan) -> Tensors:
    return {f"{op.name}.{name}": tensor for op in plan.ops for name, tensor in synthesize_weights(op.kernel).items()}


def check_network(plan: NetworkPlan, seed: int = 0, tune: bool = False) -> None:
    tensors = weights_of(plan)
    network = NativeNetwork(plan, tensors, tune=tune)
    for offset in range(2):
        x = synthesize_input(plan.input_shape, seed + offset)
        expected = torch_network(plan, tensors, x)
        scale = max(1.0, float(np.abs(expected).max()))
        output = network.run(x)
        assert output.shape == plan.output_shape
        np.testing.assert_allclose(output / scale, expected / scale, atol=2e-5)


@st.composite
def networks(draw: st.DrawFn) -> NetworkPlan:
    """A random graph: every operator reads any earlier tensor, so that buffers live for odd spans."""
    shapes = {"input": (draw(st.integers(1, 9)), draw(st.integers(1, 14)), draw(st.integers(1, 14)))}
    ops: list[PlanOp] = []
    for index in range(draw(st.integers(1, 9))):
        source = draw(st.sampled_from(sorted(shapes)))
        channels, height, width = shapes[source]
        name = f"op{index}"
        common = {"in_channels": channels, "input_h": height, "input_w": width, "seed": index}
        activation = draw(st.sampled_from(Activation))
        inputs, residual = (source,), None
        choice = draw(
            st.sampled_from(
                (
                    *("conv", "conv", "conv", "grouped", "depthwise", "pool", "add"),
                    *("shortcut", "global", "mul", "concat", "part", "shuffle"),
                )
            )
        )
        if choice == "conv":
            extent = draw(st.sampled_from(((1, 1), (3, 3), (5, 5))))
            kernel = KernelSpec(
                op=Op.CONV2D,
                out_channels=draw(st.integers(1, 9)),
                kernel_h=extent[0],
                kernel_w=extent[1],
                padding=extent[0] // 2,
                stride=draw(st.sampled_from((1, 1, 2))),
                activation=activation,
                pruning=draw(prunings(extent)),
                **common,
            )
            fitting = [other for other, shape in shapes.items() if shape == _output_shape(kernel)]
            if fitting and draw(st.booleans()):
                residual = draw(st.sampled_from(fitting))
                kernel = _with_residual(kernel)
        elif choice == "depthwise":
            kernel = KernelSpec(
                op=Op.DEPTHWISE_CONV2D,
                out_channels=channels * draw(st.sampled_from((1, 1, 2))),
                kernel_h=3,
                kernel_w=3,
                padding=1,
                stride=draw(st.sampled_from((1, 2))),
                activation=activation,
                **common,
            )
        elif choice == "pool" and min(height, width) >= 2:
            kernel = KernelSpec(
                op=draw(st.sampled_from((Op.MAX_POOL, Op.AVG_POOL))),
                out_channels=channels,
                kernel_h=2,
                kernel_w=2,
                stride=draw(st.sampled_from((1, 2))),
                activation=activation,
                **common,
            )
        elif choice == "shortcut":
            kernel = KernelSpec(
                op=Op.SHORTCUT_PAD,
                out_channels=channels + 2,
                pad_channels_before=1,
                stride=draw(st.sampled_from((1, 2))),
                activation=activation,
                **common,
            )
        elif choice == "global":
            kernel = KernelSpec(op=Op.GLOBAL_AVG_POOL, out_channels=channels, activation=activation, **common)
        elif choice == "grouped" and channels % 2 == 0:
            kernel = KernelSpec(
                op=Op.CONV2D,
                out_channels=2 * draw(st.integers(1, 9)),
                kernel_h=3,
                kernel_w=3,
                padding=1,
                stride=draw(st.sampled_from((1, 2))),
                groups=2,
                activation=activation,
                **common,
            )
        elif choice == "part" and channels > 1:
            kernel = KernelSpec(
                op=draw(st.sampled_from((Op.FIRST_CHANNELS, Op.LAST_CHANNELS))),
                out_channels=draw(st.integers(1, channels - 1)),
                activation=activation,
                **common,
            )
        elif choice == "shuffle" and channels % 2 == 0:
            kernel = KernelSpec(op=Op.CHANNEL_SHUFFLE, out_channels=channels, groups=2, activation=activation, **common)
        elif choice == "mul" and (channels, 1, 1) in shapes.values():
            kernel = KernelSpec(op=Op.MUL, out_channels=channels, activation=activation, **common)
            inputs = (source, draw(st.sampled_from([o for o, shape in shapes.items() if shape == (channels, 1, 1)])))
        elif choice == "concat":
            second = draw(st.sampled_from([o for o, shape in shapes.items() if shape[1:] == (height, width)]))
            kernel = KernelSpec(
                op=Op.CONCAT, out_channels=channels + shapes[second][0], activation=activation, **common
            )
            inputs = (source, second)
        else:
            kernel = KernelSpec(op=Op.ADD, out_channels=channels, activation=activation, **common)
            inputs = (source, draw(st.sampled_from([o for o, shape in shapes.items() if shape == shapes[source]])))
        ops.append(PlanOp(name=name, kernel=kernel, inputs=inputs, residual=residual))
        shapes[name] = _output_shape(kernel)
    return NetworkPlan(name="random", input_shape=shapes["input"], ops=tuple(ops))


def _output_shape(kernel: KernelSpec) -> tuple[int, int, int]:
    return (kernel.out_channels, kernel.output_h, kernel.output_w)


def _with_residual(kernel: KernelSpec) -> KernelSpec:
    return replace(kernel, residual=True)


@settings(max_examples=200, deadline=None)
@given(plan=networks(), seed=st.integers(0, 100))
def test_random_networks_equal_torch(plan: NetworkPlan, seed: int) -> None:
    check_network(plan, seed)


@settings(max_examples=60, deadline=None)
@given(kernel=convolutions())
def test_a_network_of_one_convolution_equals_torch(kernel: KernelSpec) -> None:
    if not kernel.residual:
        check_network(kernel_plan(kernel))


def residual_network() -> NetworkPlan:
    """Two stages with a projection, in the shape of ResNet: stem, pool, blocks, classifier."""
    pruning = WeightPruning(scheme=PruningScheme.GROUP, density=0.3, block_filters=4)

    def conv(
        i: int, o: int, extent: int, kernel: int, stride: int, residual: bool = False, relu: bool = True
    ) -> KernelSpec:
        return KernelSpec(
            op=Op.CONV2D,
            in_channels=i,
            out_channels=o,
            input_h=extent,
            input_w=extent,
            kernel_h=kernel,
            kernel_w=kernel,
            stride=stride,
            padding=kernel // 2,
            residual=residual,
            activation=Activation.RELU if relu else Activation.NONE,
            pruning=pruning,
            seed=i + o + kernel,
        )

    pool = KernelSpec(
        op=Op.MAX_POOL,
        in_channels=12,
        out_channels=12,
        input_h=16,
        input_w=16,
        kernel_h=3,
        kernel_w=3,
        stride=2,
        padding=1,
    )
    mean = KernelSpec(op=Op.GLOBAL_AVG_POOL, in_channels=22, out_channels=22, input_h=4, input_w=4)
    ops = (
        PlanOp(name="stem", kernel=conv(3, 12, 32, 7, 2), inputs=("input",)),
        PlanOp(name="pool", kernel=pool, inputs=("stem",)),
        PlanOp(name="a1", kernel=conv(12, 12, 8, 3, 1), inputs=("pool",)),
        PlanOp(name="a2", kernel=conv(12, 12, 8, 3, 1, residual=True), inputs=("a1",), residual="pool"),
        PlanOp(name="b1", kernel=conv(12, 22, 8, 3, 2), inputs=("a2",)),
        PlanOp(name="project", kernel=conv(12, 22, 8, 1, 2, relu=False), inputs=("a2",)),
        PlanOp(name="b2", kernel=conv(22, 22, 4, 3, 1, residual=True), inputs=("b1",), residual="project"),
        PlanOp(name="mean", kernel=mean, inputs=("b2",)),
        PlanOp(
            name="classify",
            kernel=KernelSpec(op=Op.FULLY_CONNECTED, in_channels=22, out_channels=10),
            inputs=("mean",),
        ),
    )
    return NetworkPlan(name="residual", input_shape=(3, 32, 32), ops=ops)


def test_a_residual_network_equals_torch() -> None:
    check_network(residual_network(), tune=True)


def test_strided_convolutions_pack_their_input_themselves() -> None:
    """The stem, the 3x3 convolution of stride 2 and the projection beside it: none splits a whole tensor."""
    plan = residual_network()
    network = NativeNetwork(plan, weights_of(plan), tune=False)
    steps = [step for step in network._run._array if step.stride == 2 and step.kind in (Kind.CONV, Kind.SPLIT)]
    assert {(step.kind, step.pack_rows > 0) for step in steps} == {(Kind.CONV, True)}
    assert len(steps) >= 3


def test_bits_are_the_same_on_all_backends_with_fma_and_after_packing() -> None:
    plan = residual_network()
    tensors = weights_of(plan)
    x = synthesize_input(plan.input_shape, 3)
    backends = [b for b in load_library().backends if b.is_supported and b.has_fma]
    outputs = {NativeNetwork(plan, tensors, isa=b.name).run(x).tobytes() for b in backends}
    read_plan, read_tensors = read_packed(write_packed(plan, tensors))
    outputs.add(NativeNetwork(read_plan, read_tensors, isa=backends[0].name if backends else None).run(x).tobytes())
    assert len(outputs) == 1


def test_every_operator_has_a_time() -> None:
    plan = residual_network()
    network = NativeNetwork(plan, weights_of(plan), tune=False)
    network.set_input(synthesize_input(plan.input_shape, 0))
    times_ns = network.op_ns(rounds=5)
    assert len(times_ns) == len(plan.ops)
    assert all(time_ns >= 0 for time_ns in times_ns)
    assert sum(times_ns) > 0


def test_buffers_are_shared_by_tensors_that_do_not_live_together() -> None:
    kernel = KernelSpec(
        op=Op.CONV2D, in_channels=8, out_channels=8, input_h=32, input_w=32, kernel_h=3, kernel_w=3, padding=1
    )

    def chain(length: int) -> NetworkPlan:
        ops = [PlanOp(name=f"c{i}", kernel=kernel, inputs=(f"c{i - 1}" if i else "input",)) for i in range(length)]
        return NetworkPlan(name="chain", input_shape=(8, 32, 32), ops=tuple(ops))

    def memory(length: int) -> int:
        plan = chain(length)
        return NativeNetwork(plan, weights_of(plan), tune=False).memory_bytes

    image_bytes = 4 * 8 * 32 * 32
    # Ten more layers need their weights and index lists, and no more images.
    assert memory(14) - memory(4) < 10 * 2 * 4 * kernel.num_weights
    assert memory(14) < 8 * image_bytes + 14 * 2 * 4 * kernel.num_weights


def test_refusals() -> None:
    plan = residual_network()
    tensors = weights_of(plan)
    network = NativeNetwork(plan, tensors, tune=False)
    with pytest.raises(ContractError, match=r"input has shape \(3, 32, 31\)"):
        network.run(np.zeros((3, 32, 31), np.float32))
    missing = {name: tensor for name, tensor in tensors.items() if name != "a1.bias"}
    with pytest.raises(ContractError, match=r"'a1\.bias'"):
        NativeNetwork(plan, missing)
    add = KernelSpec(op=Op.ADD, in_channels=2, out_channels=2, input_h=3, input_w=3)
    with pytest.raises(UnsupportedKernelError, match="second input"):
        NativeNetwork(kernel_plan(add), {})
