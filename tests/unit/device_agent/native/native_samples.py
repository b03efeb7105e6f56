"""Random kernels, and what torch says that they compute."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from unittest import mock

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional

from device_agent.contracts import DENSE, Activation, KernelSpec, NetworkPlan, Op, PruningScheme, WeightPruning
from device_agent.native import steps, strips, tiling
from device_agent.native.steps import Emitter, emit_any
from device_agent.native.tiling import ConvShape, TileLimit, Tiling
from tests.unit.device_agent.torch_parts import activated, moved_channels, num_groups, with_second

#: The kernels are tiny, and the cores shared.
torch.set_num_threads(1)

KERNEL_EXTENTS = ((1, 1), (3, 3), (5, 5), (7, 7), (2, 2), (4, 4), (1, 7), (5, 3))


def conv(channels: int = 16, extent: int = 8, **changes: object) -> KernelSpec:
    """A 3x3 convolution of stride 1 that keeps the extent, with `changes` of fields."""
    values: dict[str, object] = {
        "op": Op.CONV2D,
        "in_channels": channels,
        "out_channels": channels,
        "input_h": extent,
        "input_w": extent,
        "kernel_h": 3,
        "kernel_w": 3,
        "padding": 1,
        **changes,
    }
    return KernelSpec(**values)  # type: ignore[arg-type]


@contextlib.contextmanager
def winograd_first() -> Iterator[None]:
    """Every layer that Winograd's algorithm can compute is computed by it, where nothing is tuned."""

    def reversed_ways(*emitters: Emitter) -> Emitter:
        return emit_any(*reversed(emitters))

    with mock.patch.object(steps, "emit_any", reversed_ways):
        yield


def each_tiling(most: int = 10_000) -> Iterator[None]:
    """One turn for each tiling, at most `most` for a step, that the tuner would choose from: what is prepared in a turn
    without tuning has that one.
    """
    index, count = 0, 1
    while index < count:
        known: list[int] = []
        one_tiling = functools.partial(_one_tiling, index=index, most=most, known=known)
        with (
            # Small chunks, so that small kernels have several.
            mock.patch.object(tiling, "_CHUNK_BYTES", (1500, 36_000)),
            mock.patch.object(strips, "_CHUNK_BYTES", (4000, 41_000)),
            mock.patch.object(tiling, "_MOST_STRIPS", 10_000),
            mock.patch("device_agent.native.steps.conv.tilings", one_tiling),
        ):
            yield
        index, count = index + 1, max(known, default=0)


def _one_tiling(
    shape: ConvShape, tile_limit: TileLimit, _: int, *, index: int, most: int, known: list[int]
) -> list[Tiling]:
    found = tiling.tilings(shape, tile_limit, most)
    known.append(len(found))
    return [found[min(index, len(found) - 1)]]


@st.composite
def prunings(draw: st.DrawFn, kernel_extent: tuple[int, int]) -> WeightPruning:
    """Every scheme that fits a kernel of this extent, with blocks that need not divide the channels."""
    density = draw(st.floats(0.02, 1.0))
    filters, channels = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    schemes = [s for s in PruningScheme if s is not PruningScheme.PATTERN or kernel_extent == (3, 3)]
    # Of fully connected layers alone.
    schemes.remove(PruningScheme.BLOCK)
    match draw(st.sampled_from(schemes)):
        case PruningScheme.DENSE:
            return DENSE
        case PruningScheme.UNSTRUCTURED:
            return WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=density)
        case PruningScheme.GROUP:
            return WeightPruning(scheme=PruningScheme.GROUP, density=density, block_filters=filters)
        case PruningScheme.BLOCK_PUNCHED:
            return WeightPruning(
                scheme=PruningScheme.BLOCK_PUNCHED, density=density, block_filters=filters, block_channels=channels
            )
        case PruningScheme.PATTERN:
            entries = draw(st.integers(1, 9))
            return WeightPruning(
                scheme=PruningScheme.PATTERN,
                density=density * entries / 9,
                block_filters=filters,
                pattern_entries=entries,
            )
        case scheme:
            raise AssertionError(f"{scheme} has no sample here")


#: Activations that steps do on their way.
CLAMPS = tuple(activation for activation in Activation if activation.is_clamp)


