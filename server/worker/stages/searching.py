"""SEARCHING: candidates proposed, estimated and predicted, generation by generation, until the front is chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from device_agent.contracts import canonical_json, dumps, encode
from search.algorithms.base import ReportingSearcher, Searcher
from search.algorithms.registry import make_searcher
from search.domain.candidate import EvaluatedCandidate, candidate_id
from search.domain.objective import Metric
from search.domain.space import SearchSpace
from search.known_figures import NetworkFigures
from search.latency.table import dump_table
from search.layers import layer_figures
from search.loop import SearchState, front_of, run_search
from search.lowering import lower
from search.parallel.crew import Crew
from search.pareto import hypervolume
from search.problem import SearchProblem
from search.rescoring import told_anew, with_figures
from search.selection import select
from server.searches.repository import (
    FRONT_LAYERS,
    LATENCY_CARD,
    LATENCY_TABLE,
    SEARCHED_FRONT,
    CandidateRecord,
    SearchEvent,
    add_events,
    device_document,
    load_candidates,
    mark_front,
    mark_selected,
    put_document,
    save_candidates,
)
from server.states import JobStage
from server.worker.active import Rounds, measured_round
from server.worker.estimates import forget_estimates
from server.worker.evaluating import CandidateEvaluator, one_shot_crew
from server.worker.latencies import Profile, card_of
from server.worker.problem import make_problem
from server.worker.reevaluating import reevaluated
from server.worker.run import SearchFailed, SearchRun, write_progress
from server.worker.search_states import SearchStates
from server.worker.stages.preparing import Prepared

STAGE = JobStage.SEARCHING

#: How often is told how far a generation is; most take less.
_WITHIN_GENERATION_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """The selected candidates, fastest first, with what the later stages stored about them."""

    selected: tuple[CandidateRecord, ...]


def search(run: SearchRun, prepared: Prepared, profile: Profile) -> Profile:
    """Search from the latest generation on, then mark the front and what of it goes on.

    Returns the latencies that the front was predicted with: with active measuring, more than `profile` has.
    """
    with run.database.read() as session:
        if load_candidates(session, run.search_id, selected=True):
            return profile
    run.enter(STAGE)
    config = run.config
    states = SearchStates(run)
    state, stored = states.load() or (None, None)
    rounds = Rounds.of(run, stored)
    recorder = _Recorder(run, profile, rounds, states, state)
    figures = NetworkFigures(prepared.spec, prepared.space, profile.fleet)
    with one_shot_crew(run, prepared) as crew:
        problem = make_problem(run, prepared, figures, crew)
        while True:
            # Each part is what a resumed search does, so that one that is resumed ends the same.
            target = config.method.generations if rounds.are_over else rounds.ends[rounds.done]
            searcher, state = _searched(run, prepared, problem, figures, crew, state, recorder, target)
            if rounds.are_over:
                break
            # A space that is used up gives no more generations to measure between.
            is_last = state.generation < target or target == config.method.generations
            measured, rounds = measured_round(run, prepared, profile, state.archive, rounds, is_last=is_last)
            if measured is not profile:
                profile = measured
                figures = NetworkFigures(prepared.spec, prepared.space, profile.fleet)
                problem = make_problem(run, prepared, figures, crew)
                anew = with_figures(state.archive, figures, config.constraints)
                state = told_anew(_searcher(run, problem), problem, state, anew)
            recorder.after_round(state, profile, rounds)
        judged = reevaluated(run, prepared, crew, state.archive)
    front = front_of(judged, config.objectives)
    if not front:
        bounds = ", ".join(f"{c.subject} <= {c.max:g}" for c in config.constraints)
        raise SearchFailed(
            f"none of {len(state.archive)} candidates meets {bounds}: raise a bound, or allow more generations"
        )
    if isinstance(searcher, ReportingSearcher):
        for line in searcher.report():
            run.message(line)
    selected = select(front, config.selection, profile.dense.tflite_ms)
    layers = front_layers(prepared, profile, front)
    with run.database.write() as session:
        if judged != state.archive:
            records = [_record(item, state.generation) for item in judged]
            save_candidates(session, run.claim, records)
            told = {_id(item) for item in state.archive if item.evaluation.failure is not None}
            add_events(session, run.claim, _failure_events([r for r in records if r.candidate_id not in told]))
        forget_estimates(session, run.claim)
        mark_front(session, run.claim, [_id(c) for c in front])
        mark_selected(session, run.claim, [_id(c) for c in selected])
        put_document(session, run.claim, SEARCHED_FRONT, searched_front(prepared.space, front))
        put_document(session, run.claim, FRONT_LAYERS, layers)
    return profile


def _searched(
    run: SearchRun,
    prepared: Prepared,
    problem: SearchProblem,
    figures: NetworkFigures,
    crew: Crew,
    state: SearchState | None,
    recorder: _Recorder,
    generations: int,
) -> tuple[Searcher, SearchState]:
    """Search from `state` up to `generations` with the latencies of `figures`, which `problem` is of."""
    known = [] if state is None else [item.candidate.genome for item in state.archive]
    evaluator = CandidateEvaluator(run, prepared, figures, crew, known, recorder.within_generation)
    searcher = _searcher(run, problem)
    state = run_search(
        searcher=searcher,
        problem=problem,
        evaluate=None if evaluator.scores_generations else evaluator,
        score_generation=evaluator.score_generation if evaluator.scores_generations else None,
        generations=generations,
        state=state,
        on_generation=recorder,
    )
    return searcher, state


def _searcher(run: SearchRun, problem: SearchProblem) -> Searcher:
    method = run.config.method
    return make_searcher(
        method.name,
        problem,
        population=method.population,
        seed=method.seed,
        reproduce_reference=method.reproduce_reference,
        seed_with=method.seed_with,
        rank=method.rank,
    )


def load_front(run: SearchRun) -> Front:
    """The selected candidates as stored now, fastest first."""
    with run.database.read() as session:
        records = load_candidates(session, run.search_id, selected=True)
    order = sorted(records, key=lambda c: (c.metrics[Metric.LATENCY_MS.value], c.candidate_id))
    return Front(selected=tuple(order))


def searched_front(space: SearchSpace, front: Sequence[EvaluatedCandidate]) -> str:
    """The front as canonical JSON: what was decided, and the figures that the search saw."""
    points = [
        {
            "candidate_id": _id(item),
            "decisions": encode(space.decode(item.candidate.genome)),
            "metrics": {metric.value: value for metric, value in item.evaluation.metrics.items()},
        }
        for item in front
    ]
    return canonical_json({"front": points, "version": 1})


def front_layers(prepared: Prepared, profile: Profile, front: Sequence[EvaluatedCandidate]) -> str:
    """The operators of each candidate of the front, as JSON by its identity."""
    models = list(profile.fleet.models.values())
    plans = {_id(item): lower(prepared.spec, prepared.space.decode(item.candidate.genome)) for item in front}
    return dumps({identity: layer_figures(plan, models) for identity, plan in plans.items()})


class _Recorder:
    """Stores a generation in one transaction: its candidates, the checkpoint, and what watchers see."""

    def __init__(
        self, run: SearchRun, profile: Profile, rounds: Rounds, states: SearchStates, state: SearchState | None
    ) -> None:
        self._run = run
        self._profile = profile
        self._rounds = rounds
        self._states = states
        self._stored = 0 if state is None else len(state.archive)
        self._generation = 0 if state is None else state.generation
        self._note = ""

    def __call__(self, state: SearchState) -> None:
        run, config = self._run, self._run.config
        front = front_of(state.archive, config.objectives)
        new = state.archive[self._stored :]
        again = [item for item in state.archive[: self._stored] if item.evaluation.generation == state.generation - 1]
        records = [_record(item, state.generation) for item in (*new, *again)]
        figures: dict[str, Any] = {
            "generation": state.generation,
            "generations": config.method.generations,
            "evaluations": len(state.archive),
            "front": len(front),
            "failures": sum(item.evaluation.failure is not None for item in state.archive),
            "hypervolume": self._hypervolume(front),
        }
        note = f"{len(state.archive)} candidates, {len(front)} on the front"
        if figures["failures"]:
            note += f", {figures['failures']} failed"
        progress = {
            "stage": STAGE.value,
            "done": state.generation,
            "total": config.method.generations,
            "note": note,
        }
        with run.database.write() as session:
            save_candidates(session, run.claim, records)
            forget_estimates(session, run.claim)
            mark_front(session, run.claim, [_id(c) for c in front])
            self._states.save(session, state, self._rounds.to_json())
            add_events(session, run.claim, [SearchEvent(kind="generation", data=figures), *_failure_events(records)])
            write_progress(session, run.claim, progress)
        self._stored, self._generation, self._note = len(state.archive), state.generation, note
        run.check()

    def within_generation(self, done: int, total: int) -> None:
        """Tell how far the estimates of a generation are: with training in them, one takes minutes."""
        part = f"{100 * done // max(1, total)} % of generation {self._generation + 1} estimated"
        note = f"{self._note}; {part}" if self._note else part
        generations = self._run.config.method.generations
        self._run.progress(STAGE, self._generation, generations, note, interval_s=_WITHIN_GENERATION_S)

    def after_round(self, state: SearchState, profile: Profile, rounds: Rounds) -> None:
        """Store a round of measuring in one transaction: tables, candidates with their new latencies, checkpoint."""
        run = self._run
        self._rounds, self._profile = rounds, profile
        front = front_of(state.archive, run.config.objectives)
        with run.database.write() as session:
            for device in profile.devices:
                for name, text in ((LATENCY_TABLE, dump_table(device.table)), (LATENCY_CARD, card_of(device))):
                    document = device_document(name, device.device_id, run.claim.device_ids)
                    put_document(session, run.claim, document, text)
            found = {c.candidate_id: c.generation for c in load_candidates(session, run.search_id)}
            save_candidates(session, run.claim, [_record(item, found[_id(item)]) for item in state.archive])
            mark_front(session, run.claim, [_id(c) for c in front])
            self._states.save(session, state, self._rounds.to_json())
        run.check()

    def _hypervolume(self, front: Sequence[EvaluatedCandidate]) -> float | None:
        """Of (error, latency) against (1, dense latency), as a part of the rectangle; for watching only."""
        dense_ms = self._profile.dense.native_ms
        if dense_ms is None or not front:
            return None
        points = np.array(
            [[c.evaluation.metrics[Metric.ERROR], c.evaluation.metrics[Metric.LATENCY_MS] / dense_ms] for c in front]
        )
        return float(hypervolume(points, np.array([1.0, 1.0])))


def _record(item: EvaluatedCandidate, generation: int) -> CandidateRecord:
    """What the table holds: figures that are defined, and among the results the reason of a failure, and the latency
    on each of several devices.
    """
    evaluation = item.evaluation
    found: dict[str, Any] = {}
    if evaluation.failure is not None:
        found["failure"] = evaluation.failure
    if evaluation.latencies_ms:
        found["latencies_ms"] = dict(evaluation.latencies_ms)
    return CandidateRecord(
        candidate_id=_id(item),
        genome=item.candidate.genome,
        metrics={metric.value: value for metric, value in evaluation.metrics.items() if math.isfinite(value)},
        generation=generation,
        violation=evaluation.violation if math.isfinite(evaluation.violation) else 0.0,
        results={STAGE.value: found} if found else {},
    )


def _failure_events(records: Sequence[CandidateRecord]) -> list[SearchEvent]:
    """A line for the user for each candidate that could not be evaluated."""
    return [
        SearchEvent(
            kind="message",
            data={
                "text": f"candidate {record.candidate_id[:10]} could not be evaluated: "
                f"{record.results[STAGE.value]['failure']}"
            },
        )
        for record in records
        if "failure" in record.results.get(STAGE.value, {})
    ]


def _id(item: EvaluatedCandidate) -> str:
    return candidate_id(item.candidate)
