"""Kernels in numpy, written for clarity: what every runtime's output is checked against.

Shapes are (channels, h, w) without a batch. Sums run in float64, so the error seen is the runtime's, but for the check
of kernels that would take too long so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts.kernel import Activation, KernelSpec, Op
from device_agent.contracts.network import NETWORK_INPUT, NETWORK_RESIDUAL, NetworkPlan

FloatArray = NDArray[np.float32]
_Wide = NDArray[np.floating[Any]]

#: How far an output may be from the reference: a part of the largest value, since float32 sums cancel.
RELATIVE_TOLERANCE = 1e-4
ABSOLUTE_TOLERANCE = 1e-5

#: What checking an output may compute, in multiply-accumulates: some 10 ms on a desktop core, 100 ms on a small board.
#: Sums in float32 take half the time or less, and are still far closer than what is tolerated.
CHECKED_MACS = {np.float64: 5e7, np.float32: 2e8}


def run_kernel(
    kernel: KernelSpec,
    tensors: Mapping[str, FloatArray],
    inputs: Sequence[FloatArray],
    residual: FloatArray | None = None,
    channels: Sequence[int] | None = None,
    sums_in: type[np.floating[Any]] = np.float64,
) -> FloatArray:
    """The output of one fused kernel, (out_channels, output_h, output_w).

    `tensors` holds `weight` and `bias` of an operator with weights; ADD, MUL and CONCAT take two `inputs`.
    With `channels`, only these output channels are computed, at a cost in proportion.
    """
    chosen = np.arange(kernel.out_channels) if channels is None else np.asarray(channels)
    x = inputs[0].astype(sums_in)
    if kernel.op in (Op.CONV2D, Op.FULLY_CONNECTED):
        result = _convolve_groups(kernel, tensors["weight"], x, chosen) + tensors["bias"][chosen, None, None]
    elif kernel.op is Op.DEPTHWISE_CONV2D:
        taps = np.stack(list(_windows(kernel, x[chosen // kernel.channel_multiplier])))
        weight = tensors["weight"][chosen, 0].reshape(len(chosen), -1)
        result = np.einsum("tchw,ct->chw", taps, weight.astype(sums_in)) + tensors["bias"][chosen, None, None]
    elif kernel.op is Op.ADD:
        result = x[chosen] + inputs[1][chosen]
    elif kernel.op is Op.MUL:
        result = x[chosen] * inputs[1][chosen]
    elif kernel.op is Op.CONCAT:
        result = np.concatenate((x, inputs[1].astype(sums_in)))[chosen]
    elif kernel.op is Op.FIRST_CHANNELS:
        result = x[chosen]
    elif kernel.op is Op.LAST_CHANNELS:
        result = x[kernel.in_channels - kernel.out_channels + chosen]
    elif kernel.op is Op.CHANNEL_SHUFFLE:
        per_block = kernel.in_channels // kernel.groups
        result = x[chosen % kernel.groups * per_block + chosen // kernel.groups]
    elif kernel.op is Op.MAX_POOL:
        result = np.max(np.stack(list(_windows(kernel, x[chosen], fill=-np.inf))), axis=0)
    elif kernel.op is Op.AVG_POOL:
        result = np.mean(np.stack(list(_windows(kernel, x[chosen]))), axis=0)
    elif kernel.op is Op.GLOBAL_AVG_POOL:
        result = x[chosen].mean(axis=(1, 2), keepdims=True)
    else:
        padded = np.zeros((kernel.out_channels, kernel.output_h, kernel.output_w))
        first = kernel.pad_channels_before
        padded[first : first + kernel.in_channels] = x[:, :: kernel.stride, :: kernel.stride]
        result = padded[chosen]
    if residual is not None:
        result = result + residual[chosen]
    return activate(result, kernel.activation).astype(np.float32)


def activate(x: _Wide, activation: Activation) -> _Wide:
    """`activation` of every element."""
    if activation is Activation.NONE:
        return x
    if activation in (Activation.RELU, Activation.RELU6):
        return np.clip(x, 0.0, 6.0 if activation is Activation.RELU6 else None)
    is_hard = activation in (Activation.HARDSIGMOID, Activation.HARDSWISH)
    # Written with tanh, the logistic function does not overflow.
    gate: _Wide = np.clip(x + 3.0, 0.0, 6.0) / 6.0 if is_hard else 0.5 * (1.0 + np.tanh(0.5 * x))
    return gate if activation in (Activation.HARDSIGMOID, Activation.SIGMOID) else x * gate


def run_network(
    plan: NetworkPlan, tensors: Mapping[str, FloatArray], x: FloatArray, residual: FloatArray | None = None
) -> FloatArray:
    """The output of a whole network, of `plan.output_shape`."""
    values = {NETWORK_INPUT: x}
    if residual is not None:
        values[NETWORK_RESIDUAL] = residual
    last_use = {name: i for i, op in enumerate(plan.ops) for name in (*op.inputs, op.residual) if name is not None}
    for i, op in enumerate(plan.ops):
        own = {part: tensors[f"{op.name}.{part}"] for part in ("weight", "bias")} if op.kernel.op.has_weights else {}
        values[op.name] = run_kernel(
            op.kernel,
            own,
            [values[name] for name in op.inputs],
            values[op.residual] if op.residual is not None else None,
        )
        for name in [name for name in values if last_use.get(name, len(plan.ops)) <= i]:
            del values[name]
    return values[plan.output_name]


def output_agrees(
    kernel: KernelSpec,
    tensors: Mapping[str, FloatArray],
    inputs: Sequence[FloatArray],
    residual: FloatArray | None,
    output: FloatArray,
    min_channels: int = 8,
) -> bool:
    """Whether a runtime's `output` (flattened NCHW) is what the kernel must give.

    All channels are computed, with sums in float64, or float32 where that would take too long, or as many as
    `CHECKED_MACS` allow for, but `min_channels`: the first, the last and others evenly between, so that the check stays
    cheap for the largest layers.
    """
    expected_shape = (kernel.out_channels, kernel.output_h, kernel.output_w)
    if output.size != int(np.prod(expected_shape)):
        return False
    sums_in = np.float64 if kernel.dense_macs <= CHECKED_MACS[np.float64] else np.float32
    affordable = int(CHECKED_MACS[sums_in] / max(kernel.dense_macs / kernel.out_channels, 1.0))
    count = min(max(affordable, min_channels), kernel.out_channels)
    channels = np.unique(np.linspace(0, kernel.out_channels - 1, count).round().astype(int))
    expected = run_kernel(kernel, tensors, inputs, residual, channels.tolist(), sums_in)
    got = output.reshape(expected_shape)[channels]
    return is_close(got, expected)


def is_close(got: FloatArray, expected: FloatArray) -> bool:
    """Whether `got` is finite and `expected` up to rounding; both of one shape."""
    tolerance = ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * float(np.abs(expected).max())
    return bool(np.isfinite(got).all() and np.abs(got - expected).max() <= tolerance)


def _convolve_groups(kernel: KernelSpec, weight: FloatArray, x: _Wide, chosen: NDArray[np.int64]) -> _Wide:
    """The `chosen` output channels, each from the input channels of its group."""
    if kernel.groups == 1:
        return _convolve(kernel, weight[chosen], x)
    result = np.empty((len(chosen), kernel.output_h, kernel.output_w), dtype=x.dtype)
    group_of = chosen // (kernel.out_channels // kernel.groups)
    for group, block in enumerate(np.split(x, kernel.groups)):
        if (group_of == group).any():
            result[group_of == group] = _convolve(kernel, weight[chosen[group_of == group]], block)
    return result


def _convolve(kernel: KernelSpec, weight: FloatArray, x: _Wide) -> _Wide:
    """Sum of one matrix product per kernel position: (filters, in) x (in, h * w)."""
    wide = weight.astype(x.dtype)
    positions = [(i, j) for i in range(weight.shape[2]) for j in range(weight.shape[3])]
    total = np.zeros((len(weight), kernel.output_h * kernel.output_w), dtype=x.dtype)
    for (i, j), window in zip(positions, _windows(kernel, x), strict=True):
        total += wide[:, :, i, j] @ window.reshape(len(window), -1)
    return total.reshape(len(weight), kernel.output_h, kernel.output_w)


def _windows(kernel: KernelSpec, x: _Wide, fill: float = 0.0) -> list[_Wide]:
    """The input that each kernel position sees, (channels, output_h, output_w), row by row."""
    pad = kernel.padding
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)), constant_values=fill) if pad else x
    height = (kernel.output_h - 1) * kernel.stride + 1
    width = (kernel.output_w - 1) * kernel.stride + 1
    return [
        padded[:, i : i + height : kernel.stride, j : j + width : kernel.stride]
        for i in range(kernel.kernel_h)
        for j in range(kernel.kernel_w)
    ]
