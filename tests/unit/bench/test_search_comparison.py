"""The arithmetic of the comparison of search methods; the networks themselves take hours."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import ArrayLike

from bench.search import estimators, mapping_trained, trained, true_evaluations
from bench.search.networks import NetworkCase
from bench.search.true_evaluations import Progress
from device_agent.contracts import PruningScheme
from search.domain.objective import Metric
from search.domain.space import SchemeChoice, SearchSpace, Variable, VariableKind
from search.problem import SearchProblem


@pytest.fixture
def problem() -> SearchProblem:
    """Two widths and two densities; latency in ms is 1 and the sum of the choices."""
    space = SearchSpace(
        variables=(
            Variable(kind=VariableKind.CHANNELS, target="a", choices=(4, 8, 12)),
            Variable(kind=VariableKind.DENSITY, target="a", choices=(0.5, 1.0)),
            Variable(kind=VariableKind.CHANNELS, target="b", choices=(4, 8, 12, 16, 20)),
        ),
        default_scheme=SchemeChoice(scheme=PruningScheme.GROUP, block_filters=4),
    )

    def known(genomes: ArrayLike) -> dict[Metric, Any]:
        return {Metric.LATENCY_MS: 1.0 + np.asarray(genomes, dtype=np.float64).sum(axis=1)}

    return SearchProblem(
        space=space,
        objectives=true_evaluations.OBJECTIVES,
        known=known,
        known_metrics=frozenset({Metric.LATENCY_MS}),
    )


def test_uniform_networks_take_one_part_of_all_widths(problem: SearchProblem) -> None:
    assert trained.uniform_genomes(problem, VariableKind.CHANNELS) == [
        (0, 1, 0),
        (0, 1, 1),
        (1, 1, 2),
        (2, 1, 3),
        (2, 1, 4),
    ]
    assert trained.uniform_genomes(problem, VariableKind.DENSITY) == [(2, 0, 4), (2, 1, 4)]


def test_each_budget_gets_the_best_that_is_fast_enough(problem: SearchProblem) -> None:
    genomes = [(0, 0, 0), (1, 0, 0), (2, 1, 4)]
    choices = trained.within_budgets(
        problem, "m", genomes, [0.9, 0.5, 0.1], tflite_ms=10.0, budgets=(0.05, 0.1, 0.2, 0.8)
    )
    assert [(c.budget, c.estimated_loss, c.predicted_latency_ms) for c in choices] == [
        (0.1, 0.9, 1.0),
        (0.2, 0.5, 2.0),
        (0.8, 0.1, 8.0),
    ]
    assert choices[1].decisions == problem.space.decode((1, 0, 0))


def test_a_network_counts_for_one_budget_only(problem: SearchProblem) -> None:
    choices = trained.within_budgets(problem, "m", [(0, 0, 0)], [0.9], tflite_ms=10.0, budgets=(0.1, 0.5))
    assert [c.budget for c in choices] == [0.1]


def test_volumes_are_parts_of_the_joint_front(problem: SearchProblem) -> None:
    case = cast(
        NetworkCase,
        SimpleNamespace(name="n", data=SimpleNamespace(split=SimpleNamespace(train=SimpleNamespace(num_classes=10)))),
    )
    guessing = math.log(10)
    # The unpruned network takes 8 ms; the joint front begins at a loss of 0 and at 1 ms.
    best = [Progress(evaluations=2, genomes=(), front=np.array([[0.0, 1.0]]), minutes=1.0)]
    half = [Progress(evaluations=2, genomes=(), front=np.array([[guessing / 2, 1.0]]), minutes=3.0)]
    rows = true_evaluations.volume_rows(case, problem, {("a", 0): best, ("b", 0): half, ("b", 1): best})
    by_method = {row["method"]: row for row in rows}
    assert by_method["a"]["hypervolume_mean"] == pytest.approx(1.0)
    assert by_method["b"]["hypervolume_mean"] == pytest.approx(0.75)
    assert by_method["b"]["minutes"] == pytest.approx(2.0)
    low, high = by_method["b"]["hypervolume_ci95"]
    assert low < 0.75 < high
    assert "0.750" in true_evaluations.table_text(rows)


def test_estimates_are_also_judged_among_networks_of_about_the_same_latency() -> None:
    latency_ms = np.array([1.0, 1.2, 4.0, 4.4, 4.6])
    truth = np.array([0.1, 0.2, 0.6, 0.5, 0.7])
    # By size alone: right for three of the four pairs that are alike, (0, 1), (2, 4) and (3, 4).
    assert estimators.tau_among_alike(latency_ms, truth, latency_ms) == (pytest.approx(0.5), 4)
    assert estimators.tau_among_alike(truth, truth, latency_ms) == (1.0, 4)
    tied, pairs = estimators.tau_among_alike(np.zeros(5), truth, latency_ms)
    assert (tied, pairs) == (0.0, 4)
    nothing, pairs = estimators.tau_among_alike(truth[:2], truth[:2], np.array([1.0, 2.0]))
    assert math.isnan(nothing)
    assert pairs == 0


def test_winners_within_the_budgets_are_trained_in_the_order_of_contestants() -> None:
    def run(contestant: str, seed: int) -> dict[str, Any]:
        row = {"latency_ms": 0.1, "judged_accuracy": 0.5, "loss": 1.0, "decisions": {"channels": {"a": seed}}}
        # Within 0.3 nothing was found.
        rows = [{"budget": 0.3}, {"budget": 0.4, **row}, {"budget": 0.5, **row}]
        return {"contestant": contestant, "seed": seed, "rows": rows}

    result = {"runs": [run("b", 0), run("a", 0), run("b", 1), run("c", 0)]}
    rows = mapping_trained.chosen_rows(result, ("a", "b"), (0.3, 0.4))
    assert [(row["contestant"], row["seed"], row["budget"]) for row in rows] == [
        ("a", 0, 0.4),
        ("b", 0, 0.4),
        ("b", 1, 0.4),
    ]
    assert rows[2]["decisions"] == {"channels": {"a": 1}}


def test_trained_winners_are_averaged_over_seeds() -> None:
    row = {"contestant": "a", "budget": 0.4, "judged_accuracy": 0.5, "measured_latency_ms": 0.1, "part_of_dense": 0.4}
    text = mapping_trained.table_text([{**row, "accuracy": 0.8}, {**row, "accuracy": 0.9}])
    assert text.splitlines()[1].split() == ["a", "0.40", "2", "50.0", "85.00", "0.100", "0.400"]
