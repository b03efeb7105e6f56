"""Weights and masks that a kernel's seed stands for."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from device_agent.contracts import ContractError, KernelSpec, Op, PruningScheme, WeightPruning
from device_agent.synthesis import (
    block_based_mask,
    block_shape,
    expand_blocks,
    kernel_inputs,
    kernel_plan,
    kernel_plan_tensors,
    num_kept_blocks,
    random_mask,
    sum_blocks,
    synthesize_input,
    synthesize_weights,
)


def conv(pruning: WeightPruning, seed: int = 0, channels: tuple[int, int] = (10, 18)) -> KernelSpec:
    return KernelSpec(
        op=Op.CONV2D,
        in_channels=channels[0],
        out_channels=channels[1],
        input_h=6,
        input_w=5,
        kernel_h=3,
        kernel_w=3,
        padding=1,
        pruning=pruning,
        seed=seed,
    )


@pytest.mark.parametrize("density", [0.01, 0.1, 0.33, 0.8, 1.0])
@pytest.mark.parametrize(
    ("scheme", "filters", "channels"),
    [
        (PruningScheme.UNSTRUCTURED, 1, 1),
        (PruningScheme.GROUP, 4, 1),
        (PruningScheme.GROUP, 2, 1),
        (PruningScheme.BLOCK_PUNCHED, 4, 4),
        (PruningScheme.BLOCK_PUNCHED, 8, 3),
    ],
)
def test_a_mask_keeps_exactly_the_asked_number_of_blocks(
    scheme: PruningScheme, filters: int, channels: int, density: float
) -> None:
    pruning = WeightPruning(scheme=scheme, density=density, block_filters=filters, block_channels=channels)
    mask = random_mask(conv(pruning))
    sums = sum_blocks(mask.astype(np.float64), pruning)
    assert sums.shape == block_shape(pruning, (18, 10, 3, 3))
    blocks = sums > 0
    assert blocks.sum() == max(1, round(density * blocks.size))
    np.testing.assert_array_equal(expand_blocks(blocks, pruning, (18, 10, 3, 3)), mask)


def test_the_last_block_is_smaller_where_the_block_does_not_divide() -> None:
    pruning = WeightPruning(scheme=PruningScheme.BLOCK_PUNCHED, density=0.5, block_filters=4, block_channels=3)
    assert block_shape(pruning, (6, 7, 1, 1)) == (2, 3, 1, 1)
    sums = sum_blocks(np.ones((6, 7, 1, 1)), pruning)
    assert sums[:, :, 0, 0].tolist() == [[12, 12, 4], [6, 6, 2]]


@pytest.mark.parametrize("entries", [1, 4, 9])
@pytest.mark.parametrize("connectivity", [0.4, 1.0])
def test_patterns_keep_their_entries_and_share_them(entries: int, connectivity: float) -> None:
    pruning = WeightPruning(
        scheme=PruningScheme.PATTERN, density=connectivity * entries / 9, block_filters=4, pattern_entries=entries
    )
    mask = random_mask(conv(pruning, channels=(8, 16)))
    per_kernel = mask.sum((2, 3))
    assert set(np.unique(per_kernel)) <= {0, entries}
    assert (per_kernel > 0).sum() == 4 * num_kept_blocks(pruning, 4 * 8) == 4 * round(connectivity * 32)
    assert mask[:, :, 1, 1][per_kernel > 0].all()
    np.testing.assert_array_equal(mask.reshape(4, 4, 8, 3, 3), mask.reshape(4, 4, 8, 3, 3)[:, :1].repeat(4, axis=1))


def test_the_same_seed_gives_the_same_bits_on_every_machine() -> None:
    kernel = conv(WeightPruning(scheme=PruningScheme.GROUP, density=0.3, block_filters=4), seed=7)
    x, second = kernel_inputs(kernel)
    assert second is None
    digest = hashlib.sha256()
    for array in (*synthesize_weights(kernel).values(), x):
        digest.update(array.astype("<f4").tobytes())
    assert digest.hexdigest() == "cbae46b48c3e5fa07ad9395ba831a048e026bf3591611229d3ea816e4a48a1ad"


def test_other_seeds_give_other_weights() -> None:
    pruning = WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.5)
    first, other = synthesize_weights(conv(pruning, seed=1)), synthesize_weights(conv(pruning, seed=2))
    assert not np.array_equal(first["weight"], other["weight"])
    assert not np.array_equal(first["weight"] != 0, other["weight"] != 0)


@pytest.mark.parametrize("density", [0.1, 1.0])
def test_weights_keep_the_size_of_activations(density: float) -> None:
    pruning = WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=density)
    weight = synthesize_weights(conv(pruning, channels=(64, 64)))["weight"]
    kept = weight[weight != 0]
    assert kept.dtype == np.float32
    assert kept.var() * density * 64 * 9 == pytest.approx(2.0, rel=0.05)


def test_an_operator_without_weights_has_none() -> None:
    kernel = KernelSpec(op=Op.ADD, in_channels=3, out_channels=3, input_h=2, input_w=2)
    assert synthesize_weights(kernel) == {}
    x, second = kernel_inputs(kernel)
    assert second is not None
    assert x.shape == second.shape == (3, 2, 2)
    assert not np.array_equal(x, second)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_residual_kernel_is_a_plan_with_a_second_input(stride: int) -> None:
    kernel = KernelSpec(
        op=Op.CONV2D,
        in_channels=3,
        out_channels=5,
        input_h=6,
        input_w=6,
        kernel_h=3,
        kernel_w=3,
        stride=stride,
        padding=1,
        residual=True,
    )
    plan = kernel_plan(kernel)
    _, second = kernel_inputs(kernel)
    assert second is not None
    assert plan.residual_shape == second.shape == plan.output_shape
    assert {name: tensor.shape for name, tensor in kernel_plan_tensors(kernel).items()} == {
        "kernel.weight": (5, 3, 3, 3),
        "kernel.bias": (5,),
    }


def test_network_inputs_are_as_the_contract_says() -> None:
    x = synthesize_input((2, 3, 4), 5)
    expected = np.random.default_rng(5).standard_normal((2, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(x, expected)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ContractError, match="seed -1"):
        synthesize_weights(conv(WeightPruning(), seed=-1))


def matrix(density: float, block: tuple[int, int], shape: tuple[int, int] = (24, 40), seed: int = 0) -> KernelSpec:
    pruning = WeightPruning(
        scheme=PruningScheme.BLOCK, density=density, block_filters=block[0], block_channels=block[1]
    )
    return KernelSpec(op=Op.FULLY_CONNECTED, in_channels=shape[1], out_channels=shape[0], pruning=pruning, seed=seed)


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("block", [(4, 8), (8, 16), (7, 11), (1, 1)])
def test_block_based_pruning_leaves_whole_rows_and_columns_of_blocks(density: float, block: tuple[int, int]) -> None:
    mask = random_mask(matrix(density, block))[:, :, 0, 0]
    assert abs(mask.sum() - density * mask.size) <= block[1] / 2 + 0.5
    num_columns = 0
    for top in range(0, 24, block[0]):
        for left in range(0, 40, block[1]):
            part = mask[top : top + block[0], left : left + block[1]]
            rows, columns = part.any(axis=1), part.any(axis=0)
            np.testing.assert_array_equal(part, rows[:, None] & columns)
            num_columns += columns.sum()
    # Columns may vanish with all their rows, but none beyond the share of columns stays.
    assert num_columns <= round(np.sqrt(density) * -(-24 // block[0]) * 40)


def test_block_based_pruning_prunes_what_is_weakest() -> None:
    energy = np.ones((8, 8, 1, 1))
    energy[:4, 3] = 0.1  # a weak column of the upper block, and a weak row of the lower left one
    energy[6, :4] = 0.2
    pruning = WeightPruning(scheme=PruningScheme.BLOCK, density=(64 - 4 - 4) / 64, block_filters=4, block_channels=4)
    mask = block_based_mask(energy, pruning)[:, :, 0, 0]
    assert not mask[:4, 3].any()
    assert not mask[6, :4].any()
    assert mask.sum() == 56


def test_one_by_one_blocks_are_unstructured_pruning() -> None:
    energy = np.random.default_rng(0).random((6, 10, 1, 1))
    mask = block_based_mask(energy, WeightPruning(scheme=PruningScheme.BLOCK, density=0.3))
    assert mask.sum() == 18
    assert energy[mask].min() > energy[~mask].max()


def test_block_based_pruning_is_for_fully_connected_layers() -> None:
    with pytest.raises(ContractError, match="prunes fully connected layers, not conv2d"):
        conv(WeightPruning(scheme=PruningScheme.BLOCK, density=0.5, block_filters=4, block_channels=4))
