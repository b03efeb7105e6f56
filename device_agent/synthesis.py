"""Weights and inputs that a kernel's seed stands for, and how weights divide into pruning blocks.

Every number is derived from integers of a PCG64 stream by exact operations, so that all devices time and hash the
same bits. Nothing here is tuned to a runtime.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import (
    NETWORK_INPUT,
    NETWORK_RESIDUAL,
    ContractError,
    KernelSpec,
    NetworkPlan,
    PlanOp,
    PruningScheme,
    WeightPruning,
)

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

#: The name of the operator in the plan of a single kernel.
KERNEL_OP = "kernel"

_WEIGHT_STREAM, _MASK_STREAM, _INPUT_STREAM, _RESIDUAL_STREAM = range(4)


def synthesize_weights(kernel: KernelSpec) -> dict[str, FloatArray]:
    """The weights of `kernel`: `weight` (float32, `weight_shape`, masked) and `bias` (float32, (out_channels,)).

    Weights are uniform with variance 2 / (kept weights of a filter), so that activations keep their size from layer
    to layer (He et al. 2015, arXiv 1502.01852) and never reach slow subnormal numbers. An operator without weights
    gets an empty dictionary.
    """
    if not kernel.op.has_weights:
        return {}
    out_channels, in_channels, kernel_h, kernel_w = kernel.weight_shape
    fan_in = max(1.0, in_channels * kernel_h * kernel_w * kernel.pruning.density)
    generator = _stream(kernel, _WEIGHT_STREAM)
    weight = _uniform(generator, kernel.weight_shape, math.sqrt(6.0 / fan_in))
    bias = _uniform(generator, (out_channels,), 0.1)
    if kernel.pruning.scheme is not PruningScheme.DENSE:
        weight = np.where(random_mask(kernel), weight, np.float32(0.0))
    return {"weight": weight, "bias": bias}


def random_mask(kernel: KernelSpec) -> BoolArray:
    """A mask of `weight_shape` (True is kept) with exactly the kept number of blocks, chosen by the kernel's seed."""
    pruning, shape = kernel.pruning, kernel.weight_shape
    if pruning.scheme is PruningScheme.DENSE:
        return np.ones(shape, dtype=np.bool_)
    generator = _stream(kernel, _MASK_STREAM)
    if pruning.scheme is PruningScheme.BLOCK:
        return block_based_mask(generator.random(shape), pruning)
    blocks = np.zeros(block_shape(pruning, shape), dtype=np.bool_)
    kept = num_kept_blocks(pruning, blocks.size)
    blocks.reshape(-1)[generator.permutation(blocks.size)[:kept]] = True
    if pruning.scheme is PruningScheme.PATTERN:
        blocks = blocks & _random_patterns(generator, blocks.shape[:2], pruning.pattern_entries)
    return expand_blocks(blocks, pruning, shape)


def synthesize_input(shape: tuple[int, int, int], seed: int) -> FloatArray:
    """Input of a network task, as `contracts.lease.NetworkTask` defines it: standard normal, float32 (c, h, w)."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def kernel_inputs(kernel: KernelSpec) -> tuple[FloatArray, FloatArray | None]:
    """What a kernel is run on: its input (c, h, w), and the residual or the second input, if it takes one.

    Uniform in [-1, 1).
    """
    shape = (kernel.in_channels, kernel.input_h, kernel.input_w)
    second_shape = second_input_shape(kernel)
    x = _uniform(_stream(kernel, _INPUT_STREAM), shape, 1.0)
    if second_shape is None:
        return x, None
    return x, _uniform(_stream(kernel, _RESIDUAL_STREAM), second_shape, 1.0)


def second_input_shape(kernel: KernelSpec) -> tuple[int, int, int] | None:
    """The shape (c, h, w) of the second tensor that `kernel` reads: a residual, or the second input."""
    if kernel.residual:
        return (kernel.out_channels, kernel.output_h, kernel.output_w)
    return kernel.input_shapes[1] if len(kernel.input_shapes) > 1 else None


def kernel_plan(kernel: KernelSpec) -> NetworkPlan:
    """`kernel` as a network of one operator, `KERNEL_OP`. A second tensor that it reads is the plan's second input."""
    return NetworkPlan(
        name=KERNEL_OP,
        input_shape=(kernel.in_channels, kernel.input_h, kernel.input_w),
        residual_shape=second_input_shape(kernel),
        ops=(
            PlanOp(
                name=KERNEL_OP,
                kernel=kernel,
                inputs=(NETWORK_INPUT, NETWORK_RESIDUAL)[: len(kernel.input_shapes)],
                residual=NETWORK_RESIDUAL if kernel.residual else None,
            ),
        ),
    )


def kernel_plan_tensors(kernel: KernelSpec) -> dict[str, FloatArray]:
    """The tensors of `kernel_plan(kernel)`, under the names that a plan's tensors have."""
    return {f"{KERNEL_OP}.{name}": tensor for name, tensor in synthesize_weights(kernel).items()}


# --- pruning blocks -------------------------------------------------------------------------------------------------


def block_extent(pruning: WeightPruning) -> tuple[int, int]:
    """(filters, input channels) that share zero positions."""
    if pruning.scheme in (PruningScheme.BLOCK_PUNCHED, PruningScheme.BLOCK):
        return (pruning.block_filters, pruning.block_channels)
    if pruning.scheme in (PruningScheme.GROUP, PruningScheme.PATTERN):
        return (pruning.block_filters, 1)
    return (1, 1)


