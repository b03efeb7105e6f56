"""A search told anew: every latency from another table, and nothing else changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from search.algorithms.registry import make_searcher
from search.domain.candidate import Evaluation
from search.domain.config import Method
from search.domain.objective import Constraint, LatencyOverDevices, Metric
from search.domain.space import Genome
from search.known_figures import NetworkFigures
from search.latency.fleet import FleetLatencyModel
from search.loop import SearchState, run_search, state_from_json, state_to_json
from search.problem import SearchProblem
from search.rescoring import told_anew, with_figures
from tests.unit.search.test_several_devices import MODELS, OBJECTIVES, SPACE, SPEC

CONSTRAINTS = (Constraint(metric=Metric.LATENCY_MS, max=2.6),)


def figures_on(device: str) -> NetworkFigures:
    return NetworkFigures(SPEC, SPACE, FleetLatencyModel({device: MODELS[device]}, LatencyOverDevices.MAX))


def problem_on(device: str) -> SearchProblem:
    figures = figures_on(device)
    return SearchProblem(
        space=SPACE,
        objectives=OBJECTIVES,
        constraints=CONSTRAINTS,
        known=figures,
        known_metrics=NetworkFigures.METRICS,
        known_latencies=figures.latencies_ms,
    )


def evaluate(genomes: Sequence[Genome]) -> list[Evaluation]:
    """Losses fall with the weights that stay; the third candidate of a generation fails."""
    known = figures_on("phone")(genomes)
    return [
        Evaluation(
            metrics={
                Metric.LOSS: 1e5 / float(known[Metric.PARAMETERS][row]),
                **{metric: float(values[row]) for metric, values in known.items()},
            },
            violation=0.0,
            failure="no" if row == 2 else None,
        )
        for row in range(len(genomes))
    ]


def searched(method: Method) -> SearchState:
    problem = problem_on("phone")
    searcher = make_searcher(method, problem, population=12, seed=3)
    return run_search(searcher=searcher, problem=problem, evaluate=evaluate, generations=3)


def test_latencies_and_violations_are_of_the_new_table_and_estimates_stay() -> None:
    archive = searched(Method.RANDOM).archive
    anew = with_figures(archive, figures_on("pi4"), CONSTRAINTS)
    for before, after in zip(archive, anew, strict=True):
        latency_ms = float(figures_on("pi4")([after.candidate.genome])[Metric.LATENCY_MS][0])
        assert after.evaluation.metrics == {**before.evaluation.metrics, Metric.LATENCY_MS: latency_ms}
        assert after.evaluation.violation == pytest.approx(max(0.0, latency_ms / 2.6 - 1.0))
        assert after.evaluation.failure == before.evaluation.failure
        assert after.evaluation.latencies_ms == {}
    assert {item.evaluation.violation > 0 for item in anew} == {True, False}


@pytest.mark.parametrize("method", [Method.JCW, Method.NSGA2, Method.RANDOM])
def test_a_searcher_told_anew_goes_on_as_from_its_stored_state(method: Method) -> None:
    state = searched(method)
    problem = problem_on("pi4")
    anew = with_figures(state.archive, figures_on("pi4"), CONSTRAINTS)
    told = told_anew(make_searcher(method, problem, population=12, seed=3), problem, state, anew)
    assert told.generation == 3
    assert told.archive == anew
    ends = []
    for start in (told, state_from_json(state_to_json(told))):
        searcher = make_searcher(method, problem, population=12, seed=3)
        ends.append(run_search(searcher=searcher, problem=problem, evaluate=evaluate, generations=5, state=start))
    assert state_to_json(ends[0]) == state_to_json(ends[1])
    latency_ms = {item.candidate.genome: item.evaluation.metrics[Metric.LATENCY_MS] for item in anew}
    for individual in told.searcher.get("individuals", ()):
        expected = latency_ms[problem.designs([tuple(individual["genome"])])[0]]
        assert expected in individual["objectives"] or None in individual["objectives"]


def test_jcw_keeps_what_it_learnt_of_accuracy_unless_scores_are_of_single_generations() -> None:
    state = searched(Method.JCW)
    problem = problem_on("pi4")
    kept = told_anew(make_searcher(Method.JCW, problem, population=12, seed=3), problem, state, state.archive)
    defined = sum(item.evaluation.failure is None for item in state.archive)
    assert len(kept.searcher["told"]) == len(state.searcher["told"]) == defined > 12
    scored = [
        dataclasses.replace(item, evaluation=dataclasses.replace(item.evaluation, generation=2))
        for item in state.archive
    ]
    forgotten = told_anew(make_searcher(Method.JCW, problem, population=12, seed=3), problem, state, scored)
    assert len(forgotten.searcher["told"]) <= 12
    assert np.isfinite(list(forgotten.searcher["told"].values())).all()
