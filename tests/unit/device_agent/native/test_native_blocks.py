"""A convolution and the depthwise convolution or pool that reads it, run block by block."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.contracts import Activation, KernelSpec, NetworkPlan, Op, PlanOp, PruningScheme, WeightPruning
from device_agent.native import blocks
from device_agent.native.blocks import blockwise_pairs, channels_per_block
from device_agent.native.executor import NativeNetwork
from device_agent.native.library import Kind
from device_agent.synthesis import synthesize_input, synthesize_weights
from tests.unit.device_agent.native.native_samples import prunings, torch_network


@st.composite
def pairs(draw: st.DrawFn) -> NetworkPlan:
    """A convolution, a depthwise convolution or pool, and a 3x3 convolution after it that wants padding."""
    extent = draw(st.sampled_from(((1, 1), (3, 3))))
    channels = draw(st.integers(1, 30))
    conv = KernelSpec(
        op=Op.CONV2D,
        in_channels=draw(st.integers(1, 5)),
        out_channels=channels,
        input_h=draw(st.integers(3, 14)),
        input_w=draw(st.integers(3, 14)),
        kernel_h=extent[0],
        kernel_w=extent[1],
        padding=extent[0] // 2,
        stride=draw(st.sampled_from((1, 2))),
        activation=Activation.RELU,
        pruning=draw(prunings(extent)),
    )
    reader = KernelSpec(
        op=draw(st.sampled_from((Op.DEPTHWISE_CONV2D, Op.DEPTHWISE_CONV2D, Op.MAX_POOL, Op.AVG_POOL))),
        in_channels=channels,
        out_channels=channels,
        input_h=conv.output_h,
        input_w=conv.output_w,
        kernel_h=3,
        kernel_w=3,
        padding=1,
        stride=draw(st.sampled_from((1, 2, 3))),
        seed=1,
    )
    after = KernelSpec(
        op=Op.CONV2D,
        in_channels=channels,
        out_channels=3,
        input_h=reader.output_h,
        input_w=reader.output_w,
        kernel_h=3,
        kernel_w=3,
        padding=1,
        seed=2,
    )
    return NetworkPlan(
        name="pair",
        input_shape=(conv.in_channels, conv.input_h, conv.input_w),
        ops=(
            PlanOp(name="conv", kernel=conv, inputs=("input",)),
            PlanOp(name="reader", kernel=reader, inputs=("conv",)),
            PlanOp(name="after", kernel=after, inputs=("reader",)),
        ),
    )


def weights_of(plan: NetworkPlan) -> dict[str, np.ndarray]:
    return {f"{op.name}.{name}": tensor for op in plan.ops for name, tensor in synthesize_weights(op.kernel).items()}


@settings(max_examples=100, deadline=None)
@given(plan=pairs(), seed=st.integers(0, 100), block_bytes=st.sampled_from((1, 600, 3000)))
def test_blocks_leave_the_bits_alone(plan: NetworkPlan, seed: int, block_bytes: int) -> None:
    tensors = weights_of(plan)
    x = synthesize_input(plan.input_shape, seed)
    outputs = []
    for size in (block_bytes, 1 << 40):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blocks, "BLOCK_BYTES", size)
            outputs.append(NativeNetwork(plan, tensors, tune=False).run(x))
    assert outputs[0].tobytes() == outputs[1].tobytes()
    np.testing.assert_allclose(outputs[0], torch_network(plan, tensors, x), rtol=1e-4, atol=1e-4)


def expansion(channels: int = 96, extent: int = 112) -> NetworkPlan:
    conv = KernelSpec(op=Op.CONV2D, in_channels=16, out_channels=channels, input_h=extent, input_w=extent)
    depthwise = KernelSpec(
        op=Op.DEPTHWISE_CONV2D,
        in_channels=channels,
        out_channels=channels,
        input_h=extent,
        input_w=extent,
        kernel_h=3,
        kernel_w=3,
        stride=2,
        padding=1,
    )
    return NetworkPlan(
        name="expansion",
        input_shape=(16, extent, extent),
        ops=(
            PlanOp(name="conv", kernel=conv, inputs=("input",)),
            PlanOp(name="depthwise", kernel=depthwise, inputs=("conv",)),
        ),
    )


def test_the_tensor_between_is_never_there_as_a_whole() -> None:
    plan = expansion()
    network = NativeNetwork(plan, weights_of(plan), tune=False)
    between_bytes = 4 * 96 * 112 * 112
    # The input twice, with and without padding, and the output twice: as planes, and plain.
    tensor_bytes = 4 * (2 * 16 * 112 * 112 + 2 * 96 * 56 * 56)
    assert network.memory_bytes < tensor_bytes + between_bytes // 4
    kinds = [step.kind for step in network._run._array]
    num_blocks = 96 // channels_per_block(plan.ops[0].kernel)
    assert num_blocks > 4
    assert kinds.count(Kind.DEPTHWISE) == num_blocks
    network.set_input(synthesize_input(plan.input_shape, 0))
    assert all(time_ns > 0 for time_ns in network.op_ns(rounds=1))


def test_which_pairs_run_in_blocks() -> None:
    plan = expansion()
    conv = plan.ops[0]
    assert dict(blockwise_pairs(plan)) == {"depthwise": conv}
    assert not blockwise_pairs(expansion(extent=7))  # small enough for the cache as it is
    add = KernelSpec(op=Op.ADD, in_channels=96, out_channels=96, input_h=112, input_w=112)
    read_twice = (*plan.ops, PlanOp(name="add", kernel=add, inputs=("conv", "conv")))
    assert not blockwise_pairs(NetworkPlan(name="twice", input_shape=plan.input_shape, ops=read_twice))
    assert not blockwise_pairs(NetworkPlan(name="alone", input_shape=plan.input_shape, ops=(conv,)))


@pytest.mark.parametrize(("filters", "size"), [(1, 4), (3, 12), (4, 4), (8, 8)])
def test_blocks_do_not_cut_the_structure_of_the_zeros(filters: int, size: int) -> None:
    pruning = WeightPruning(scheme=PruningScheme.GROUP, density=0.5, block_filters=filters)
    kernel = KernelSpec(op=Op.CONV2D, in_channels=16, out_channels=96, input_h=112, input_w=112, pruning=pruning)
    assert channels_per_block(kernel) == size
