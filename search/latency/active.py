"""What a search measures that chooses its kernels as it goes: the first kernels, and when there are more.

The corners of each family come first, so that nothing is predicted from one side only, and some kernels of each mode of
code from inside: with few measurements a latency model is far too sure of modes that it hardly knows.
"""

from __future__ import annotations

import numpy as np

from device_agent.contracts import ContractError, KernelSpec
from search.algorithms.sampling import draw_at_level
from search.domain.network import NetworkSpec
from search.domain.space import SearchSpace
from search.latency.families import without_seed
from search.latency.knots import corners_for
from search.latency.model.features import kernel_features
from search.lowering import lower

#: Kernels of each mode beside the corners.
_INSIDE_PER_MODE = 3

#: Random networks whose kernels those are taken from.
_NETWORKS = 24


def first_kernels(
    spec: NetworkSpec, space: SearchSpace, runtime: str, max_kernels: int, rng: np.random.Generator
) -> tuple[KernelSpec, ...]:
    """The kernels (seed 0) to measure before a search begins: fewer than `max_kernels`.

    Raises `ContractError` where the corners alone are as many.
    """
    corners = corners_for(spec, space)
    if len(corners) >= max_kernels:
        raise ContractError(
            f"the corners of {spec.architecture}'s kernel families are {len(corners)} kernels, but max_kernels is "
            f"{max_kernels}, which leaves nothing to choose: raise measuring.max_kernels, open fewer schemes, or take "
            "measuring.strategy 'grid'"
        )
    # The first half of what is left at most: the search is to choose the others.
    room = (max_kernels - len(corners)) // 2
    return (*corners, *_inside(spec, space, runtime, set(corners), rng)[:room])


def _inside(
    spec: NetworkSpec, space: SearchSpace, runtime: str, corners: set[KernelSpec], rng: np.random.Generator
) -> list[KernelSpec]:
    """Kernels of random networks that are no corners, a few of each mode, all modes in turn."""
    by_mode: dict[str, list[KernelSpec]] = {}
    for level in np.linspace(0.0, 1.0, _NETWORKS):
        plan = lower(spec, space.decode(draw_at_level(rng, space, float(level))))
        for kernel in dict.fromkeys(map(without_seed, plan.kernels)):
            own = by_mode.setdefault(kernel_features(kernel, runtime).mode, [])
            if kernel not in corners and kernel not in own:
                own.append(kernel)
    turns: list[list[KernelSpec]] = [[] for _ in range(_INSIDE_PER_MODE)]
    for mode in sorted(by_mode):
        own = by_mode[mode]
        for turn, place in enumerate(rng.permutation(len(own))[:_INSIDE_PER_MODE]):
            turns[turn].append(own[place])
    return [kernel for turn in turns for kernel in turn]


def round_ends(generations: int, per_round: int) -> tuple[int, ...]:
    """After how many generations each round of measuring comes; the last one is after the last generation."""
    return (*range(per_round, generations, per_round), generations)


def kernels_of_round(left: int, rounds_left: int) -> int:
    """How many of the `left` kernels of the budget a round may measure that has `rounds_left` - 1 after it."""
    return -(-left // rounds_left)