def block_shape(pruning: WeightPruning, weight_shape: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """How weights (o, i, kh, kw) divide into blocks: (filter blocks, channel blocks, kh, kw), the units that are kept.

    The last filter or channel block is smaller where the block does not divide the channels. A PATTERN's unit is the
    whole kernel: (filter blocks, i, 1, 1).
    """
    filters, channels = block_extent(pruning)
    out_channels, in_channels, kernel_h, kernel_w = weight_shape
    if pruning.scheme is PruningScheme.PATTERN:
        kernel_h = kernel_w = 1
    return (-(-out_channels // filters), -(-in_channels // channels), kernel_h, kernel_w)


def num_kept_blocks(pruning: WeightPruning, num_blocks: int) -> int:
    """How many of `num_blocks` blocks the density keeps: the nearest whole number, at least 1.

    A PATTERN keeps `pattern_entries`/9 of each kernel, so the rest of its density is in whole kernels.
    """
    kept = pruning.density
    if pruning.scheme is PruningScheme.PATTERN:
        kept = min(1.0, pruning.density * 9 / pruning.pattern_entries)
    return min(num_blocks, max(1, round(kept * num_blocks)))


def sum_blocks(values: NDArray[np.floating], pruning: WeightPruning) -> NDArray[np.float64]:
    """Sum `values` (o, i, kh, kw) over each block of filters and channels: (filter blocks, channel blocks, kh, kw).

    Kernel positions are not summed, so that a PATTERN can still choose among them.
    """
    filters, channels = block_extent(pruning)
    sums = np.add.reduceat(values.astype(np.float64), np.arange(0, values.shape[0], filters), axis=0)
    return np.add.reduceat(sums, np.arange(0, values.shape[1], channels), axis=1)


def expand_blocks(blocks: BoolArray, pruning: WeightPruning, weight_shape: tuple[int, int, int, int]) -> BoolArray:
    """A mask per block, (filter blocks, channel blocks, kh, kw), as a mask per weight of `weight_shape`."""
    filters, channels = block_extent(pruning)
    out_channels, in_channels, _, _ = weight_shape
    mask = np.repeat(blocks, filters, axis=0)[:out_channels]
    mask = np.repeat(mask, channels, axis=1)[:, :in_channels]
    return np.ascontiguousarray(np.broadcast_to(mask, weight_shape))


def block_based_mask(energy: NDArray[np.floating], pruning: WeightPruning) -> BoolArray:
    """Independent row and column pruning in every block of a fully connected layer, by `energy` (out, in, 1, 1).

    A column of a block is one input of its filters, a row one filter over its inputs. Both are ranked over the whole
    layer by their mean energy. First the best round(sqrt(density) * n) of the n columns stay. Then rows go, the worst
    first, judged by what the columns left of them, until the number of weights is as near to the density's as whole
    rows come. Blocks of 1 x 1 are unstructured pruning; one block as large as the matrix prunes whole filters and
    inputs. inferred: GRIM's abstract (arXiv 2108.11033) names the pruning, but not how a rate divides between rows and
    columns; equal shares of both are ours. Equal energies are decided by position, the earlier first.
    """
    out_channels, in_channels = energy.shape[:2]
    values = np.asarray(energy, dtype=np.float64).reshape(out_channels, in_channels)
    filters, channels = pruning.block_filters, pruning.block_channels
    firsts, starts = np.arange(0, out_channels, filters), np.arange(0, in_channels, channels)
    heights = np.diff(np.append(firsts, out_channels))
    columns = np.add.reduceat(values, firsts, axis=0) / heights[:, None]
    kept_columns = np.zeros(columns.size, dtype=np.bool_)
    num_columns = max(1, round(math.sqrt(pruning.density) * columns.size))
    kept_columns[np.argsort(-columns.reshape(-1), kind="stable")[:num_columns]] = True
    mask: BoolArray = np.repeat(kept_columns.reshape(columns.shape), filters, axis=0)[:out_channels]
    sizes = np.add.reduceat(mask, starts, axis=1, dtype=np.int64)
    rows = np.add.reduceat(np.where(mask, values, 0.0), starts, axis=1) / np.maximum(sizes, 1)
    order = np.argsort(-np.where(sizes > 0, rows, -1.0).reshape(-1), kind="stable")
    kept_weights = np.cumsum(sizes.reshape(-1)[order])
    num_rows = int(np.argmin(np.abs(kept_weights - pruning.density * values.size))) + 1
    kept_rows = np.zeros(rows.size, dtype=np.bool_)
    kept_rows[order[:num_rows]] = True
    mask &= np.repeat(kept_rows.reshape(rows.shape), channels, axis=1)[:, :in_channels]
    return np.ascontiguousarray(mask.reshape(energy.shape))


def _random_patterns(generator: np.random.Generator, kernels: tuple[int, ...], entries: int) -> BoolArray:
    """A random pattern per kernel, (..., 3, 3). The centre is always in it, as in PatDNN (arXiv 2001.00138)."""
    order = generator.random((*kernels, 9))
    order[..., 4] = -1.0
    ranks = np.argsort(np.argsort(order, axis=-1), axis=-1)
    return (ranks < entries).reshape(*kernels, 3, 3)


def _stream(kernel: KernelSpec, stream: int) -> np.random.Generator:
    if kernel.seed < 0:
        raise ContractError(f"seed {kernel.seed!r} must not be negative")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([kernel.seed, stream])))


def _uniform(generator: np.random.Generator, shape: tuple[int, ...], bound: float) -> FloatArray:
    """Uniform in [-bound, bound). Only exact operations and one rounding, so the same bits everywhere."""
    unit = generator.random(shape, dtype=np.float32) * np.float32(2.0) - np.float32(1.0)
    return unit * np.float32(bound)
