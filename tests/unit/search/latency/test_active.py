"""The first kernels of active measuring, and when rounds come."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from device_agent.contracts import ContractError
from search.domain.config import ChannelsConfig, SpaceConfig, WeightsConfig
from search.latency.active import first_kernels, kernels_of_round, round_ends
from search.latency.families import coordinates_of, family_of
from search.latency.knots import corners_for, knots_for
from search.latency.model.features import kernel_features
from search.space_builder import build_space
from tests.unit.search.sample_networks import resnet_spec

SPEC = resnet_spec()
SPACE = build_space(SPEC, SpaceConfig(channels=ChannelsConfig(), weights=WeightsConfig()))


def test_corners_are_the_ends_of_every_axis_and_the_dense_network() -> None:
    corners, grid = corners_for(SPEC, SPACE), knots_for(SPEC, SPACE, 400)
    assert len(set(corners)) == len(corners) < len(grid)
    assert set(SPEC.plan.kernels) <= set(corners)
    ends = [
        {family_of(k): None for k in kernels}
        | {
            family: [
                (min(axis), max(axis))
                for axis in zip(*(coordinates_of(k) for k in kernels if family_of(k) == family), strict=True)
            ]
            for family in {family_of(k) for k in kernels}
        }
        for kernels in (corners, grid)
    ]
    assert ends[0] == ends[1]


def test_every_mode_gets_kernels_from_inside() -> None:
    def chosen(seed: int, most: int = 400) -> tuple[object, ...]:
        return first_kernels(SPEC, SPACE, "native", most, np.random.default_rng(seed))

    corners = corners_for(SPEC, SPACE)
    kernels = first_kernels(SPEC, SPACE, "native", 400, np.random.default_rng(0))
    assert kernels[: len(corners)] == corners
    assert len(set(kernels)) == len(kernels)
    inside = Counter(kernel_features(k, "native").mode for k in kernels[len(corners) :])
    assert set(inside.values()) <= {1, 2, 3}
    convolutions = [mode for mode in inside if mode.startswith("conv kxk s1 ")]
    assert convolutions
    assert all(inside[mode] == 3 for mode in convolutions)
    assert kernels == chosen(0) != chosen(1)
    # Half of what is left at most; the search chooses the others.
    assert len(chosen(0, len(corners) + 7)) == len(corners) + 3
    with pytest.raises(ContractError, match=f"are {len(corners)} kernels, but max_kernels is {len(corners)}"):
        chosen(0, len(corners))


@pytest.mark.parametrize(
    ("generations", "per_round", "ends"),
    [(10, 2, (2, 4, 6, 8, 10)), (10, 4, (4, 8, 10)), (3, 5, (3,)), (1, 1, (1,)), (3, 1, (1, 2, 3))],
)
def test_rounds_end_with_the_search(generations: int, per_round: int, ends: tuple[int, ...]) -> None:
    assert round_ends(generations, per_round) == ends


def test_rounds_use_up_the_budget() -> None:
    left, spent = 10, []
    for rounds_left in (4, 3, 2, 1):
        spent.append(kernels_of_round(left, rounds_left))
        left -= spent[-1]
    assert spent == [3, 3, 2, 2]
    assert kernels_of_round(0, 3) == 0
