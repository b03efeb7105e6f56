"""The conformance suite for each method, and the registry."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from typing import Any

import pytest

from device_agent.contracts import ContractError
from search.algorithms.factors import Factor
from search.algorithms.registry import SEARCHERS, make_searcher
from search.domain.config import Method
from search.domain.objective import Constraint, Metric, Objective
from search.domain.space import SearchSpace
from search.loop import front_of, run_search
from search.problem import SearchProblem
from tests.unit.search.algorithms.searcher_suite import (
    PROBLEM,
    SPACE,
    TWO,
    EvolutionarySuite,
    SearcherSuite,
    constrained,
    final_volume,
    known_part,
    known_tables,
    landscape,
    tell_landscape,
)


class TestRandom(SearcherSuite):
    METHOD = Method.RANDOM


class TestNsga2(EvolutionarySuite):
    METHOD = Method.NSGA2


class TestJcw(EvolutionarySuite):
    METHOD = Method.JCW


class _Known:
    def known(self, space: SearchSpace) -> dict[str, Any]:
        return known_part(space)


class TestAacp(_Known, EvolutionarySuite):
    """It looks for one network within each of a few budgets, which random search's front is a hard rival to."""

    METHOD = Method.AACP
    GAIN_OVER_RANDOM = 1.0
    MIN_BOUNDED_FRONT = 2


class TestExact(EvolutionarySuite):
    """Latencies as tables; no estimates of errors, so that they are learnt."""

    METHOD = Method.EXACT
    GAIN_OVER_RANDOM = 1.15

    def known(self, space: SearchSpace) -> dict[str, Any]:
        return {**known_part(space), "tables": functools.partial(known_tables, space=space)}


def _with_estimates() -> SearchProblem:
    """Estimates that say half of the truth: every other sensitivity is three times too small."""
    losses = known_tables(Metric.LOSS)[1:]
    errors = tuple(
        Factor(variables=f.variables, values=(f.values - f.values[-1]) / (1.0 if i % 2 else 3.0))
        for i, f in enumerate(losses)
    )
    return SearchProblem(space=SPACE, objectives=TWO, tables=known_tables, errors=errors, **known_part())


def test_estimates_help_exact_from_the_first_generation_and_are_corrected() -> None:
    problem = _with_estimates()
    without = replace(problem, errors=())
    for seed in range(3):
        given, learnt = (make_searcher("exact", p, population=16, seed=seed) for p in (problem, without))
        early, late = final_volume(given, 1), final_volume(make_searcher("exact", problem, population=16, seed=seed), 6)
        assert early > 1.05 * final_volume(learnt, 1)
        assert late > 1.01 * early


@pytest.mark.parametrize("method", ["jcw", "aacp", "nsga2"])
def test_seeding_with_exact_helps_and_resumes(method: str) -> None:
    problem = _with_estimates()
    seeded = functools.partial(make_searcher, method, problem, population=12, seed=1, seed_with=Method.EXACT)
    assert final_volume(seeded(), 2) > 1.02 * final_volume(make_searcher(method, problem, population=12, seed=1), 2)

    undisturbed, first, second = seeded(), seeded(), seeded()
    for _ in range(2):
        tell_landscape(undisturbed, undisturbed.ask())
    tell_landscape(first, first.ask())
    second.restore(json.loads(json.dumps(first.state())))
    tell_landscape(second, second.ask())
    assert second.ask() == undisturbed.ask()
    with pytest.raises(ContractError, match="seed_with"):
        seeded().restore(make_searcher(method, problem, population=12, seed=1).state())


def test_exact_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ContractError, match="must know latency_ms"):
        make_searcher("exact", PROBLEM, population=8, seed=0)
    with pytest.raises(ContractError, match="solves over tables"):
        make_searcher("exact", SearchProblem(space=SPACE, objectives=TWO, **known_part()), population=8, seed=0)
    known_only = tuple(Objective(metric=m) for m in (Metric.LATENCY_MS, Metric.PARAMETERS))
    with pytest.raises(ContractError, match="give exactly one"):
        make_searcher("exact", replace(_with_estimates(), objectives=known_only), population=8, seed=0)
    with pytest.raises(ContractError, match="leave seed_with out"):
        make_searcher("jcw", PROBLEM, population=8, seed=0, seed_with=Method.EXACT)


def test_aacp_looks_for_the_one_best_network_within_bounds() -> None:
    unpruned = landscape(SPACE.unpruned).metrics
    bounds = tuple(Constraint(metric=m, max=0.5 * unpruned[m]) for m in (Metric.LATENCY_MS, Metric.PARAMETERS))
    problem = SearchProblem(space=SPACE, objectives=TWO[:1], constraints=bounds, **known_part())

    def best(method: str) -> float:
        searcher = make_searcher(method, problem, population=12, seed=0)
        state = run_search(searcher=searcher, problem=problem, evaluate=constrained(bounds), generations=10)
        (point,) = front_of(state.archive, problem.objectives)
        assert point.evaluation.violation == 0
        return point.evaluation.metrics[Metric.LOSS]

    assert best("aacp") < 0.8 * best("random")


def test_exact_keeps_several_bounds() -> None:
    bounds = (
        Constraint(metric=Metric.LATENCY_MS, max=0.4 * landscape(SPACE.unpruned).metrics[Metric.LATENCY_MS]),
        Constraint(metric=Metric.PARAMETERS, max=0.4 * landscape(SPACE.unpruned).metrics[Metric.PARAMETERS]),
    )
    searcher = make_searcher("exact", replace(_with_estimates(), constraints=bounds), population=12, seed=0)
    genomes = searcher.ask()
    figures = [landscape(g).metrics for g in genomes]
    assert all(f[b.metric] <= b.max for f in figures for b in bounds)
    # The best within the bounds is on a bound, or nearly.
    assert max(f[b.metric] / b.max for f in figures for b in bounds) > 0.98


class TestPolicyGradient(_Known, EvolutionarySuite):
    METHOD = Method.POLICY_GRADIENT


class TestAssistedJcw(_Known, TestJcw):
    def test_beats_the_operators_alone_over_five_seeds(self) -> None:
        for seed in range(5):
            alone = make_searcher("jcw", PROBLEM, population=16, seed=seed)
            assert final_volume(self.make(population=16, seed=seed), 15) > 1.01 * final_volume(alone, 15)


def test_every_method_is_there() -> None:
    assert set(SEARCHERS) == set(Method)


def test_unknown_method() -> None:
    with pytest.raises(ContractError, match="unknown search method 'tabu'; known are jcw"):
        make_searcher("tabu", PROBLEM, population=8, seed=0)


def test_jcw_needs_latency() -> None:
    objectives = (Objective(metric=Metric.LOSS), Objective(metric=Metric.MACS))
    with pytest.raises(ContractError, match="'jcw' spreads its candidates over latency"):
        make_searcher("jcw", SearchProblem(space=SPACE, objectives=objectives), population=8, seed=0)
