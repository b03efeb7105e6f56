"""Genes without effect: one canonical genome for each design, and one evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search.algorithms.registry import make_searcher
from search.canonical import CanonicalForm
from search.domain.candidate import Evaluation
from search.domain.config import ChannelsConfig, DepthConfig, ResolutionConfig, SpaceConfig, WeightsConfig
from search.domain.space import Genome, VariableKind
from search.loop import run_search, state_from_json, state_to_json
from search.lowering import lower
from search.problem import SearchProblem
from search.space_builder import build_space
from tests.unit.search.algorithms.searcher_suite import TWO, landscape
from tests.unit.search.sample_networks import resnet_spec

SPEC = resnet_spec()
SPACE = build_space(
    SPEC,
    SpaceConfig(
        channels=ChannelsConfig(),
        weights=WeightsConfig(schemes=("group:4x1", "unstructured", "pattern:4x1/4")),
        depth=DepthConfig(),
        resolution=ResolutionConfig(),
    ),
)
CANONICAL = CanonicalForm(SPEC, SPACE)


def _genomes(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, SPACE.num_choices, size=(count, len(SPACE.variables)))


def _genome(row: np.ndarray) -> Genome:
    return tuple(int(g) for g in row)


def test_canonical_genomes_are_the_same_networks() -> None:
    genomes = _genomes(50)
    canonical = CANONICAL(genomes)
    assert (canonical != genomes).any(axis=1).sum() > 40
    np.testing.assert_array_equal(CANONICAL(canonical), canonical)
    for genome, form in zip(genomes, canonical, strict=True):
        assert lower(SPEC, SPACE.decode(_genome(genome))) == lower(SPEC, SPACE.decode(_genome(form)))


def test_every_gene_that_is_left_has_an_effect() -> None:
    for genome in CANONICAL(_genomes(6)):
        plan = lower(SPEC, SPACE.decode(_genome(genome)))
        for position, variable in enumerate(SPACE.variables):
            other = genome.copy()
            other[position] = (genome[position] + 1) % len(variable.choices)
            changed = CANONICAL([other])[0]
            assert (lower(SPEC, SPACE.decode(_genome(changed))) != plan) == bool((changed != genome).any())


def test_spaces_without_depth_are_left_alone() -> None:
    space = build_space(SPEC, SpaceConfig(channels=ChannelsConfig()))
    genomes = np.random.default_rng(0).integers(0, space.num_choices, size=(9, len(space.variables)))
    np.testing.assert_array_equal(CanonicalForm(SPEC, space)(genomes), genomes)
    assert CanonicalForm(SPEC, space)([]).shape == (0, len(space.variables))


def test_equal_designs_are_evaluated_once_and_resume() -> None:
    evaluated: list[Genome] = []

    def evaluate(genomes: Sequence[Genome]) -> list[Evaluation]:
        evaluated.extend(genomes)
        return [landscape(g, SPACE) for g in genomes]

    problem = SearchProblem(space=SPACE, objectives=TWO, canonical=CANONICAL)
    searcher = make_searcher("random", problem, population=16, seed=0)
    state = run_search(searcher=searcher, problem=problem, evaluate=evaluate, generations=4)
    np.testing.assert_array_equal(CANONICAL(evaluated), evaluated)
    assert len(set(evaluated)) == len(evaluated)
    assert {i.candidate.genome for i in state.archive} == set(evaluated)

    # A searcher that asks again for a design that it had under another genome gets the same figures.
    class Again:
        def __init__(self) -> None:
            self.told: list[np.ndarray] = []

        def ask(self) -> tuple[Genome, ...]:
            row = np.array(SPACE.unpruned)
            row[[p for p, v in enumerate(SPACE.variables) if v.kind is VariableKind.DEPTH]] = 0
            inner = next(
                p
                for p, v in enumerate(SPACE.variables)
                if (v.kind, v.target) == (VariableKind.CHANNELS, "layer1.1.conv1")
            )
            other = row.copy()
            other[inner] = 0
            return (_genome(row), _genome(other))

        def tell(self, genomes: Sequence[Genome], objectives: np.ndarray, violations: np.ndarray) -> None:
            self.told.append(objectives)

        def state(self) -> dict:
            return {}

        def restore(self, state: dict) -> None:
            pass

    again = Again()
    first = run_search(searcher=again, problem=problem, evaluate=evaluate, generations=1)
    assert len(first.archive) == 1
    np.testing.assert_array_equal(again.told[0][0], again.told[0][1])
    count = len(evaluated)
    resumed = state_from_json(state_to_json(first))
    run_search(searcher=again, problem=problem, evaluate=evaluate, generations=2, state=resumed)
    assert len(evaluated) == count
