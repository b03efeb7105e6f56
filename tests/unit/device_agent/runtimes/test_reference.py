"""The numpy reference against torch: it is what everything else is checked against."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from device_agent.contracts import KernelSpec, Op
from device_agent.runtimes.reference import output_agrees, run_kernel, run_network
from device_agent.synthesis import kernel_inputs, synthesize_input, synthesize_weights
from tests.unit.device_agent.runtimes.runtime_samples import KERNELS, small_network
from tests.unit.device_agent.torch_parts import activated, moved_channels, num_groups, with_second


def torch_output(kernel: KernelSpec) -> np.ndarray:
    x, second = kernel_inputs(kernel)
    batch = torch.from_numpy(x).double()[None]
    t = {name: torch.from_numpy(values).double() for name, values in synthesize_weights(kernel).items()}
    window = (kernel.kernel_h, kernel.kernel_w)
    match kernel.op:
        case Op.CONV2D | Op.DEPTHWISE_CONV2D:
            y = F.conv2d(batch, t["weight"], t["bias"], kernel.stride, kernel.padding, groups=num_groups(kernel))
        case Op.FULLY_CONNECTED:
            y = F.conv2d(batch, t["weight"], t["bias"])
        case Op.ADD | Op.MUL | Op.CONCAT:
            y = batch
        case Op.FIRST_CHANNELS | Op.LAST_CHANNELS | Op.CHANNEL_SHUFFLE:
            y = moved_channels(kernel, batch)
        case Op.MAX_POOL:
            y = F.max_pool2d(batch, window, kernel.stride, kernel.padding)
        case Op.AVG_POOL:
            y = F.avg_pool2d(batch, window, kernel.stride, kernel.padding)
        case Op.GLOBAL_AVG_POOL:
            y = batch.mean((2, 3), keepdim=True)
        case Op.SHORTCUT_PAD:
            before = kernel.pad_channels_before
            after = kernel.out_channels - kernel.in_channels - before
            y = F.pad(batch[:, :, :: kernel.stride, :: kernel.stride], (0, 0, 0, 0, before, after))
    y = with_second(kernel, y, None if second is None else torch.from_numpy(second).double()[None])
    return activated(y, kernel.activation)[0].numpy()


def own_output(kernel: KernelSpec, channels: list[int] | None = None) -> np.ndarray:
    x, second = kernel_inputs(kernel)
    inputs, residual = ([x, second], None) if len(kernel.input_shapes) > 1 else ([x], second)
    return run_kernel(kernel, synthesize_weights(kernel), inputs, residual, channels)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_agree_with_torch(name: str) -> None:
    np.testing.assert_allclose(own_output(KERNELS[name]), torch_output(KERNELS[name]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", KERNELS)
def test_chosen_channels_are_those_of_the_whole(name: str) -> None:
    kernel = KERNELS[name]
    channels = [0, kernel.out_channels - 1]
    np.testing.assert_array_equal(own_output(kernel, channels), own_output(kernel)[channels])


def test_a_wrong_channel_is_noticed() -> None:
    kernel = KERNELS["conv residual"]
    x, residual = kernel_inputs(kernel)
    tensors = synthesize_weights(kernel)
    good = own_output(kernel).reshape(-1)
    assert output_agrees(kernel, tensors, [x], residual, good)
    for bad in (good * 1.01, good[:-1], np.where(np.arange(good.size) == 3, np.nan, good)):
        assert not output_agrees(kernel, tensors, [x], residual, bad.astype(np.float32))


def test_one_wrong_value_of_a_large_kernel_is_noticed() -> None:
    kernel = KernelSpec(
        op=Op.CONV2D, in_channels=128, out_channels=128, input_h=28, input_w=28, kernel_h=3, kernel_w=3, padding=1
    )
    x, _ = kernel_inputs(kernel)
    tensors = synthesize_weights(kernel)
    good = own_output(kernel).reshape(-1)
    assert output_agrees(kernel, tensors, [x], None, good)
    bad = good.copy()
    bad[len(bad) // 2 + 1] += 0.05 * np.abs(good).max()
    assert not output_agrees(kernel, tensors, [x], None, bad)


def test_networks_are_chains_of_kernels() -> None:
    plan, tensors = small_network()
    x = synthesize_input(plan.input_shape, 0)
    stem = run_kernel(plan.ops[0].kernel, {k: tensors[f"stem.{k}"] for k in ("weight", "bias")}, [x])
    body = run_kernel(plan.ops[1].kernel, {k: tensors[f"body.{k}"] for k in ("weight", "bias")}, [stem], stem)
    expected = tensors["head.weight"][:, :, 0, 0] @ body.mean((1, 2)) + tensors["head.bias"]
    np.testing.assert_allclose(run_network(plan, tensors, x).reshape(-1), expected, rtol=1e-5, atol=1e-6)
