"""The conformance suite for each method, and the registry."""

from __future__ import annotations

from typing import Any

import pytest

from device_agent.contracts import ContractError
from search.algorithms.registry import SEARCHERS, make_searcher
from search.domain.config import Method
from search.domain.objective import Metric, Objective
from search.domain.space import SearchSpace
from search.problem import SearchProblem
from tests.unit.search.algorithms.searcher_suite import (
    PROBLEM,
    SPACE,
    EvolutionarySuite,
    SearcherSuite,
    final_volume,
    known_part,
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
