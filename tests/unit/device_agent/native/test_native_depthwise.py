"""The depthwise kernel against torch and, bit for bit, against the sparse kernel that it replaces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.contracts import Activation, KernelSpec, Op, PruningScheme, WeightPruning
from device_agent.native.executor import NativeKernel, NativeNetwork
from device_agent.native.library import Kind, load_library
from device_agent.synthesis import kernel_inputs, kernel_plan, synthesize_weights
from tests.unit.device_agent.native.native_samples import CLAMPS, torch_kernel

ISAS = [backend.name for backend in load_library().backends if backend.is_supported]
FMA_ISAS = [backend.name for backend in load_library().backends if backend.is_supported and backend.has_fma]
#: Half dense by declaration, so that the sparse kernel takes it, whatever the weights are.
BY_SPARSE_KERNEL = WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.4)


@st.composite
def depthwise_kernels(draw: st.DrawFn) -> KernelSpec:
    """Rows from one column to several strips of the longest vectors; all paddings that the kernel takes."""
    extent = draw(st.sampled_from((3, 5)))
    padding = draw(st.integers(0, extent // 2))
    channels = draw(st.integers(1, 5))
    return KernelSpec(
        op=Op.DEPTHWISE_CONV2D,
        in_channels=channels,
        out_channels=channels,
        input_h=draw(st.integers(extent - 2 * padding, 12)),
        input_w=draw(st.integers(extent - 2 * padding, 40) | st.integers(60, 170)),
        kernel_h=extent,
        kernel_w=extent,
        stride=draw(st.sampled_from((1, 2))),
        padding=padding,
        activation=draw(st.sampled_from(CLAMPS)),
        seed=draw(st.integers(0, 1000)),
    )


@settings(max_examples=300, deadline=None)
@given(kernel=depthwise_kernels())
def test_depthwise_equals_torch_and_the_sparse_kernel(kernel: KernelSpec) -> None:
    x, _ = kernel_inputs(kernel)
    tensors = synthesize_weights(kernel)
    expected = torch_kernel(kernel, tensors, x)
    outputs = {}
    for isa in ISAS:
        native = NativeKernel(kernel, isa=isa, tune=False)
        assert [step.kind for step in native._run._array] == [Kind.DEPTHWISE]
        outputs[isa] = native.run(x)
        np.testing.assert_allclose(outputs[isa], expected, rtol=1e-5, atol=1e-5, err_msg=isa)
    sparse = NativeKernel(replace(kernel, pruning=BY_SPARSE_KERNEL), tensors, tune=False)
    assert Kind.DEPTHWISE not in [step.kind for step in sparse._run._array]
    if FMA_ISAS:
        bits = {outputs[isa].tobytes() for isa in FMA_ISAS}
        assert bits == {sparse.run(x).tobytes()}


@settings(max_examples=60, deadline=None)
@given(kernel=depthwise_kernels())
def test_a_network_of_one_depthwise_convolution_reads_its_input_as_it_is(kernel: KernelSpec) -> None:
    """Nothing is padded, copied or split: the tensors are plain (c, h, w) apart from whole vectors per plane."""
    x, _ = kernel_inputs(kernel)
    weights = synthesize_weights(kernel)
    network = NativeNetwork(
        kernel_plan(kernel), {f"kernel.{name}": tensor for name, tensor in weights.items()}, tune=False
    )
    kinds = [step.kind for step in network._run._array]
    one_element = kernel.output_h == kernel.output_w == 1
    assert kinds == ([Kind.DEPTHWISE] if one_element else [Kind.DEPTHWISE, Kind.SPLIT])
    np.testing.assert_allclose(network.run(x), torch_kernel(kernel, weights, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("output_w", range(4, 10))
def test_narrow_rows_have_the_bits_of_the_sparse_kernel(channels: int, stride: int, output_w: int) -> None:
    """Rows of 5 to 8 columns lie in vectors of two channels, where vectors have 16 lanes."""
    for input_w in range((output_w - 1) * stride + 1, output_w * stride + 1):
        kernel = KernelSpec(
            op=Op.DEPTHWISE_CONV2D,
            in_channels=channels,
            out_channels=channels,
            input_h=7,
            input_w=input_w,
            kernel_h=3,
            kernel_w=3,
            padding=1,
            stride=stride,
            activation=Activation.RELU6,
        )
        x, _ = kernel_inputs(kernel)
        tensors = synthesize_weights(kernel)
        sparse = NativeKernel(replace(kernel, pruning=BY_SPARSE_KERNEL), tensors, tune=False).run(x)
        for isa in FMA_ISAS:
            np.testing.assert_array_equal(NativeKernel(kernel, tensors, isa=isa, tune=False).run(x), sparse)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [6, 7, 13, 14, 20])
def test_values_beside_the_image_do_not_matter(isa: str, stride: int, width: int) -> None:
    """Columns outside the image are masked by bits: an infinity at the end of one row stays out of the next."""
    kernel = KernelSpec(
        op=Op.DEPTHWISE_CONV2D,
        in_channels=2,
        out_channels=2,
        input_h=6,
        input_w=width,
        kernel_h=3,
        kernel_w=3,
        padding=1,
        stride=stride,
    )
    x = np.ones((2, 6, width), np.float32)
    x[:, :, -1] = np.inf
    tensors = {"weight": np.ones((2, 1, 3, 3), np.float32), "bias": np.zeros(2, np.float32)}
    output = NativeKernel(kernel, tensors, isa=isa, tune=False).run(x)
    assert np.isinf(output[:, :, -1]).all()
    assert np.isfinite(output[:, :, :-2]).all()
    assert not np.isnan(output).any()
