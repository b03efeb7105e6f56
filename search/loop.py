"""The search loop: ask, evaluate, tell, once a generation, from one stored state to the next.

A state holds all that the rest of the search depends on. So a search that is stopped, killed or moved to another worker
continues from its last state exactly as if nothing had happened, and ends on the same front.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from device_agent.contracts import ContractError
from search.algorithms.base import PopulationSearcher, Searcher, SearcherState
from search.domain.candidate import Candidate, EvaluatedCandidate, Evaluation
from search.domain.objective import Constraint, Metric, Objective
from search.domain.space import Genome, space_id
from search.errors import SearchError
from search.json_numbers import finite_or_none, number_or
from search.pareto import FloatArray, non_dominated_mask
from search.problem import SearchProblem

#: Gives the figures of new genomes, in their order. Called once a generation.
Evaluate = Callable[[Sequence[Genome]], Sequence[Evaluation]]
#: The same for a whole generation, survivors included, by its number: figures that compare within it only.
ScoreGeneration = Callable[[Sequence[Genome], int], Sequence[Evaluation]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchState:
    """A search between two generations. `archive` has every candidate evaluated so far, in order."""

    generation: int
    searcher: SearcherState
    archive: tuple[EvaluatedCandidate, ...]


def run_search(
    *,
    searcher: Searcher,
    problem: SearchProblem,
    evaluate: Evaluate | None = None,
    score_generation: ScoreGeneration | None = None,
    generations: int,
    state: SearchState | None = None,
    on_generation: Callable[[SearchState], None] | None = None,
) -> SearchState:
    """Search up to `generations`, from the start or from `state`, and return the last state.

    `on_generation` gets the state after each generation, to be stored before the next one begins; what it raises ends
    the search. Designs that are in the archive are not evaluated again, whatever genome they are asked for by: the
    archive has the canonical one. Ends early when the space is used up.

    With `score_generation` in place of `evaluate`, the survivors of earlier generations are scored again together with
    the new genomes in each generation, from 0 on. The archive then has each candidate's last figures, and fronts are
    made of the last generation's alone.

    A candidate that could not be evaluated (`Evaluation.failure`) is told with undefined objectives and is on no front.

    Raises `SearchError` where `evaluate` returns other than one evaluation a genome, leaves out an objective without
    giving a failure, or fails on all of a generation (the text has the first reason), and `ContractError` where `state`
    belongs to another search, or where generations are to be scored for a searcher without survivors.
    """
    if (evaluate is None) == (score_generation is None):
        raise ValueError("give either evaluate or score_generation")
    objectives = problem.objectives
    space_identity = space_id(problem.space)
    archive: dict[Genome, EvaluatedCandidate] = {}
    generation = 0
    if state is not None:
        archive = {item.candidate.genome: item for item in _checked_archive(state.archive, space_identity)}
        generation = state.generation
        searcher.restore(state.searcher)
    current = state or SearchState(generation=0, searcher=searcher.state(), archive=())
    while generation < generations:
        genomes = searcher.ask()
        if not genomes:
            break
        designs = problem.designs(genomes)
        survivors: tuple[Genome, ...] = ()
        if score_generation is None:
            assert evaluate is not None
            new = [design for design in dict.fromkeys(designs) if design not in archive]
            evaluations = _evaluated(evaluate, new, objectives, is_first=not archive)
        else:
            survivors = _population_of(searcher).survivors()
            new = list(dict.fromkeys((*problem.designs(survivors), *designs)))
            evaluations = _evaluated(_scored_in(generation, score_generation), new, objectives, is_first=not archive)
        for genome, evaluation in zip(new, evaluations, strict=True):
            archive[genome] = EvaluatedCandidate(
                candidate=Candidate(space_id=space_identity, genome=genome), evaluation=evaluation
            )
        if survivors:
            known = [archive[genome].evaluation for genome in problem.designs(survivors)]
            _population_of(searcher).rescore(survivors, objective_matrix(known, objectives), violations_of(known))
        told = [archive[design].evaluation for design in designs]
        searcher.tell(genomes, objective_matrix(told, objectives), violations_of(told))
        generation += 1
        current = SearchState(generation=generation, searcher=searcher.state(), archive=tuple(archive.values()))
        if on_generation is not None:
            on_generation(current)
    return current


def front_of(archive: Sequence[EvaluatedCandidate], objectives: Sequence[Objective]) -> tuple[EvaluatedCandidate, ...]:
    """The feasible candidates of `archive` that no other feasible one dominates, fastest first.

    Without latency among the objectives, the first objective orders. Of candidates with equal objectives only the first
    of the archive is kept. Candidates that failed, or with an undefined objective, are on no front. Empty where nothing
    is feasible. Where scores compare within a generation only, the front is that of the last one.
    """
    archive = comparable(archive)
    feasible = [item for item in archive if item.evaluation.failure is None and item.evaluation.violation <= 0]
    if not feasible:
        return ()
    matrix = objective_matrix([item.evaluation for item in feasible], objectives)
    first_of: dict[tuple[float, ...], EvaluatedCandidate] = {}
    for row, item, on_front in zip(matrix, feasible, non_dominated_mask(matrix), strict=True):
        if on_front:
            first_of.setdefault(tuple(float(v) for v in row), item)
    metrics = [o.metric for o in objectives]
    leading = metrics.index(Metric.LATENCY_MS) if Metric.LATENCY_MS in metrics else 0
    return tuple(first_of[values] for values in sorted(first_of, key=lambda v: (v[leading], v)))


def comparable(archive: Sequence[EvaluatedCandidate]) -> Sequence[EvaluatedCandidate]:
    """Those of `archive` whose scores compare: all, or those of the last generation that was scored by itself."""
    scored = [item.evaluation.generation for item in archive if item.evaluation.generation is not None]
    if not scored:
        return archive
    return [item for item in archive if item.evaluation.generation == max(scored)]


def objective_matrix(evaluations: Sequence[Evaluation], objectives: Sequence[Objective]) -> FloatArray:
    """The objectives of `evaluations`, shape (n, m), in the order of `objectives`. All NaN where one failed."""
    rows = [[math.nan if e.failure is not None else e.metrics[o.metric] for o in objectives] for e in evaluations]
    return np.array(rows, dtype=np.float64).reshape(len(evaluations), len(objectives))


def total_violation(
    metrics: Mapping[Metric, float],
    constraints: Sequence[Constraint],
    latencies_ms: Mapping[str, float] = MappingProxyType({}),
) -> float:
    """The sum of the relative excesses over all bounds; NaN where a bounded figure is undefined.

    `latencies_ms` has the latency on each device that a bound names.
    """
    values = [(c, metrics[c.metric] if c.device is None else latencies_ms[c.device]) for c in constraints]
    return float(sum(math.nan if math.isnan(value) else bound.violation(value) for bound, value in values))


def state_to_json(state: SearchState) -> dict[str, Any]:
    """The state as JSON-compatible data. Figures that are not finite become None."""
    return {
        "generation": state.generation,
        "searcher": state.searcher,
        "archive": [
            {
                "space_id": item.candidate.space_id,
                "genome": list(item.candidate.genome),
                "metrics": {metric.value: finite_or_none(v) for metric, v in sorted(item.evaluation.metrics.items())},
                "violation": finite_or_none(item.evaluation.violation),
                **({} if item.evaluation.failure is None else {"failure": item.evaluation.failure}),
                **({} if item.evaluation.generation is None else {"scored_in": item.evaluation.generation}),
                **({"latencies_ms": dict(item.evaluation.latencies_ms)} if item.evaluation.latencies_ms else {}),
            }
            for item in state.archive
        ],
    }


def state_from_json(data: Mapping[str, Any]) -> SearchState:
    """Read what `state_to_json` wrote; None becomes NaN. Raises `ContractError` where the data is damaged."""
    try:
        return SearchState(
            generation=int(data["generation"]),
            searcher=dict(data["searcher"]),
            archive=tuple(
                EvaluatedCandidate(
                    candidate=Candidate(space_id=str(row["space_id"]), genome=tuple(int(g) for g in row["genome"])),
                    evaluation=Evaluation(
                        metrics={Metric(name): number_or(v) for name, v in row["metrics"].items()},
                        violation=number_or(row["violation"]),
                        failure=row.get("failure"),
                        generation=None if row.get("scored_in") is None else int(row["scored_in"]),
                        latencies_ms={str(d): float(ms) for d, ms in row.get("latencies_ms", {}).items()},
                    ),
                )
                for row in data["archive"]
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ContractError(f"the stored state of the search is damaged: {error!r}") from None


def _evaluated(
    evaluate: Evaluate, genomes: Sequence[Genome], objectives: Sequence[Objective], *, is_first: bool
) -> Sequence[Evaluation]:
    if not genomes:
        return ()
    evaluations = evaluate(genomes)
    if len(evaluations) != len(genomes):
        raise SearchError(f"{len(genomes)} genomes were to be evaluated, but {len(evaluations)} evaluations came back")
    for evaluation in evaluations:
        missing = [o.metric.value for o in objectives if o.metric not in evaluation.metrics]
        if missing and evaluation.failure is None:
            raise SearchError(f"an evaluation lacks the objective {missing[0]!r}: it has {list(evaluation.metrics)}")
    if all(evaluation.failure is not None for evaluation in evaluations) and (len(genomes) > 1 or is_first):
        raise SearchError(
            f"none of the {len(genomes)} candidates of a generation could be evaluated; the first: "
            f"{evaluations[0].failure}"
        )
    return evaluations


def violations_of(evaluations: Sequence[Evaluation]) -> FloatArray:
    """The violations of `evaluations`, shape (n,)."""
    return np.array([e.violation for e in evaluations], dtype=np.float64)


def _population_of(searcher: Searcher) -> PopulationSearcher:
    if not isinstance(searcher, PopulationSearcher):
        raise ContractError(
            f"{type(searcher).__name__} has no survivors to score again: use another method, or an estimator whose "
            "scores compare between generations, such as one_shot"
        )
    return searcher


def _scored_in(generation: int, score: ScoreGeneration) -> Evaluate:
    """`score`, with the generation noted in each evaluation."""

    def evaluate(genomes: Sequence[Genome]) -> list[Evaluation]:
        return [replace(evaluation, generation=generation) for evaluation in score(genomes, generation)]

    return evaluate


def _checked_archive(archive: Sequence[EvaluatedCandidate], space_identity: str) -> Sequence[EvaluatedCandidate]:
    for item in archive:
        if item.candidate.space_id != space_identity:
            raise ContractError(
                f"the stored search is over space {item.candidate.space_id}, but this one is over {space_identity}: "
                "continue with the config that it began with"
            )
    return archive
