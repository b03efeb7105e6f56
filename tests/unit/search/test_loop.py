"""The loop: resumable at every generation, without evaluating anything twice."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest

from device_agent.contracts import ContractError
from search.algorithms.base import Searcher
from search.algorithms.registry import make_searcher
from search.domain.candidate import Candidate, EvaluatedCandidate, Evaluation
from search.domain.objective import Constraint, Metric
from search.domain.space import Genome, space_id
from search.errors import SearchError
from search.loop import SearchState, front_of, run_search, state_from_json, state_to_json, total_violation
from tests.unit.search.algorithms.searcher_suite import PROBLEM, SMALL_PROBLEM, SPACE, TWO, evaluate


def searcher(method: str = "jcw", seed: int = 0) -> Searcher:
    return make_searcher(method, PROBLEM, population=10, seed=seed)


def run(method: str = "jcw", generations: int = 6, **changes: object) -> SearchState:
    arguments = {
        "searcher": searcher(method),
        "problem": PROBLEM,
        "evaluate": evaluate,
        "generations": generations,
    }
    return run_search(**(arguments | changes))


def front_text(state: SearchState) -> str:
    front = front_of(state.archive, TWO)
    return json.dumps([[i.candidate.genome, sorted(i.evaluation.metrics.items())] for i in front])


class Stopped(Exception):
    pass


@pytest.mark.parametrize("method", ["jcw", "nsga2", "random"])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_killed_search_ends_on_the_same_front(method: str, stop: int) -> None:
    undisturbed = run(method)
    stored = ""

    def store(state: SearchState) -> None:
        nonlocal stored
        stored = json.dumps(state_to_json(state), allow_nan=False)
        if state.generation == stop:
            raise Stopped

    with pytest.raises(Stopped):
        run(method, on_generation=store)
    evaluated: list[Genome] = []

    def count(genomes: Sequence[Genome]) -> list[Evaluation]:
        evaluated.extend(genomes)
        return evaluate(genomes)

    resumed = run(method, state=state_from_json(json.loads(stored)), evaluate=count)
    assert front_text(resumed) == front_text(undisturbed)
    assert json.dumps(state_to_json(resumed)) == json.dumps(state_to_json(undisturbed))
    assert len(evaluated) == 10 * (6 - stop)


def test_search_killed_within_a_generation_repeats_it() -> None:
    states: list[SearchState] = []
    calls = 0

    def crash(genomes: Sequence[Genome]) -> list[Evaluation]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Stopped
        return evaluate(genomes)

    with pytest.raises(Stopped):
        run(evaluate=crash, on_generation=states.append)
    assert states[-1].generation == 2
    assert front_text(run(state=states[-1])) == front_text(run())


def test_finished_search_is_left_alone() -> None:
    done = run()
    assert run(state=done) == done


def test_more_generations_continue_a_finished_search() -> None:
    assert run(generations=8, state=run(generations=6)) == run(generations=8)


def test_used_up_space_ends_the_search() -> None:
    small = make_searcher("random", SMALL_PROBLEM, population=10, seed=0)

    def figures(genomes: Sequence[Genome]) -> list[Evaluation]:
        return [Evaluation(metrics={Metric.LOSS: -float(sum(g)), Metric.LATENCY_MS: float(sum(g))}) for g in genomes]

    state = run_search(searcher=small, problem=SMALL_PROBLEM, evaluate=figures, generations=99)
    assert len(state.archive) == 27
    assert state.generation == 3
    # equal objectives are one point of the front
    assert len(front_of(state.archive, TWO)) == 7


def test_wrong_evaluations_are_refused() -> None:
    with pytest.raises(SearchError, match="10 genomes were to be evaluated, but 9"):
        run(evaluate=lambda genomes: evaluate(genomes)[1:])
    with pytest.raises(SearchError, match="lacks the objective 'latency_ms'"):
        run(evaluate=lambda genomes: [Evaluation(metrics={Metric.LOSS: 1.0}) for _ in genomes])


def test_state_of_another_search_is_refused() -> None:
    state = run(generations=1)
    small = make_searcher("jcw", SMALL_PROBLEM, population=10, seed=0)
    with pytest.raises(ContractError, match="the stored search is over space"):
        run(state=state, searcher=small, problem=SMALL_PROBLEM)
    with pytest.raises(ContractError, match="seed"):
        run(state=state, searcher=searcher(seed=1))


def test_damaged_state_is_refused() -> None:
    data = state_to_json(run(generations=1))
    for damage in ({"generation": "x"}, {"archive": [{}]}, {"archive": 3}):
        with pytest.raises(ContractError, match="damaged"):
            state_from_json({**data, **damage})
    with pytest.raises(ContractError, match="damaged"):
        state_from_json({})


def item(genome: Genome, loss: float, latency_ms: float, violation: float = 0.0) -> EvaluatedCandidate:
    return EvaluatedCandidate(
        candidate=Candidate(space_id=space_id(SPACE), genome=genome),
        evaluation=Evaluation(metrics={Metric.LOSS: loss, Metric.LATENCY_MS: latency_ms}, violation=violation),
    )


def test_front_by_hand() -> None:
    archive = [
        item((0,), 1.0, 5.0),
        item((1,), 2.0, 3.0),
        item((2,), 2.0, 4.0),  # dominated
        item((3,), 9.0, 1.0, violation=0.1),  # infeasible
        item((4,), math.nan, 0.5),  # undefined
        item((5,), 2.0, 3.0),  # equal to an earlier one
    ]
    assert [i.candidate.genome for i in front_of(archive, TWO)] == [(1,), (0,)]
    assert front_of(archive[3:5], TWO) == ()


def test_undefined_figures_survive_json() -> None:
    state = SearchState(generation=1, searcher={}, archive=(item((0,), math.nan, 2.0, violation=math.nan),))
    back = state_from_json(json.loads(json.dumps(state_to_json(state), allow_nan=False)))
    assert math.isnan(back.archive[0].evaluation.metrics[Metric.LOSS])
    assert math.isnan(back.archive[0].evaluation.violation)


def test_total_violation() -> None:
    bounds = [Constraint(metric=Metric.LATENCY_MS, max=2.0), Constraint(metric=Metric.MACS, max=100)]
    assert total_violation({Metric.LATENCY_MS: 3.0, Metric.MACS: 90}, bounds) == 0.5
    assert total_violation({Metric.LATENCY_MS: 3.0, Metric.MACS: 110}, bounds) == pytest.approx(0.6)
    assert math.isnan(total_violation({Metric.LATENCY_MS: 3.0, Metric.MACS: math.nan}, bounds))
    assert total_violation({}, []) == 0.0
