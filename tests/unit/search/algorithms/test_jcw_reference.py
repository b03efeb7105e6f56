"""JCW's operators as released: their measured quirks are what is checked."""

from __future__ import annotations

import numpy as np
import pytest

from device_agent.contracts import ContractError
from search.algorithms.base import Searcher
from search.algorithms.jcw_reference import polynomial_mutation, released_crowding, released_selection
from search.algorithms.registry import make_searcher
from search.domain.objective import Constraint, Metric
from search.domain.space import SearchSpace, VariableKind
from search.loop import run_search
from search.problem import SearchProblem
from tests.unit.search.algorithms.searcher_suite import (
    SPACE,
    THREE,
    TWO,
    known_figures,
    landscape,
    tell_landscape,
)

ONE_SCHEME = SearchSpace(
    variables=tuple(v for v in SPACE.variables if v.kind is not VariableKind.SCHEME),
    default_scheme=SPACE.default_scheme,
)
KNOWN = {
    "known": lambda genomes: known_figures(genomes, ONE_SCHEME),
    "known_metrics": frozenset({Metric.LATENCY_MS, Metric.PARAMETERS}),
}
PROBLEM = SearchProblem(space=ONE_SCHEME, objectives=TWO, **KNOWN)


def make(problem: SearchProblem = PROBLEM, seed: int = 0, population: int = 16) -> Searcher:
    return make_searcher("jcw", problem, population=population, seed=seed, reproduce_reference=True)


@pytest.mark.parametrize(
    ("num_choices", "changed"),
    # measured on the released code: bounds .5, .3, .6, .8 and .9, up to 1 in steps of .1
    [(6, 0.149), (8, 0.257), (5, 0.093), (3, 0.007), (2, 0.0)],
)
def test_mutation_mostly_snaps_back(num_choices: int, changed: float) -> None:
    rng = np.random.default_rng(0)
    genomes = rng.integers(0, num_choices, size=(400_000, 1))  # one gene: always picked
    mutated = polynomial_mutation(rng, genomes, np.array([num_choices]))
    assert mutated.min() >= 0
    assert mutated.max() < num_choices
    assert float((mutated != genomes).mean()) == pytest.approx(changed, abs=0.003)


def test_crowding_leaves_the_second_point_out() -> None:
    np.testing.assert_allclose(released_crowding(np.array([4.0, 0.0, 1.0, 3.0])), [np.inf, np.inf, 0.0, 0.75])
    assert released_crowding(np.array([2.0, 2.0, 2.0, 2.0])).tolist() == [np.inf, 0.0, 0.0, np.inf]
    assert released_crowding(np.array([])).size == 0


def test_low_targets_come_first() -> None:
    # (loss, latency): each target's first front is one point; the stage does not fit as a whole
    points = np.array([(1.0, 9.0), (1.0, 6.0), (1.0, 3.0), (1.0, 0.0)])
    assert released_selection(points, 1, np.array([0.0, 3.0, 6.0, 9.0]), 2).tolist() == [2, 3]


def test_seed_and_state_decide() -> None:
    def trace(searcher: Searcher, generations: int) -> list:
        asked = []
        for _ in range(generations):
            asked.append(searcher.ask())
            tell_landscape(searcher, asked[-1], space=ONE_SCHEME)
        return asked

    whole = make(seed=2)
    expected = trace(whole, 6)
    first = make(seed=2)
    trace(first, 3)
    second = make(seed=2)
    second.restore(first.state())
    assert trace(second, 3) == expected[3:]
    assert second.state() == whole.state()
    with pytest.raises(ContractError, match="method"):
        make_searcher("jcw", PROBLEM, population=16, seed=2).restore(first.state())


def test_finds_better_ones_than_it_began_with() -> None:
    def volume(generations: int) -> float:
        state = run_search(
            searcher=make(),
            problem=PROBLEM,
            evaluate=lambda genomes: [landscape(g, ONE_SCHEME) for g in genomes],
            generations=generations,
        )
        return float(np.mean([i.evaluation.metrics[Metric.LOSS] for i in state.archive[-16:]]))

    assert volume(20) < volume(1)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (SearchProblem(space=SPACE, objectives=TWO), "one scheme"),
        (SearchProblem(space=ONE_SCHEME, objectives=TWO), "before it is evaluated"),
        (SearchProblem(space=ONE_SCHEME, objectives=THREE, **KNOWN), "two objectives"),
        (
            SearchProblem(
                space=ONE_SCHEME,
                objectives=TWO,
                constraints=(Constraint(metric=Metric.LATENCY_MS, max=20.0),),
                **KNOWN,
            ),
            "no constraints",
        ),
    ],
)
def test_what_the_released_code_cannot_do_is_refused(problem: SearchProblem, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        make(problem)


def test_only_jcw_has_released_operators() -> None:
    with pytest.raises(ContractError, match="reproduce_reference is there for jcw, not for 'nsga2'"):
        make_searcher("nsga2", PROBLEM, population=8, seed=0, reproduce_reference=True)
