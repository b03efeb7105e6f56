from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from device_agent.contracts import ContractError, PruningScheme, WeightPruning
from device_agent.synthesis import block_shape, num_kept_blocks
from search.pruning.masks import mask_for, pattern_library


def group(density: float, filters: int = 2) -> WeightPruning:
    return WeightPruning(scheme=PruningScheme.GROUP, density=density, block_filters=filters)


def test_unstructured_keeps_the_largest_weights() -> None:
    weight = np.array([[3.0, -4.0], [1.0, 2.0]]).reshape(2, 2, 1, 1)

    mask = mask_for(weight, WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.5))

    assert mask.reshape(2, 2).tolist() == [[True, True], [False, False]]


def test_groups_are_ranked_by_their_norm_over_filters() -> None:
    # Columns are input channels; rows 0-1 and 2-3 are the groups. Squared norms: [25, 1+1], [0+16, 9+9].
    weight = np.array([[3.0, 1.0], [4.0, 1.0], [0.0, 3.0], [4.0, 3.0]]).reshape(4, 2, 1, 1)

    mask = mask_for(weight, group(0.5))

    assert mask.reshape(4, 2).tolist() == [[True, False], [True, False], [False, True], [False, True]]


def test_a_smaller_last_group_is_ranked_by_norm_per_weight() -> None:
    # Groups of two filters and a last one of one. Mean squares: 4, 9.
    weight = np.array([2.0, 2.0, 3.0]).reshape(3, 1, 1, 1)

    assert mask_for(weight, group(0.5)).ravel().tolist() == [False, False, True]


def test_equal_norms_are_decided_by_position() -> None:
    mask = mask_for(np.ones((4, 3, 1, 1)), group(0.5))

    assert mask.reshape(4, 3).tolist() == [[True] * 3] * 2 + [[False] * 3] * 2


def test_block_punched_shares_positions_in_a_block() -> None:
    weight = np.ones((4, 4, 3, 3))
    weight[:2, :2, 0, 0] = 5.0
    weight[2:, 2:, 2, 1] = 5.0
    pruning = WeightPruning(scheme=PruningScheme.BLOCK_PUNCHED, density=2 / 36, block_filters=2, block_channels=2)

    assert np.array_equal(mask_for(weight, pruning), weight == 5.0)


def test_pattern_library_has_the_most_wanted_patterns_with_their_centre() -> None:
    energy = np.zeros((4, 1, 3, 3))
    energy[:3, 0, 0, :2] = 1.0
    energy[3, 0, 2, 1:] = 1.0

    library = pattern_library(energy, 3)

    assert library[0].astype(int).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert library[1].astype(int).tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert len(library) == 2


def test_patterns_are_shared_by_filters_and_whole_kernels_are_dropped() -> None:
    weight = np.full((4, 2, 3, 3), 0.1)
    weight[:2, 0, 0, :] = 4.0
    weight[:2, 0, 1, 1] = 4.0
    weight[2:, 1, 2, :] = 3.0
    weight[2:, 1, 1, 1] = 3.0
    pruning = WeightPruning(scheme=PruningScheme.PATTERN, density=2 / 9, block_filters=2, pattern_entries=4)

    assert np.array_equal(mask_for(weight, pruning), weight > 1.0)


def test_a_full_pattern_density_keeps_every_kernel() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 5, 3, 3))
    pruning = WeightPruning(scheme=PruningScheme.PATTERN, density=4 / 9, block_filters=4, pattern_entries=4)

    mask = mask_for(weight, pruning)

    assert (mask.sum((2, 3)) == 4).all()
    assert (mask[:4] == mask[:1]).all()
    assert len(np.unique(mask.reshape(-1, 9), axis=0)) <= 8


SCHEMES = st.sampled_from(
    [
        lambda d: WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=d),
        lambda d: WeightPruning(scheme=PruningScheme.GROUP, density=d, block_filters=4),
        lambda d: WeightPruning(scheme=PruningScheme.BLOCK_PUNCHED, density=d, block_filters=4, block_channels=2),
        lambda d: WeightPruning(scheme=PruningScheme.PATTERN, density=d * 4 / 9, block_filters=4, pattern_entries=4),
    ]
)


@given(
    scheme=SCHEMES,
    density=st.floats(0.02, 1.0),
    out=st.integers(1, 13),
    into=st.integers(1, 7),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_keeps_exactly_the_blocks_that_synthetic_kernels_keep(
    scheme: object, density: float, out: int, into: int, seed: int
) -> None:
    pruning = scheme(density)  # type: ignore[operator]
    weight = np.random.default_rng(seed).standard_normal((out, into, 3, 3)).astype(np.float32)
    blocks = block_shape(pruning, weight.shape)

    mask = mask_for(weight, pruning)

    assert mask.shape == weight.shape
    # One weight stands for its block: the first of each.
    firsts = mask[:: max(1, pruning.block_filters), :: max(1, pruning.block_channels)]
    kept = firsts.any((2, 3), keepdims=True) if pruning.scheme is PruningScheme.PATTERN else firsts
    assert kept.sum() == num_kept_blocks(pruning, int(np.prod(blocks)))


def test_refuses_weights_of_another_shape() -> None:
    with pytest.raises(ContractError, match="out, in, kh, kw"):
        mask_for(np.ones((3, 3)), group(0.5))
    pattern = WeightPruning(scheme=PruningScheme.PATTERN, density=0.4, pattern_entries=4)
    with pytest.raises(ContractError, match="3x3 kernels, not 1x1"):
        mask_for(np.ones((3, 3, 1, 1)), pattern)
