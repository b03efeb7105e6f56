"""What the suite asks of every method, for those whose proposals need a real network's layers or chains."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from search.algorithms.registry import make_searcher
from search.domain.candidate import Evaluation
from search.domain.objective import Constraint, Metric
from search.domain.space import Genome
from search.errors import InfeasibleBudget
from search.loop import Evaluate, front_of, run_search, state_from_json, state_to_json
from search.problem import SearchProblem
from tests.unit.search.algorithms.mapping_samples import resnet_problem
from tests.unit.search.algorithms.searcher_suite import TWO
from tests.unit.search.algorithms.test_three_dimensions import problem as chain_problem

POPULATION, GENERATIONS = 8, 4
PROBLEMS: dict[str, Callable[[], SearchProblem]] = {"rule_mapping": resnet_problem, "three_dimensions": chain_problem}


def failing(problem: SearchProblem) -> Evaluate:
    """A loss that falls with every gene; every fifth design cannot be evaluated."""

    def evaluate(genomes: Sequence[Genome]) -> list[Evaluation]:
        latency = problem.known(np.array(genomes))[Metric.LATENCY_MS]
        last = np.array(problem.space.num_choices) - 1
        found = []
        for genome, cost in zip(genomes, latency, strict=True):
            loss = float(np.square(1.0 - np.array(genome) / np.maximum(last, 1)).sum())
            is_lost = sum(genome) % 5 == 0
            figures = {Metric.LOSS: math.nan if is_lost else loss, Metric.LATENCY_MS: float(cost)}
            found.append(Evaluation(metrics=figures, failure="the training diverged" if is_lost else None))
        return found

    return evaluate


@pytest.mark.parametrize("method", PROBLEMS)
def test_failures_are_survived_and_a_stopped_search_goes_on_alike(method: str) -> None:
    problem = PROBLEMS[method]()
    states: list[str] = []

    def searcher():
        return make_searcher(method, problem, population=POPULATION, seed=3)

    arguments = {"problem": problem, "evaluate": failing(problem), "generations": GENERATIONS}
    whole = run_search(
        searcher=searcher(),
        on_generation=lambda state: states.append(json.dumps(state_to_json(state), allow_nan=False)),
        **arguments,
    )
    genomes = [item.candidate.genome for item in whole.archive]
    assert len(set(genomes)) == len(genomes) > 2 * POPULATION
    for genome in genomes:
        problem.space.decode(genome)
    failures = [item for item in whole.archive if item.evaluation.failure is not None]
    assert 0 < len(failures) < len(genomes) / 2
    front = front_of(whole.archive, TWO)
    assert front
    assert all(item.evaluation.failure is None for item in front)
    resumed = run_search(searcher=searcher(), state=state_from_json(json.loads(states[1])), **arguments)
    assert json.dumps(state_to_json(resumed)) == states[-1]


@pytest.mark.parametrize("method", PROBLEMS)
def test_an_infeasible_budget_is_refused_with_the_smallest_value(method: str) -> None:
    problem = PROBLEMS[method]()
    smallest = float(problem.known(np.array([problem.space.smallest]))[Metric.LATENCY_MS][0])
    bound = Constraint(metric=Metric.LATENCY_MS, max=0.5 * smallest)
    with pytest.raises(InfeasibleBudget, match="smallest"):
        make_searcher(method, dataclasses.replace(problem, constraints=(bound,)), population=POPULATION, seed=0)
