"""The conformance suite for each method, and the registry."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from device_agent.contracts import ContractError
from search.algorithms.base import Searcher
from search.algorithms.registry import SEARCHERS, make_searcher
from search.domain.config import Method
from search.domain.objective import Metric, Objective
from search.domain.space import SearchSpace
from tests.unit.search.algorithms.searcher_suite import SPACE, TWO, EvolutionarySuite, SearcherSuite


class _ByName:
    METHOD: Method

    def make(
        self, space: SearchSpace = SPACE, *, population: int = 12, seed: int = 0, objectives: Sequence[Objective] = TWO
    ) -> Searcher:
        return make_searcher(self.METHOD, space, population=population, seed=seed, objectives=objectives)


class TestRandom(_ByName, SearcherSuite):
    METHOD = Method.RANDOM


class TestNsga2(_ByName, EvolutionarySuite):
    METHOD = Method.NSGA2


class TestJcw(_ByName, EvolutionarySuite):
    METHOD = Method.JCW


def test_every_method_is_there() -> None:
    assert set(SEARCHERS) == set(Method)


def test_unknown_method() -> None:
    with pytest.raises(ContractError, match="unknown search method 'tabu'; known are jcw"):
        make_searcher("tabu", SPACE, population=8, seed=0, objectives=TWO)


def test_jcw_needs_latency() -> None:
    objectives = (Objective(metric=Metric.LOSS), Objective(metric=Metric.MACS))
    with pytest.raises(ContractError, match="'jcw' spreads its candidates over latency"):
        make_searcher("jcw", SPACE, population=8, seed=0, objectives=objectives)
