"""A search between two generations, told anew with the latencies of another table.

All of the archive gets its latency from the one table, so that fronts compare. Accuracy stays as it was estimated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from search.algorithms.base import PopulationSearcher, RecallingSearcher, Searcher
from search.domain.candidate import EvaluatedCandidate
from search.domain.objective import Constraint
from search.known_figures import NetworkFigures
from search.loop import SearchState, objective_matrix, total_violation, violations_of
from search.problem import SearchProblem


def with_figures(
    archive: Sequence[EvaluatedCandidate], figures: NetworkFigures, constraints: Sequence[Constraint]
) -> tuple[EvaluatedCandidate, ...]:
    """`archive` with what `figures` says of each genome; estimates, failures and their generations stay."""
    known, by_device = figures.with_latencies_ms([item.candidate.genome for item in archive])
    found = []
    for row, item in enumerate(archive):
        metrics = {**item.evaluation.metrics, **{metric: float(values[row]) for metric, values in known.items()}}
        latencies_ms = {device: float(values[row]) for device, values in by_device.items()}
        evaluation = replace(
            item.evaluation,
            metrics=metrics,
            violation=total_violation(metrics, constraints, latencies_ms),
            latencies_ms=latencies_ms if len(latencies_ms) > 1 else {},
        )
        found.append(replace(item, evaluation=evaluation))
    return tuple(found)


def told_anew(
    searcher: Searcher, problem: SearchProblem, state: SearchState, archive: Sequence[EvaluatedCandidate]
) -> SearchState:
    """`state` with `archive` in the place of its own, which has the same genomes, and a searcher that knows it.

    `searcher` is one of the same search; it takes over the state. One without survivors depends on no figures.
    """
    searcher.restore(state.searcher)
    if isinstance(searcher, PopulationSearcher):
        evaluations = {item.candidate.genome: item.evaluation for item in archive}
        survivors = searcher.survivors()
        known = [evaluations[design] for design in problem.designs(survivors)]
        searcher.rescore(survivors, objective_matrix(known, problem.objectives), violations_of(known))
        # Scores of single generations compare with no others, so what was learnt of those is gone for good.
        if isinstance(searcher, RecallingSearcher) and all(e.generation is None for e in evaluations.values()):
            searcher.recall(list(evaluations), objective_matrix(list(evaluations.values()), problem.objectives))
    return SearchState(generation=state.generation, searcher=searcher.state(), archive=tuple(archive))
