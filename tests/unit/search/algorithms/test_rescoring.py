"""Searches whose scores compare within a generation only: survivors are scored again, and old scores count nowhere."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import pytest

from device_agent.contracts import ContractError, PruningScheme
from search.algorithms.base import PopulationSearcher, Searcher
from search.algorithms.registry import make_searcher
from search.domain.candidate import Evaluation
from search.domain.objective import Metric
from search.domain.space import Genome, SchemeChoice, SearchSpace, Variable, VariableKind
from search.loop import SearchState, comparable, front_of, run_search, state_from_json, state_to_json
from search.problem import SearchProblem
from tests.unit.search.algorithms.searcher_suite import TWO, known_part, landscape

SPACE = SearchSpace(
    variables=tuple(
        Variable(kind=VariableKind.DENSITY, target=f"conv{i}", choices=(0.2, 0.4, 0.6, 0.8, 1.0)) for i in range(10)
    ),
    default_scheme=SchemeChoice(scheme=PruningScheme.GROUP, block_filters=4),
)
PROBLEM = SearchProblem(space=SPACE, objectives=TWO, **known_part(SPACE))
METHODS = [("jcw", False), ("jcw", True), ("nsga2", False), ("aacp", False)]
POPULATION = 8


def score(genomes: Sequence[Genome], generation: int) -> list[Evaluation]:
    """Each generation has a yardstick of its own: later ones are worse by far, so that old scores would always win."""
    found = [landscape(g, SPACE) for g in genomes]
    return [
        dataclasses.replace(e, metrics={**e.metrics, Metric.LOSS: e.metrics[Metric.LOSS] + 1000.0 * generation})
        for e in found
    ]


def make(method: str, is_reference: bool) -> Searcher:
    return make_searcher(method, PROBLEM, population=POPULATION, seed=3, reproduce_reference=is_reference)


@pytest.mark.parametrize(("method", "is_reference"), METHODS)
def test_the_survivors_of_a_generation_are_scored_with_the_next(method: str, is_reference: bool) -> None:
    searcher = make(method, is_reference)
    pools: list[tuple[set[Genome], set[Genome]]] = []

    def watch(genomes: Sequence[Genome], generation: int) -> list[Evaluation]:
        assert isinstance(searcher, PopulationSearcher)
        pools.append((set(searcher.survivors()), set(genomes)))
        assert len(set(genomes)) == len(genomes)
        return score(genomes, generation)

    state = run_search(searcher=searcher, problem=PROBLEM, score_generation=watch, generations=6)

    assert pools[0][0] == set()
    for survivors, scored in pools[1:]:
        assert 0 < len(survivors) <= POPULATION
        assert survivors < scored
    assert all(survivors for survivors, _ in pools[1:])
    # Old scores would win: without scoring again nobody new would ever survive.
    assert any(pools[1][0].isdisjoint({genome}) for genome in pools[-1][0])
    last = {item.candidate.genome for item in comparable(state.archive)}
    assert last == pools[-1][1]
    front = front_of(state.archive, TWO)
    assert front
    assert {item.candidate.genome for item in front} <= last
    assert {item.evaluation.generation for item in front} == {5}


@pytest.mark.parametrize(("method", "is_reference"), METHODS)
@pytest.mark.parametrize("stop", [1, 3])
def test_a_killed_search_ends_on_the_same_front(method: str, is_reference: bool, stop: int) -> None:
    class Killed(Exception):
        pass

    stored: list[str] = []

    def store(state: SearchState) -> None:
        stored.append(json.dumps(state_to_json(state)))
        if len(stored) == stop:
            raise Killed

    whole = run_search(searcher=make(method, is_reference), problem=PROBLEM, score_generation=score, generations=5)
    with pytest.raises(Killed):
        run_search(
            searcher=make(method, is_reference),
            problem=PROBLEM,
            score_generation=score,
            generations=5,
            on_generation=store,
        )
    resumed = run_search(
        searcher=make(method, is_reference),
        problem=PROBLEM,
        score_generation=score,
        generations=5,
        state=state_from_json(json.loads(stored[-1])),
    )

    assert json.dumps(state_to_json(resumed)) == json.dumps(state_to_json(whole))


@pytest.mark.parametrize(("method", "is_reference"), METHODS)
def test_a_survivor_that_fails_the_second_time_is_gone(method: str, is_reference: bool) -> None:
    searcher = make(method, is_reference)
    run_search(searcher=searcher, problem=PROBLEM, score_generation=score, generations=2)
    assert isinstance(searcher, PopulationSearcher)
    doomed = set(searcher.survivors()[:3])

    def fail(genomes: Sequence[Genome], generation: int) -> list[Evaluation]:
        return [
            Evaluation(metrics={}, failure="diverged") if genome in doomed else evaluation
            for genome, evaluation in zip(genomes, score(genomes, generation), strict=True)
        ]

    state = run_search(searcher=make(method, is_reference), problem=PROBLEM, score_generation=fail, generations=4)
    assert not doomed & {item.candidate.genome for item in front_of(state.archive, TWO)}


def test_survivors_are_checked() -> None:
    searcher = make("jcw", False)
    genomes = searcher.ask()
    searcher.tell(genomes, np.random.default_rng(0).random((len(genomes), 2)), np.zeros(len(genomes)))
    assert isinstance(searcher, PopulationSearcher)
    with pytest.raises(ValueError, match="are not the 8 survivors"):
        searcher.rescore(genomes[:2], np.zeros((2, 2)), np.zeros(2))


def test_a_method_without_survivors_is_refused() -> None:
    with pytest.raises(ContractError, match="RandomSearcher has no survivors"):
        run_search(searcher=make("random", False), problem=PROBLEM, score_generation=score, generations=2)
