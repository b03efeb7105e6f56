"""Pools of all widths against torch, on every backend, and the windows that lie partly outside the image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.contracts import KernelSpec, Op
from device_agent.native.executor import NativeKernel
from device_agent.native.library import load_library
from device_agent.synthesis import kernel_inputs
from tests.unit.device_agent.native.native_samples import CLAMPS, torch_kernel

ISAS = [backend.name for backend in load_library().backends if backend.is_supported]
FMA_ISAS = [backend.name for backend in load_library().backends if backend.is_supported and backend.has_fma]


def pool(op: Op, channels: int, height: int, width: int, **window: object) -> KernelSpec:
    return KernelSpec(
        op=op,
        in_channels=channels,
        out_channels=channels,
        input_h=height,
        input_w=width,
        **window,  # type: ignore[arg-type]
    )


@st.composite
def pools(draw: st.DrawFn) -> KernelSpec:
    """Windows with a kernel of their own (2x2 and 3x3 of stride 1 and 2) and without; rows of up to several strips."""
    extent = draw(st.sampled_from((1, 2, 3, 4)))
    padding = draw(st.integers(0, extent // 2))
    return pool(
        draw(st.sampled_from((Op.MAX_POOL, Op.AVG_POOL))),
        draw(st.integers(1, 5)),
        draw(st.integers(extent, 12)),
        draw(st.integers(extent, 40) | st.integers(60, 170)),
        kernel_h=extent,
        kernel_w=extent,
        padding=padding,
        stride=draw(st.integers(1, 3)),
        activation=draw(st.sampled_from(CLAMPS)),
        seed=draw(st.integers(0, 1000)),
    )


def check(kernel: KernelSpec) -> None:
    x, _ = kernel_inputs(kernel)
    outputs = {isa: NativeKernel(kernel, isa=isa, tune=False).run(x) for isa in ISAS}
    for isa, output in outputs.items():
        np.testing.assert_allclose(output, torch_kernel(kernel, {}, x), rtol=1e-5, atol=1e-6, err_msg=isa)
    assert len({outputs[isa].tobytes() for isa in FMA_ISAS}) <= 1


@settings(max_examples=200, deadline=None)
@given(kernel=pools())
def test_pools_equal_torch(kernel: KernelSpec) -> None:
    check(kernel)


@settings(max_examples=60, deadline=None)
@given(channels=st.integers(1, 40), height=st.integers(1, 20), width=st.integers(1, 20), seed=st.integers(0, 99))
def test_global_pools_equal_torch(channels: int, height: int, width: int, seed: int) -> None:
    check(pool(Op.GLOBAL_AVG_POOL, channels, height, width, seed=seed))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [5, 9, 17, 40])
def test_what_lies_outside_the_image_never_wins(isa: str, stride: int, width: int) -> None:
    """A maximum over negative values: zeros beside the image, or the ends of other rows, would be larger."""
    kernel = pool(Op.MAX_POOL, 3, 6, width, kernel_h=3, kernel_w=3, padding=1, stride=stride)
    x = -1.0 - np.arange(3 * 6 * width, dtype=np.float32).reshape(3, 6, width)[:, ::-1, ::-1]
    output = NativeKernel(kernel, isa=isa, tune=False).run(x)
    np.testing.assert_array_equal(output, torch_kernel(kernel, {}, x))
    assert (output < 0).all()
