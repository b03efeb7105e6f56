"""Drawing genomes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from search.algorithms.sampling import (
    draw_new,
    draw_uniform,
    genome_code,
    genome_codes,
    genome_of_code,
    initial_genomes,
)
from tests.unit.search.algorithms.searcher_suite import SMALL_SPACE, SPACE


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 2)), max_size=40))
def test_codes_tell_genomes_apart(genomes: list[tuple[int, int, int]]) -> None:
    assert len({genome_code(g, (5, 2, 3)) for g in genomes}) == len(set(genomes))


@given(st.lists(st.integers(1, 9), max_size=90).map(tuple), st.integers(0, 2**32))
def test_codes_of_many_are_those_of_each(num_choices: tuple[int, ...], seed: int) -> None:
    genomes = np.random.default_rng(seed).integers(0, num_choices, size=(3, len(num_choices)))
    codes = genome_codes(genomes, num_choices)
    assert codes == [genome_code(tuple(row), num_choices) for row in genomes.tolist()]
    assert [genome_of_code(code, num_choices) for code in codes] == [tuple(row) for row in genomes.tolist()]


def test_first_generation_has_both_ends_and_covers_the_sizes() -> None:
    genomes = initial_genomes(np.random.default_rng(0), SPACE, 24)
    assert len(set(genomes)) == 24
    assert SPACE.unpruned in genomes
    assert SPACE.smallest in genomes
    upper = np.array(SPACE.num_choices) - 1
    levels = [float(np.mean(np.array(g) / upper)) for g in genomes]
    assert np.histogram(levels, bins=4, range=(0, 1))[0].min() >= 3


def test_first_generation_of_a_small_space() -> None:
    genomes = initial_genomes(np.random.default_rng(0), SMALL_SPACE, 40)
    assert len(genomes) == len(set(genomes)) == 27


def test_new_genomes_are_found_in_a_nearly_full_space() -> None:
    rng = np.random.default_rng(0)
    everything = draw_new(rng, SMALL_SPACE, 27, (), lambda: draw_uniform(rng, SMALL_SPACE))
    codes = [genome_code(g, SMALL_SPACE.num_choices) for g in everything]
    last = draw_new(rng, SMALL_SPACE, 5, set(codes[:-1]), lambda: draw_uniform(rng, SMALL_SPACE))
    assert last == everything[-1:]
