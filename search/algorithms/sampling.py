"""Drawing genomes: uniformly, or spread from the smallest network to the unpruned one; always new ones on demand."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Collection

import numpy as np

from search.domain.space import Genome, SearchSpace, VariableKind
from search.pareto import IntArray

#: Spaces up to this size are listed when drawing keeps hitting known genomes; 2^16 genomes take a fraction of a second.
_LISTABLE = 1 << 16

#: Draws for each wanted genome before a small space is listed. In a larger space, known genomes are rarely hit.
_DRAWS_PER_GENOME = 50

#: Numbers of genomes are put together from parts that are no larger: they fit into 64 bits with a sign.
_MAX_GROUP = 1 << 62

#: How far a gene strays from its genome's level, as part of its range. Wide enough that layers differ freely, small
#: enough that levels stay apart.
_SPREAD_SIGMA = 0.25


def genome_code(genome: Genome, num_choices: tuple[int, ...]) -> str:
    """The number of `genome` in its space, in hexadecimal: a short exact key, one for each genome."""
    number = 0
    for gene, count in zip(genome, num_choices, strict=True):
        number = number * count + gene
    return f"{number:x}"


def genome_codes(genomes: IntArray, num_choices: tuple[int, ...]) -> list[str]:
    """The `genome_code` of each row of `genomes` (n, v), faster where there are many."""
    numbers = [0] * len(genomes)
    for start, end, size, weights in _digit_groups(num_choices):
        parts = (genomes[:, start:end] @ weights).tolist()
        numbers = [number * size + part for number, part in zip(numbers, parts, strict=True)]
    return [f"{number:x}" for number in numbers]


@functools.lru_cache(maxsize=64)
def _digit_groups(num_choices: tuple[int, ...]) -> tuple[tuple[int, int, int, IntArray], ...]:
    """Neighbouring genes whose number together fits into 64 bits: (start, end, numbers, place values) of each group."""
    groups = []
    start, size = 0, 1
    for end, count in enumerate((*num_choices, _MAX_GROUP + 1)):
        if size * count > _MAX_GROUP and end > start:
            counts = num_choices[start:end]
            values = list(itertools.accumulate(reversed(counts[1:]), operator.mul, initial=1))
            groups.append((start, end, size, np.array(values[::-1], dtype=np.int64)))
            start, size = end, 1
        size *= count
    return tuple(groups)


def genome_of_code(code: str, num_choices: tuple[int, ...]) -> Genome:
    """The inverse of `genome_code`. Raises `ValueError` where `code` is no number of this space."""
    number = int(code, 16)
    genes = []
    for count in reversed(num_choices):
        number, gene = divmod(number, count)
        genes.append(gene)
    if number:
        raise ValueError(f"{code!r} is beyond the last genome of the space")
    return tuple(reversed(genes))


def draw_uniform(rng: np.random.Generator, space: SearchSpace) -> Genome:
    """Every gene uniformly. Sums over many genes concentrate, so that such genomes are all of middling size."""
    return tuple(int(g) for g in rng.integers(0, space.num_choices))


def draw_at_level(rng: np.random.Generator, space: SearchSpace, level: float) -> Genome:
    """A genome about `level` of the way from `space.smallest` (0) to `space.unpruned` (1); schemes are uniform."""
    genome = []
    for variable in space.variables:
        last = len(variable.choices) - 1
        if variable.kind is VariableKind.SCHEME:
            genome.append(int(rng.integers(0, last + 1)))
        else:
            place = level + _SPREAD_SIGMA * float(rng.standard_normal())
            genome.append(min(last, max(0, round(place * last))))
    return tuple(genome)


def draw_new(
    rng: np.random.Generator,
    space: SearchSpace,
    count: int,
    seen: Collection[str],
    draw: Callable[[], Genome],
) -> tuple[Genome, ...]:
    """`count` distinct genomes from `draw` whose code is not in `seen`; fewer where the space has no more."""
    num_choices = space.num_choices
    found: dict[str, Genome] = {}
    for _ in range(_DRAWS_PER_GENOME * count):
        if len(found) == count:
            break
        genome = draw()
        code = genome_code(genome, num_choices)
        if code not in seen:
            found.setdefault(code, genome)
    if len(found) < count and math.prod(num_choices) <= _LISTABLE:
        left = [
            genome
            for genome in itertools.product(*map(range, num_choices))
            if (code := genome_code(genome, num_choices)) not in seen and code not in found
        ]
        picks = rng.permutation(len(left))[: count - len(found)]
        found |= {genome_code(left[i], num_choices): left[i] for i in picks}
    return tuple(found.values())


def initial_genomes(rng: np.random.Generator, space: SearchSpace, count: int) -> tuple[Genome, ...]:
    """A first generation that covers the range of sizes: the unpruned and the smallest genome, and levels between.

    JCW's reference draws every gene uniformly, which leaves both ends of the front to mutation; deviation for the sake
    of small budgets. Fewer than `count` where the space is smaller.
    """
    ends = dict.fromkeys((space.unpruned, space.smallest))
    found = {genome_code(genome, space.num_choices): genome for genome in list(ends)[:count]}
    wanted = count - len(found)
    for step in range(wanted):
        level = (step + float(rng.random())) / wanted
        for genome in draw_new(rng, space, 1, found.keys(), functools.partial(draw_at_level, rng, space, level)):
            found[genome_code(genome, space.num_choices)] = genome
    return tuple(found.values())