@st.composite
def convolutions(draw: st.DrawFn) -> KernelSpec:
    """Convolutions and depthwise convolutions of all schemes, strides and paddings, small and odd."""
    extent = draw(st.sampled_from(KERNEL_EXTENTS))
    padding = draw(st.integers(0, max(extent) // 2))
    op = draw(st.sampled_from((Op.CONV2D, Op.CONV2D, Op.CONV2D, Op.DEPTHWISE_CONV2D)))
    groups = draw(st.sampled_from((1, 1, 1, 2, 4))) if op is Op.CONV2D else 1
    in_channels = groups * draw(st.integers(1, 19))
    out_channels = groups * draw(st.integers(1, 19))
    if op is Op.DEPTHWISE_CONV2D:
        out_channels = in_channels * draw(st.sampled_from((1, 1, 2, 3)))
    height = draw(st.integers(max(1, extent[0] - 2 * padding), 21))
    width = draw(st.integers(max(1, extent[1] - 2 * padding), 21))
    return KernelSpec(
        op=op,
        in_channels=in_channels,
        out_channels=out_channels,
        input_h=height,
        input_w=width,
        kernel_h=extent[0],
        kernel_w=extent[1],
        stride=draw(st.sampled_from((1, 1, 2, 2, 3))),
        padding=padding,
        residual=op is Op.CONV2D and groups == 1 and draw(st.booleans()),
        activation=draw(st.sampled_from(Activation)),
        pruning=draw(prunings(extent)) if groups == 1 else DENSE,
        groups=groups,
        seed=draw(st.integers(0, 1000)),
    )


@st.composite
def other_kernels(draw: st.DrawFn) -> KernelSpec:
    """Everything but convolutions."""
    op = draw(st.sampled_from([op for op in Op if op not in (Op.CONV2D, Op.DEPTHWISE_CONV2D)]))
    channels = draw(st.integers(1, 70))
    extent, stride, padding = (1, 1), 1, 0
    pruning, out_channels, before, groups = DENSE, channels, 0, 1
    height, width = draw(st.integers(1, 21)), draw(st.integers(1, 21))
    if op in (Op.MAX_POOL, Op.AVG_POOL):
        extent = draw(st.sampled_from(KERNEL_EXTENTS))
        stride, padding = draw(st.integers(1, 3)), draw(st.integers(0, min(extent) // 2))
        height, width = max(height, extent[0]), max(width, extent[1])
    elif op is Op.SHORTCUT_PAD:
        out_channels, stride = channels + draw(st.integers(0, 9)), draw(st.integers(1, 3))
        before = draw(st.integers(0, out_channels - channels))
    elif op is Op.CONCAT:
        out_channels = channels + draw(st.integers(1, 70))
    elif op in (Op.FIRST_CHANNELS, Op.LAST_CHANNELS):
        channels += draw(st.integers(1, 70))
    elif op is Op.CHANNEL_SHUFFLE:
        groups = draw(st.integers(1, 5))
        channels = out_channels = channels * groups
    elif op is Op.FULLY_CONNECTED:
        height = width = 1
        out_channels, pruning = draw(st.integers(1, 70)), draw(prunings((1, 1)))
    return KernelSpec(
        op=op,
        in_channels=channels,
        out_channels=out_channels,
        input_h=height,
        input_w=width,
        kernel_h=extent[0],
        kernel_w=extent[1],
        stride=stride,
        padding=padding,
        activation=draw(st.sampled_from(Activation)),
        pruning=pruning,
        pad_channels_before=before,
        groups=groups,
        seed=draw(st.integers(0, 1000)),
    )


def torch_kernel(
    kernel: KernelSpec, tensors: Mapping[str, NDArray[np.float32]], x: NDArray[np.float32], second: object = None
) -> NDArray[np.float64]:
    """What `kernel` computes, by torch in float64: (c, h, w)."""
    value = torch.as_tensor(x, dtype=torch.float64)[None]
    weights = {name: torch.as_tensor(tensor, dtype=torch.float64) for name, tensor in tensors.items()}
    window = (kernel.kernel_h, kernel.kernel_w)
    match kernel.op:
        case Op.CONV2D | Op.DEPTHWISE_CONV2D | Op.FULLY_CONNECTED:
            value = functional.conv2d(
                value, weights["weight"], weights["bias"], kernel.stride, kernel.padding, groups=num_groups(kernel)
            )
        case Op.FIRST_CHANNELS | Op.LAST_CHANNELS | Op.CHANNEL_SHUFFLE:
            value = moved_channels(kernel, value)
        case Op.MAX_POOL:
            value = functional.max_pool2d(value, window, kernel.stride, kernel.padding)
        case Op.AVG_POOL:
            value = functional.avg_pool2d(value, window, kernel.stride, kernel.padding)
        case Op.GLOBAL_AVG_POOL:
            value = value.mean((2, 3), keepdim=True)
        case Op.SHORTCUT_PAD:
            before = kernel.pad_channels_before
            after = kernel.out_channels - kernel.in_channels - before
            value = functional.pad(value[:, :, :: kernel.stride, :: kernel.stride], (0, 0, 0, 0, before, after))
    value = with_second(kernel, value, None if second is None else torch.as_tensor(second, dtype=torch.float64)[None])
    return activated(value, kernel.activation)[0].numpy()


def torch_network(
    plan: NetworkPlan, tensors: Mapping[str, NDArray[np.float32]], x: NDArray[np.float32]
) -> NDArray[np.float64]:
    """What `plan` computes for `x`, operator by operator."""
    values: dict[str, NDArray[np.float64]] = {"input": x.astype(np.float64)}
    for op in plan.ops:
        second = op.residual or (op.inputs[1] if len(op.inputs) > 1 else None)
        own = {part: tensors[f"{op.name}.{part}"] for part in ("weight", "bias") if op.kernel.op.has_weights}
        values[op.name] = torch_kernel(op.kernel, own, values[op.inputs[0]], None if second is None else values[second])
    return values[plan.output_name]
